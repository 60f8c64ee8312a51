"""Names to classes: what makes a tracker, dataset, text encoder or selector one file and one line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rvos_cache.errors import InputError


def resolve(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The class that `table` names, imported now; `package.module:Class` of the user's own works in the same place.

    Raises InputError, listing the table, when there is no such name or the import fails.
    """
    target = table.get(name, name if ":" in name else None)
    if target is None:
        raise InputError(f"no {kind} {name!r}; there are: {', '.join(sorted(table))}, or your own as package.module:Class")
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} {name!r}: {target} cannot be imported ({error})") from error
