"""The store against damage, kills, competing writers and unusable paths."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract
from rvos_cache.store import CacheWriter, Card, TrackCache, content_digest, open_backend, verify
from rvos_cache.types import TrackSet, Video

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from store_fixtures import TinyTracker  # noqa: E402

pytestmark = pytest.mark.slow

TINY, TRACKER = "store_fixtures:Tiny", "store_fixtures:TinyTracker"


def run(tmp_path: Path, name: str, videos: int = 5, **options: object) -> Path:
    out = tmp_path / name
    extract(TINY, tmp_path / str(videos), "train", TRACKER, out, **options)  # type: ignore[arg-type]
    return out


def spawn(tmp_path: Path, out: Path, videos: int, *more: str) -> subprocess.Popen[bytes]:
    arguments = ["extract", "--dataset", TINY, "--root", str(tmp_path / str(videos)), "--split", "train"]
    arguments += ["--tracker", TRACKER, "--out", str(out), *more]
    code = "import sys; from rvos_cache.cli import main; sys.argv[0] = 'rvos-cache'; main()"
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=-3, stderr=subprocess.PIPE)


def test_round_trip_and_shards(tmp_path: Path) -> None:
    whole, parts = run(tmp_path, "a.zarr"), tmp_path / "b.zarr"
    for shard in ("2/2", "1/2"):
        run(tmp_path, "b.zarr", shard=shard)
    cache = TrackCache(whole)
    assert [cache.info(v).tracks for v in cache.video_ids()] == [0, 3, 3, 3, 3]
    assert cache.info("v01").frames == 1 and cache.overlap("v02").inter.shape == (3, 0, 5)
    assert cache.info("v03").expressions[0].text == "собака идёт налево " * 200
    np.testing.assert_array_equal(cache.feature("v03", "map", slice(1, 3)), cache.feature("v03", "map")[1:3])
    assert content_digest(whole) == content_digest(parts) and list(verify(whole)) == []


def test_200_byte_flips_are_found(tmp_path: Path) -> None:
    out = run(tmp_path, "a.zarr", overrides={"bad": "v04"})
    files, rng = sorted(p for p in out.rglob("*") if p.is_file()), np.random.default_rng(0)
    assert {"card.json", "failures.jsonl", "digests.json"} <= {p.name for p in files}
    for i in range(200):
        path = files[i % len(files)]
        raw = path.read_bytes()
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert next(verify(out), None), path
        path.write_bytes(raw)
    assert list(verify(out)) == []


def test_every_bit_of_a_failure_record_counts(tmp_path: Path) -> None:
    CacheWriter(tmp_path / "c.zarr", Card(kind="tracks", dataset="d", split="s", producer="p")).fail("v", "frame 3 is\ndamaged")
    cache, path = TrackCache(tmp_path / "c.zarr"), tmp_path / "c.zarr/failures.jsonl"
    raw = path.read_bytes()
    assert cache.failures() == {"v": "frame 3 is damaged"}
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"failures.jsonl, line \d: not a failure record"):
            cache.failures()


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_of_two_writers_that_start_together_the_first_writes_the_card(tmp_path: Path, kind: str) -> None:
    backend = open_backend(tmp_path / "c.zarr" if kind == "folder" else f"memory://caches{tmp_path}/c.zarr")
    for card in (b"first", b"second"):
        backend.create(card)
    assert backend.read("card.json").tobytes() == b"first"


def test_missing_and_foreign_files_are_reported_and_not_read(tmp_path: Path) -> None:
    out = run(tmp_path, "a.zarr")
    (out / "videos/v03/tokens/c/0/0/0").unlink()
    (out / "videos/v02/extra").write_text("x")
    assert len(list(verify(out))) == 2
    with pytest.raises(InputError, match="delete the folder"):
        TrackCache(out).tokens("v03")


def test_a_failed_video_does_not_stop_the_others(tmp_path: Path) -> None:
    report = extract(TINY, tmp_path / "5", "train", TRACKER, tmp_path / "a.zarr", overrides={"bad": "v01", "nan": "v03"})
    assert set(report.failed) == {"v01", "v03"} and len(report.done) == 3
    assert set(TrackCache(tmp_path / "a.zarr").failures()) == {"v01", "v03"}


def test_another_card_names_the_setting(tmp_path: Path) -> None:
    run(tmp_path, "a.zarr")
    with pytest.raises(InputError, match="settings.size = 4, now it is 5"):
        run(tmp_path, "a.zarr", overrides={"size": 5})


def test_an_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: TinyTracker, video: Video, *args: object) -> TrackSet:
        if video.video_id == "v02":
            raise KeyboardInterrupt
        return track(self, video, *args)  # type: ignore[arg-type]

    track = TinyTracker.track
    with monkeypatch.context() as patch:
        patch.setattr(TinyTracker, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "a.zarr")
    assert TrackCache(tmp_path / "a.zarr").video_ids() == ("v00", "v01") and list(verify(tmp_path / "a.zarr")) == []
    run(tmp_path, "a.zarr")
    assert content_digest(tmp_path / "a.zarr") == content_digest(run(tmp_path, "b.zarr"))


def killed_at(call: int, tmp_path: Path, name: str) -> int:
    """Run an extraction in a forked process that kills itself before its `call`-th write to the disk; returns its exit code."""
    fsync, rename, calls = os.fsync, os.rename, [0]

    def count() -> None:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def extract_and_die() -> None:
        os.fsync = lambda handle: (count(), fsync(handle))
        os.rename = lambda *paths: (count(), rename(*paths))
        run(tmp_path, name, 3)

    process = multiprocessing.get_context("fork").Process(target=extract_and_die)
    process.start()
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def test_a_kill_before_any_write_leaves_no_part_of_a_video(tmp_path: Path) -> None:
    """Killed at writes of the card and of two videos: before each fsync and rename of a sample, and around each publication."""
    expected, calls, renames = run(tmp_path, "whole.zarr", 3), [0], []
    fsync, rename = os.fsync, os.rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (calls.__setitem__(0, calls[0] + 1), fsync(handle)))
        patch.setattr(os, "rename", lambda *p: (calls.__setitem__(0, calls[0] + 1), renames.append(calls[0]), rename(*p)))
        run(tmp_path, "counted.zarr", 3)
    assert len(renames) == 3
    kills = {1, 2, 3, 9, *(call + step for call in renames[:2] for step in (-1, 0, 1)), renames[1] + 12}
    for call in sorted(kills):
        out = tmp_path / f"{call}.zarr"
        assert killed_at(call, tmp_path, out.name) == -signal.SIGKILL
        published = sum(rename < call for rename in renames)
        if (out / "card.json").exists():
            assert TrackCache(out).video_ids() == ("v00", "v01", "v02")[:published] and list(verify(out)) == []
        else:
            assert published == 0
        run(tmp_path, out.name, 3)
        assert content_digest(out) == content_digest(expected) and list((out / ".staging").iterdir()) == []


def test_every_file_is_on_the_disk_before_its_video_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename must not leave a video without its bytes: files, folders, and then the list of videos."""
    synced: list[int] = []
    fsync, rename, published = os.fsync, os.rename, []

    def record(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    def check(source: Path, target: Path) -> None:
        paths = [source, *source.rglob("*")]
        assert len(paths) > 20 and {path.stat().st_ino for path in paths} <= set(synced)
        published.append(target.name)
        synced.clear()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", check)
    out = run(tmp_path, "a.zarr", 2)
    assert published == ["v00", "v01"] and (out / "videos").stat().st_ino in synced


def test_kills_at_random_times(tmp_path: Path) -> None:
    """Kills between two published videos; RVOS_KILLS sets their number."""
    kills, out, videos = int(os.environ.get("RVOS_KILLS", "2")), tmp_path / "k.zarr", 30
    expected = content_digest(run(tmp_path, "a.zarr", videos, overrides={"wait": 0.02}))
    rng, landed = np.random.default_rng(1), 0
    for _ in range(kills):
        before = len(TrackCache(out).video_ids()) if (out / "card.json").exists() else 0
        process = spawn(tmp_path, out, videos, "--set", "wait=0.02")
        start = time.monotonic()
        while process.poll() is None and len(list(out.glob("videos/*"))) <= before:
            assert time.monotonic() - start < 100
            time.sleep(0.005)
        time.sleep(float(rng.random()) / 10)
        landed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list(verify(out)) == []
        if len(TrackCache(out).video_ids()) == videos:
            shutil.rmtree(out)
    assert landed
    run(tmp_path, "k.zarr", videos, overrides={"wait": 0.02})
    assert content_digest(out) == expected and not list((out / ".staging").glob("v*"))


def test_four_writers_at_once(tmp_path: Path) -> None:
    out = tmp_path / "w.zarr"
    started = [spawn(tmp_path, out, 12) for _ in range(4)]
    assert [p.wait(120) for p in started] == [0] * 4
    assert content_digest(out) == content_digest(run(tmp_path, "a.zarr", 12)) and list(verify(out)) == []


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = spawn(tmp_path, tmp_path / "file" / "a.zarr", 3)
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
