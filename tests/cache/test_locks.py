"""One writer per folder: who is refused, what a killed process leaves, and processes that start together."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from rvos_cache.errors import InputError
from rvos_cache.system.locks import LOCK, folder_lock, is_unwritten

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, locked: Event, release: Event) -> None:
    with folder_lock(folder, "train"):
        locked.set()
        release.wait(60)


@pytest.fixture
def events() -> tuple[Event, Event]:
    return FORK.Event(), FORK.Event()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path, events: tuple[Event, Event]) -> None:
    locked, release = events
    process = FORK.Process(target=hold, args=(tmp_path / "run", locked, release))
    process.start()
    assert locked.wait(60)
    owner = f"train, process {process.pid} on {socket.gethostname()} since "
    with pytest.raises(InputError, match="another process is writing there") as error, folder_lock(tmp_path / "run", "merge"):
        pass
    assert str(error.value).startswith(f"{tmp_path / 'run'}: ") and owner in str(error.value) and "\n" not in str(error.value)
    release.set()
    process.join(60)
    with folder_lock(tmp_path / "run", "merge"):
        assert "merge" in (tmp_path / "run" / LOCK).read_text()


def test_threads_of_one_process_are_refused_too(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "a"), pytest.raises(InputError, match=rf"\(a, process {os.getpid()} "), folder_lock(tmp_path, "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_blocks_nobody(tmp_path: Path, events: tuple[Event, Event]) -> None:
    locked, release = events
    process = FORK.Process(target=hold, args=(tmp_path, locked, release))
    process.start()
    assert locked.wait(60) and process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK] and is_unwritten(tmp_path)
    with folder_lock(tmp_path, "next"):
        assert "next" in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def child_outlives(folder: Path, locked: Event, release: Event) -> None:
    with folder_lock(folder, "train"):
        FORK.Process(target=release.wait, args=(60,)).start()
        locked.set()
        time.sleep(60)


def test_a_forked_child_of_a_killed_process_blocks_nobody(tmp_path: Path, events: tuple[Event, Event]) -> None:
    locked, release = events
    process = FORK.Process(target=child_outlives, args=(tmp_path, locked, release))
    process.start()
    assert locked.wait(60) and process.pid
    os.kill(process.pid, signal.SIGKILL)
    # With a time limit it would wait for the grandchild.
    process.join()
    try:
        with folder_lock(tmp_path, "next"):
            pass
    finally:
        release.set()


def test_folders_that_stay_empty_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), folder_lock(tmp_path / "a/b", "train"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "a/b", "train"):
        (tmp_path / "a/b/file").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    with folder_lock(tmp_path / "empty", "train"):
        pass
    assert (tmp_path / "empty").is_dir()


def count_up(folder: Path, times: int) -> None:
    done = 0
    while done < times:
        try:
            with folder_lock(folder, "count"):
                number = int((folder / "number").read_text())
                time.sleep(0.0005)
                (folder / "number").write_text(str(number + 1))
                done += 1
        except InputError:
            time.sleep(0.0002)


def test_no_two_processes_are_ever_inside(tmp_path: Path) -> None:
    """Also while the file is removed and made again: every addition to a number that is read and written is there."""
    (tmp_path / "number").write_text("0")
    processes = [FORK.Process(target=count_up, args=(tmp_path, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert (tmp_path / "number").read_text() == "200"


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="this file system has no locks"), folder_lock(tmp_path, "train"):
        (tmp_path / "file").touch()
    assert (tmp_path / "file").exists()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(OSError, match="file"), folder_lock(folder, "train"):
            pass
    assert (tmp_path / "file").read_text() == "kept"
