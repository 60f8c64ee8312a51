"""What the frames of a video are: a digest of the bytes of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from rvos_cache.errors import InputError


def frames_digest(paths: Iterable[Path]) -> str:
    """128 bits of BLAKE2b, as hex, of the contents of files in their order: the frames of a video, or its one film.

    Names, folders and times do not count. Raises InputError if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with open(path, "rb") as file:
                # A digest of each file: where one ends and the next begins counts.
                digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except OSError as error:
            raise InputError(f"{path}: the frames cannot be read ({error.strerror}); copy the file again") from error
    return digest.hexdigest()
