"""Atomic writes: whole or unchanged, also when a write fails; errors name the file that was asked for."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from rvos_cache.files import append_line, replace_file, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_parents_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file.json"
    write_json(path, {"é": [1]})
    assert json.loads(path.read_text("utf-8")) == {"é": [1]} and path.read_text("utf-8").endswith("\n")
    write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert names(path.parent) == ["file.json"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, existing: bool
) -> None:
    path = tmp_path / "file"
    if existing:
        path.write_bytes(b"old")

    def fail(*args: object) -> None:
        # A full disk names no file, a failed rename the temporary one.
        raise OSError(errno.ENOSPC, "No space left on device", *map(str, args[:1] if call == "os.replace" else ()))

    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="No space") as caught:
        write_bytes(path, b"new")
    assert caught.value.filename == str(path)
    assert names(tmp_path) == (["file"] if existing else []) and (not existing or path.read_bytes() == b"old")


def test_an_interrupted_block_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["file"] and path.read_bytes() == b"old"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path, contents, seen = tmp_path / "file", [b"a" * 300_000, b"b" * 500_000], set()
    write_bytes(path, contents[0])
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        write_bytes(path, contents[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_the_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace"]


def test_links_are_followed_and_devices_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "folder/file")
    write_bytes(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder/file").read_bytes() == b"x"
    write_bytes(os.devnull, b"x")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(OSError, match="No space") as caught:
        write_bytes("/dev/full", b"x")
    assert caught.value.filename == "/dev/full"


def test_a_path_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OSError, match="file") as caught:
        write_bytes(tmp_path / "file/new", b"x")
    assert str(tmp_path / "file") in str(caught.value.filename) and (tmp_path / "file").read_bytes() == b"kept"


def test_lines_of_concurrent_writers_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    lines = [bytes([letter]) * 5_000 for letter in b"abcd"]
    writers = [threading.Thread(target=lambda line=line: [append_line(path, line) for _ in range(20)]) for line in lines]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.read_bytes().splitlines()) == sorted(lines * 20)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:3]))
    with pytest.raises(OSError, match="No space") as caught:
        append_line(path, b"a long line")
    assert caught.value.filename == str(path)
