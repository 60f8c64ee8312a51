"""`metrics.jsonl` of a run: a JSON line for each epoch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.system.files import read_lines

METRICS = "metrics.jsonl"


def warn_if_unfinished(run: Path, epochs: int) -> None:
    """Warn when a run was stopped before the last of its `epochs`, or still trains."""
    rows = read_metrics(run)
    if rows and rows[-1]["epoch"] < epochs:
        warnings.warn(
            f"{run}: is not finished: epoch {rows[-1]['epoch']} of {epochs}; rvos-select train --resume finishes it", stacklevel=3
        )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `<run>/metrics.jsonl`, one for each epoch, also while the run trains; none without the file.

    Raises InputError that names a damaged line.
    """
    path = run / METRICS
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
            rows[-1]["epoch"] = int(rows[-1]["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: expected JSON with an epoch; remove the line") from error
    return rows
