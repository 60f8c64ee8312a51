"""Two tables of scores of the same expressions: how far apart they are, how sure that is, and which expressions moved.

Expressions of one video share its tracks and its difficulty, so the videos are resampled and not the expressions (a cluster
bootstrap, percentile interval; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8.6 and 13.3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError

RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0
MOVED = 10
"""Expressions listed each way."""
MEASURES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("video", "davis-unsupervised", "davis-strict"), ("jf", "j", "f")),
    "image": ("iou",),
}
"""Protocol -> what is compared, first what the movers are sorted by. DAVIS scores objects, each a row as an expression is."""
DRAWN = 1 << 20
"""Numbers drawn at a time, which bounds the memory."""


def compare(first: Path, second: Path, allow_missing: bool = False, seed: int = SEED) -> dict[str, Any]:
    """How far `second` is above `first`, files that `evaluate --json` wrote; fractions of 1.

    {"protocol", "videos", "expressions", <measure>: {"a", "b", "difference", "interval"}, "up", "down", "only_a", "only_b"}:
    means over the common expressions (of A2D and JHMDB weighed by their frames), their difference b - a, its 95 % interval over
    resampled videos (None where there is but one), and the expressions that gained and lost most. Raises InputError for a file
    that holds no scores, for scores of other datasets, splits or protocols, and, without `allow_missing`, where an expression is
    in one file alone.
    """
    a, b = _read(first), _read(second)
    for name in ("protocol", "dataset", "split"):
        if name in a and name in b and a[name] != b[name]:
            raise InputError(f"{second}: scores of {name} {b[name]}, {first} has {a[name]}; compare scores of the same {name}")
    protocol = str(a.get("protocol", b.get("protocol", "video")))
    if protocol not in MEASURES:
        raise InputError(f"{first}: scores of protocol {protocol}; what can be compared is {', '.join(MEASURES)}")
    rows = [_rows(path, _scored(path, held), protocol) for path, held in ((first, a), (second, b))]
    common = [key for key in rows[0] if key in rows[1]]
    only = [[key for key in own if key not in other] for own, other in (rows, rows[::-1])]
    for path, keys in zip((first, second), only):
        if keys and not allow_missing:
            raise InputError(
                f"{path}: {len(keys)} expressions that the other file lacks, first {keys[0]}; evaluate the same videos, or give "
                "--allow-missing to leave them out"
            )
    if not common:
        raise InputError(f"{second}: no expression is also in {first}; compare scores of the same split")
    return _compared(rows, common, protocol, np.random.default_rng(seed)) | {"only_a": only[0], "only_b": only[1]}


def _compared(rows: list[dict[str, Any]], common: list[str], protocol: str, rng: np.random.Generator) -> dict[str, Any]:
    values = np.array([[row[key][0] for key in common] for row in rows])
    weights = np.array([rows[0][key][1] for key in common], np.float64)
    if not np.array_equal(weights, [rows[1][key][1] for key in common]):
        raise InputError("the two files count other frames of an expression; evaluate both with the same dataset")
    names, video = np.unique([key.partition("/")[0] for key in common], return_inverse=True)
    size = np.bincount(video, weights)
    out: dict[str, Any] = {"protocol": protocol, "videos": len(names), "expressions": len(common)}
    difference = values[1] - values[0]
    sums = np.stack([np.bincount(video, weights * difference[:, i]) for i in range(difference.shape[1])], 1)
    intervals = [None] * len(MEASURES[protocol]) if len(names) < 2 else _intervals(sums, size, rng)
    for i, name in enumerate(MEASURES[protocol]):
        mean = [float(np.average(v[:, i], weights=weights)) for v in values]
        apart = float(np.average(difference[:, i], weights=weights))
        out[name] = {"a": mean[0], "b": mean[1], "difference": apart, "interval": intervals[i]}
    order = np.argsort(difference[:, 0], kind="stable")
    up, down = ([i for i in listed if sign * difference[i, 0] > 0][:MOVED] for sign, listed in ((1, order[::-1]), (-1, order)))
    for name, listed in (("up", up), ("down", down)):
        out[name] = [
            {
                "expression": common[i],
                "a": float(values[0, i, 0]),
                "b": float(values[1, i, 0]),
                "difference": float(difference[i, 0]),
            }
            for i in listed
        ]
    return out


def _intervals(sums: NDArray[Any], size: NDArray[Any], rng: np.random.Generator) -> list[list[float]]:
    """The interval of sum(sums) / sum(size) of each column of `sums` (videos, measures), over resampled videos."""
    found, left = [], RESAMPLES
    while left:
        count = min(left, max(1, DRAWN // len(size)))
        drawn = rng.integers(0, len(size), (count, len(size)))
        found.append(sums[drawn].sum(axis=1) / size[drawn].sum(axis=1)[:, None])
        left -= count
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail], axis=0)
    return [[float(a), float(b)] for a, b in zip(low, high)]


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of scores. Raises InputError."""
    remedy = "give a file that rvos-select evaluate --json wrote"
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no scores but a {type(content).__name__}; {remedy}")
    return content


def _scored(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a file: its expressions, else its objects. Raises InputError."""
    held = content.get("expressions", content.get("objects"))
    if not isinstance(held, dict) or not held:
        raise InputError(f'{path}: holds no scores, wanted {{"expressions": ...}}; give a file that evaluate --json wrote')
    return held


def _rows(path: Path, held: Mapping[str, Any], protocol: str) -> dict[str, tuple[list[float], int]]:
    """Key -> its measures and its weight. Raises InputError for what is no score."""
    out = {}
    for key, row in held.items():
        wanted = ("iou", "count") if protocol == "image" else ("j", "f")
        found: list[Any] = [row.get(name) for name in wanted] if isinstance(row, dict) else [None]
        if not all(type(v) in (int, float) and 0 <= v < float("inf") for v in found) or row.get("count") == 0:
            raise InputError(f"{path}, expression {key}: wanted numbers {', '.join(wanted)}; give what evaluate --json wrote")
        out[key] = ([found[0]], found[1]) if protocol == "image" else ([(found[0] + found[1]) / 2, *found], 1)
    return out
