"""What differs between two settings, cards or records, by the name of each value: messages print no whole dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A value that differs. name: with dots and indices, `extra.tracks[0].settings.seed`; old, new: None where it is absent."""

    name: str
    old: Any
    new: Any


def differences(old: Any, new: Any, name: str = "") -> Iterator[Difference]:
    """Every value that differs, sorted by name. Mappings, and lists of mappings, are compared by their entries."""
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        if not isinstance(old, Mapping | None) or not isinstance(new, Mapping | None):
            yield Difference(name, old, new)
            return
        old, new = old or {}, new or {}
        for key in sorted(old.keys() | new.keys(), key=str):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif _is_records(old) and _is_records(new) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from differences(a, b, f"{name}[{i}]")
    elif _is_records(old) or _is_records(new):
        if old != new:
            yield Difference(f"length of {name}", len(old or ()), len(new or ()))
    elif old != new:
        yield Difference(name, old, new)


def first_difference(old: Any, new: Any, name: str = "") -> Difference:
    """The first of `differences` between two values that are not equal."""
    return next(differences(old, new, name), Difference(name, old, new))


def _is_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)
