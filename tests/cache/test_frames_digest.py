"""The digest of a video's frames: their bytes and their order, nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rvos_cache.datasets.digest import frames_digest
from rvos_cache.errors import InputError


def write(folder: Path, *contents: bytes, names: str = "abc") -> list[Path]:
    folder.mkdir()
    paths = [folder / name for name in names[: len(contents)]]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    return paths


def test_it_is_the_digest_of_the_digests_of_the_files(tmp_path: Path) -> None:
    def blake(content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=16).digest()

    paths = write(tmp_path / "a", b"one", b"", b"x" * 3_000_000)
    assert frames_digest(paths) == blake(blake(b"one") + blake(b"") + blake(b"x" * 3_000_000)).hex()


def test_names_folders_and_times_do_not_count(tmp_path: Path) -> None:
    paths, copies = write(tmp_path / "a", b"1", b"2"), write(tmp_path / "b", b"1", b"2", names="xyz")
    os.utime(copies[0], (0, 0))
    assert frames_digest(paths) == frames_digest(copies)


def test_every_byte_the_order_and_the_ends_of_the_files_count(tmp_path: Path) -> None:
    contents = [(b"ab", b"c"), (b"a", b"bc"), (b"c", b"ab"), (b"abc",), (b"ab", b"c", b""), (b"ab", b"d"), ()]
    digests = {frames_digest(write(tmp_path / str(i), *parts)) for i, parts in enumerate(contents)}
    assert len(digests) == len(contents)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'none'}: the frames cannot be read"):
        frames_digest([tmp_path / "none"])
