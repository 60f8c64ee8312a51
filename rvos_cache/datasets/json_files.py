"""JSON files of datasets: reading, and the error messages for damaged files and for keys that occur twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.system.text_files import read_text


def read_json(path: Path, duplicate_keys: list[str] | None = None) -> Any:
    """Return the content of a JSON file; append the keys that occur twice in one object to `duplicate_keys`.

    Raises InputError: if the file cannot be read or is not JSON.
    """

    def to_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if duplicate_keys is not None and len(content) != len(items):
            keys = [key for key, _ in items]
            duplicate_keys.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return content

    try:
        return json.loads(read_text(path), object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        location = f"{path}, line {error.lineno}, column {error.colno}"
        raise InputError(f"{location}: not JSON ({error.msg}); copy the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the file again") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error


def read_rows(path: Path) -> list[list[Any]]:
    """Return the rows of a JSON file that holds a list of lists.

    Raises InputError: if the file cannot be read, or is not a list of lists; the message names the row.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of rows, got {type(content).__name__}; copy the file again")
    for number, row in enumerate(content, 1):
        if not isinstance(row, list):
            raise InputError(f"{path}, row {number}: expected a list, got {type(row).__name__}; copy the file again")
    return content


def duplicate_key_message(path: Path, key: str) -> str:
    """Return the error message for a key that occurs twice in one object of `path`."""
    return f"{path}: the key {key!r} occurs twice in one object, and the first value is lost; give them different ids"


def check_no_duplicates(path: Path, duplicate_keys: list[str]) -> None:
    """Raise InputError if a key of `path` occurs twice: without the lost value the split would be another split."""
    if duplicate_keys:
        raise InputError(duplicate_key_message(path, duplicate_keys[0]))
