"""The store: foreign files, what dead processes left, half a record of a failure."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from store_records import record, writer

from rvos_cache.errors import InputError
from rvos_cache.store import (
    TrackCache,
    content_digest,
    leftovers,
    verify,
    write_tracks,
)
from rvos_cache.store.staging import HOST, host_name


@pytest.fixture
def cache(tmp_path: Path) -> TrackCache:
    write_tracks(writer(tmp_path / "c.zarr"), record())
    return TrackCache(tmp_path / "c.zarr")


@pytest.mark.parametrize("name", [
    "note.txt", "zarr.json", "extra/", "videos/.DS_Store", "videos/v/extra", "videos/v/empty/", "videos/v/tokens/c/0/0/1",
    ".staging/what",
])  # fmt: skip
def test_foreign_files_are_found(cache: TrackCache, name: str) -> None:
    foreign = Path(cache.path) / name
    if name.endswith("/"):
        foreign.mkdir()
    else:
        foreign.write_text("x")
    faults = list(verify(cache.path))
    assert len(faults) == 1 and faults[0].startswith(f"{foreign}: does not belong here"), faults
    assert list(leftovers(cache.path)) == []


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_processes_are_reported_and_removed(cache: TrackCache) -> None:
    pid, own_pid, staging = dead_process(), os.getpid(), Path(cache.path) / ".staging"
    before = content_digest(cache.path)
    dead = [f"v.1.{HOST}.{pid}.{uuid.uuid4().hex}", f"w.elsewhere.{pid}.{uuid.uuid4().hex}"]
    alive = [f"v.1.{HOST}.{own_pid}.{uuid.uuid4().hex}", f"w.elsewhere.{own_pid}.{uuid.uuid4().hex}"]
    cards = [f"card.{HOST}.{pid}.{uuid.uuid4().hex}", f"card.{uuid.uuid4().hex}"]
    for name in dead + alive:
        (staging / name / "tokens").mkdir(parents=True)
    for name in cards:
        (staging / name).write_text("{}")
    for name in (dead[1], cards[1]):
        os.utime(staging / name, (0, 0))
    notes = list(leftovers(cache.path))
    assert list(verify(cache.path)) == [] and {Path(n.split(": ")[0]).name for n in notes} == {*dead, *cards}
    writer(cache.path)
    assert {p.name for p in staging.iterdir()} == set(alive) and list(leftovers(cache.path)) == []
    assert content_digest(cache.path) == before


def test_a_container_of_the_same_host_name_may_be_alive(cache: TrackCache) -> None:
    """Its process ids mean nothing here, so what it stages is not removed within a day."""
    machine = socket.gethostname().replace(".", "-")
    assert re.fullmatch(rf"{re.escape(machine)}-[0-9a-f]{{8}}", HOST)
    staging, ids = Path(cache.path) / ".staging", (dead_process(), 999_999_999)
    names = {f"v.{host}.{pid}.{uuid.uuid4().hex}" for pid in ids for host in (machine, f"{machine}-00000000")}
    for name in names:
        (staging / name).mkdir()
    writer(cache.path)
    assert {p.name for p in staging.iterdir()} == names and list(leftovers(cache.path)) == []


@pytest.mark.parametrize("changed", ["/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"])
def test_a_machine_has_another_name_after_each_start_and_in_each_container(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    assert host_name() == HOST
    readlink, read_text = os.readlink, Path.read_text
    monkeypatch.setattr(os, "readlink", lambda path: "other" if path == changed else readlink(path))
    monkeypatch.setattr(Path, "read_text", lambda path, *more: "other" if str(path) == changed else read_text(path, *more))
    assert host_name() != HOST


def test_half_a_record_of_a_failure_goes_when_the_cache_is_opened_to_write(cache: TrackCache) -> None:
    """A crash may leave it; the video is not in the cache, so it is extracted again."""
    path = Path(cache.path) / "failures.jsonl"
    writer(cache.path).fail("v7", "damaged")
    with open(path, "ab") as file:
        file.write(b'{"video": "v8", "err')
    with pytest.raises(InputError, match="line 2: not a failure record"):
        cache.failures()
    writer(cache.path)
    assert cache.failures() == {"v7": "damaged"} and list(verify(cache.path)) == []
