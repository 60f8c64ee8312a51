"""Bytes that vouch for themselves: digests, and JSON files that carry a digest of themselves."""

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
    """JSON with sorted keys and no spaces, so that equal values have equal bytes. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def with_checksum(value: dict[str, Any]) -> bytes:
    """`value` as JSON bytes with a digest of itself under "digest"."""
    return json.dumps({**value, "digest": digest(canonical(value))}, indent=1, ensure_ascii=False).encode() + b"\n"


def read_checked(read: Callable[[], bytes], where: str, remedy: str) -> dict[str, Any]:
    """The JSON object that `with_checksum` wrote. read: its bytes; where, remedy: for the messages.

    Raises InputError when it is missing (then with FileNotFoundError as its cause) or was changed by a single bit.
    """
    try:
        raw = read()
        value = json.loads(raw)
        claimed = value.pop("digest")
    except FileNotFoundError as error:
        raise InputError(f"{where}: not found; {remedy}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: damaged ({type(error).__name__}); {remedy}") from error
    if with_checksum(value) != raw or digest(canonical(value)) != claimed:
        raise InputError(f"{where}: its content does not match its digest; {remedy}")
    return dict(value)
