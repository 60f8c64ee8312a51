"""Atomic writes: a reader finds a file or a folder whole or, after a crash or on a full disk, as it was before.

Every file that the program leaves behind is written by a function of this module, or inside a folder that one of them publishes.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}", re.DOTALL)
"""The names of temporary files and folders: .<name>.<uuid>."""


@contextmanager
def replace_file(path: Path | str, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what the block writes there replaces `path` when the block ends.

    The content is synced to the disk before it replaces `path`, unless `durable` is False: for thousands of small files that can
    be made again, which only a power cut may then damage. Missing parent folders are created. A symbolic link is followed, and
    what is not a regular file (a pipe, /dev/stdout) is written in place. If the block raises, `path` stays as it was and the
    temporary file is removed. Raises OSError with `path` as its file name.
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # An error of a full disk names no file, and the name of the temporary file says nothing to the user.
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path | str, content: bytes, durable: bool = True) -> None:
    """Replace the file `path` by `content` atomically. See `replace_file`."""
    with replace_file(path, durable) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file `path` by `text` in UTF-8 atomically. See `replace_file`."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file `path` by `value` as JSON, indented by one space, atomically. See `replace_file`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_new(path: Path | str, content: bytes) -> None:
    """Write a file that no reader opens before this returns, and sync it. A crash may leave a part. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path | str, line: bytes) -> None:
    """Append `line` and a newline, so that the lines of concurrent writers do not mix, and sync.

    On a full disk the file stays as it was; half a line that a crash left at its end is removed first. Raises OSError.
    """
    content = line + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with _locked(descriptor):
            end = _drop_torn_line(descriptor)
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, end)
                error.filename = str(path)
                raise
    finally:
        os.close(descriptor)


def drop_torn_line(path: Path | str) -> None:
    """Remove half a line that a crash left at the end of a file that `append_line` writes. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        with _locked(descriptor):
            _drop_torn_line(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path | str) -> list[bytes]:
    """The whole lines of a file that `append_line` writes, without half a line at its end. Raises OSError."""
    return Path(path).read_bytes().split(b"\n")[:-1]


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Wait for the other processes that append to the file. A file system without locks has none to wait for."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _drop_torn_line(descriptor: int) -> int:
    """Cut the file after its last newline; returns its length."""
    length = end = os.fstat(descriptor).st_size
    block = b""
    while end and b"\n" not in block:
        start = max(0, end - 4096)
        block = os.pread(descriptor, end - start, start)
        end = start + block.rfind(b"\n") + 1
    if end < length:
        os.ftruncate(descriptor, end)
    return end


@contextmanager
def new_folder(path: Path | str, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, which becomes `path` by one rename when the block ends.

    Everything in it is synced to the disk before, unless `durable` is False (see `replace_file`). An empty folder `path` is
    replaced. If the block raises, nothing is left. Raises InputError if there is something at `path` when the block ends, and
    OSError with `path` as its file name if a write fails.
    """
    target = Path(path)
    with _temporary_folder(target) as temporary:
        yield temporary
        if durable:
            sync_folder(temporary)
        try:
            os.rename(temporary, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and target.exists():
                raise InputError(f"{path}: another process has written it in the meantime; choose another --out") from error
            raise
        sync(target.parent)


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, which replaces `path` when the block ends, synced to the disk.

    For a folder that one process writes. If the block raises, `path` stays as it was. A kill leaves `path` whole, or the earlier
    folder as `set_aside(path)`, which `restore` puts back. Raises OSError with `path` as its file name.
    """
    target, old = Path(path), set_aside(path)
    with _temporary_folder(target) as temporary:
        yield temporary
        sync_folder(temporary)
        shutil.rmtree(old, ignore_errors=True)
        try:
            if target.exists():
                os.rename(target, old)
            os.rename(temporary, target)
        finally:
            if old.exists() and not target.exists():
                os.rename(old, target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the content of a folder into `target`. Raises OSError of the first file that fails; `shutil.copytree` loses its reason."""
    for path in (source, *sorted(source.rglob("*"))):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        try:
            shutil.copy2(path, copy)
        except OSError as error:
            # With two file names it is the copy that fails, for example on a full disk.
            if error.filename2 is not None:
                error.filename, error.filename2 = str(copy), None
            raise


def restore(path: Path | str) -> None:
    """Undo what a kill inside `replace_file`, `new_folder` or `replace_folder` left: put the earlier folder back, remove what
    was not complete.

    Only for the one process that writes `path`: what another one is writing would be lost.
    """
    target, old = Path(path), set_aside(path)
    if old.exists() and not target.exists():
        os.rename(old, target)
    for other in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if other == old or is_temporary(other):
            _remove(other)


def is_temporary(path: Path) -> bool:
    """Whether a path is what a kill inside `replace_file`, `new_folder` or `replace_folder` leaves."""
    return TEMPORARY.fullmatch(path.name) is not None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path | str) -> Path:
    """Where `replace_folder` keeps the earlier folder while it replaces it."""
    return Path(path).with_name(f".{Path(path).name}.old")


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    temporary = _temporary(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename, error.filename2 = str(target) + str(error.filename or "").removeprefix(str(temporary)), None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def sync_folder(folder: Path) -> None:
    """Bring every file and folder below `folder` to the disk. Raises OSError."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path | str) -> None:
    """Bring a file, or the names in a folder, to the disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
