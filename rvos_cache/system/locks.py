"""One writer per folder: a lock of the operating system, which ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.system.files import is_temporary

LOCK = ".lock"
"""The file in a folder that the process writing it has locked; its text names that process. It is removed at the end. One that
a killed process left is not locked: the next writer takes it over."""
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_descriptors: set[int] = set()


@contextmanager
def folder_lock(folder: Path | str, activity: str) -> Iterator[None]:
    """Let no other process write `folder` while the block runs. Missing folders are created, and removed if they stay empty.

    activity: what this process does there, for the message in another one. The lock (flock) holds between all processes of a
    machine, and between machines on file systems that pass locks on: NFS (Linux 2.6.12 or newer, not mounted with
    `local_lock`), Lustre mounted with `flock`, CephFS, GPFS. A file system without locks gives a warning. Raises InputError that
    names the process and the machine if another one has the lock, OSError if the folder cannot be written.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _acquire(folder, activity)
        try:
            yield
        finally:
            # Removed before it is unlocked: a process that opened it in between finds that it has no name any more.
            with suppress(OSError):
                (folder / LOCK).unlink()
            _descriptors.discard(descriptor)
            os.close(descriptor)
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def is_unwritten(folder: Path) -> bool:
    """Whether a folder is empty, but for a lock and what a process left that was killed in its first write."""
    return all(path.name == LOCK or is_temporary(path) for path in folder.iterdir())


def _acquire(folder: Path, activity: str) -> int:
    """The descriptor of the locked file. Raises like `folder_lock`."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
            if _is_named(descriptor, path):
                text = f"{activity}, process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T %Z')}"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, text.encode(), 0)
                _descriptors.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
            raise InputError(
                f"{folder}: another process is writing there ({owner or 'it has just started'}); wait until it ends, or end it, "
                "then run the same command again, or choose another --out"
            ) from error
        if error.errno not in NOT_SUPPORTED:
            raise
        warnings.warn(
            f"{folder}: this file system has no locks ({error.strerror}); make sure that no other process writes there",
            stacklevel=5,
        )


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: the process that had it locked may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    # A forked process would keep the lock after its parent was killed.
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_in_child)
