"""Digests, and JSON files that contain a digest of themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from rvos_cache.errors import InputError


def digest(raw: bytes | memoryview) -> str:
    """128 bits of BLAKE2b, as hex."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Raises ValueError for NaN."""
    return _encoded(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False))


def with_checksum(value: dict[str, Any]) -> bytes:
    """`value` as JSON bytes, with a digest of itself under the key "digest"."""
    return _encoded(json.dumps({**value, "digest": digest(canonical(value))}, indent=1, ensure_ascii=False)) + b"\n"


def _encoded(text: str) -> bytes:
    # A path of bytes that are not UTF-8 (a root, the name in an error) has halves of surrogate pairs; json.loads reads them again.
    return text.encode("utf-8", "surrogatepass")


def read_checked(read: Callable[[], bytes], location: str, how_to_fix: str) -> dict[str, Any]:
    """The JSON object that `with_checksum` wrote. read: returns its bytes; location, how_to_fix: for the messages.

    Raises InputError if the file is missing (FileNotFoundError is then its cause) or if a single bit of it changed.
    """
    try:
        raw = read()
        value = json.loads(raw)
        expected = value.pop("digest")
    except FileNotFoundError as error:
        raise InputError(f"{location}: not found; {how_to_fix}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{location}: damaged ({type(error).__name__}); {how_to_fix}") from error
    if with_checksum(value) != raw or digest(canonical(value)) != expected:
        raise InputError(f"{location}: its content does not match its digest; {how_to_fix}")
    return dict(value)
