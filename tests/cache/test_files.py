"""Atomic writes: whole or unchanged, also when a write fails; errors name the file that was asked for."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disks import largest_file

from rvos_cache.errors import InputError
from rvos_cache.system.files import (
    append_line,
    drop_torn_line,
    new_folder,
    read_lines,
    replace_file,
    replace_folder,
    restore,
    write_bytes,
    write_json,
    write_text,
)


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


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, b"first")
    for limit in (6, 10):
        with largest_file(limit), pytest.raises(OSError) as caught:
            append_line(path, b"the second line")
        assert caught.value.filename == str(path) and path.read_bytes() == b"first\n"
    append_line(path, b"second")
    assert read_lines(path) == [b"first", b"second"]


@pytest.mark.parametrize("torn", [b"", b"{", b"x" * 10_000])
@pytest.mark.parametrize("whole", [b"", b"a\n", b"a\nbb\n", b"y" * 5_000 + b"\n"])
def test_half_a_line_at_the_end_is_not_read_and_goes(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    for name, mend in (("append", lambda path: append_line(path, b"new")), ("open", drop_torn_line)):
        path = tmp_path / name
        path.write_bytes(whole + torn)
        assert read_lines(path) == whole.split(b"\n")[:-1]
        mend(path)
        assert path.read_bytes() == (whole + b"new\n" if name == "append" else whole)
    drop_torn_line(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_that_need_not_be_durable_are_whole_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("synced"))
    with largest_file(5), pytest.raises(OSError):
        write_bytes(tmp_path / "file", b"too long", durable=False)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"
    write_bytes(tmp_path / "file", b"new", durable=False)
    assert (tmp_path / "file").read_bytes() == b"new"


def fill(folder: Path, text: str) -> None:
    (folder / "part").mkdir()
    (folder / "part/file").write_text(text)
    (folder / "other").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [new_folder, replace_folder])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target, whole = tmp_path / "a/target", {"part/file": "text", "other": "text"}
    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)), make(target) as folder:  # type: ignore[attr-defined]  # noqa: PT012
            fill(folder, "text")
            raise error
        assert names(tmp_path / "a") == []
    with make(target) as folder:  # type: ignore[attr-defined]
        fill(folder, "text")
        assert not target.exists()
    assert names(tmp_path / "a") == ["target"] and content(target) == whole


def test_a_new_folder_replaces_nothing(tmp_path: Path) -> None:
    """Not even what another process has made in the meantime; an empty folder is nothing."""
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        fill(folder, "text")
    for other in ("folder", "file"):
        with pytest.raises(InputError, match=f"{other}: another process"), new_folder(tmp_path / other) as folder:  # noqa: PT012
            fill(folder, "mine")
            if other == "file":
                (tmp_path / other).write_text("theirs")
            else:
                (tmp_path / other).mkdir()
                (tmp_path / other / "file").write_text("theirs")
    assert content(tmp_path / "folder") == {"file": "theirs"} and (tmp_path / "file").read_text() == "theirs"
    assert names(tmp_path) == ["empty", "file", "folder"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    for text in ("old", "new"):
        with replace_folder(target) as folder:
            fill(folder, text)
        assert names(tmp_path) == ["target"] and set(content(target).values()) == {text}
    rename, calls = os.rename, list[Path]()

    def refuse_second(source: Path, to: Path) -> None:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse_second)
    with pytest.raises(OSError) as caught, replace_folder(target) as folder:
        fill(folder, "newest")
    assert caught.value.filename == str(target)
    assert len(calls) == 3 and names(tmp_path) == ["target"] and set(content(target).values()) == {"new"}


def test_a_kill_at_any_write_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    """Before each fsync, rename and removal of `replace_folder`; then `restore` leaves nothing else."""

    def replace_and_die(target: Path, call: int) -> None:
        calls = [0]
        for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree")):
            function = getattr(module, name)

            def counted(*arguments: object, function: Callable[..., object] = function, **named: object) -> object:
                calls[0] += 1
                if calls[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)

            setattr(module, name, counted)
        with replace_folder(target) as folder:
            fill(folder, "new")

    texts = []
    for call in range(1, 40):
        target = tmp_path / str(call) / "target"
        with replace_folder(target) as folder:
            fill(folder, "old")
        process = multiprocessing.get_context("fork").Process(target=replace_and_die, args=(target, call))
        process.start()
        process.join(60)
        restore(target)
        assert names(target.parent) == ["target"]
        (text,) = set(content(target).values())
        assert len(content(target)) == 2
        texts.append(text)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and texts == sorted(texts, reverse=True) and {*texts} == {"old", "new"} and len(texts) > 8
