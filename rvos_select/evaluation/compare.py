"""Compare two files of scores of the same expressions: differences, confidence intervals, and the expressions that differ most.

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
from rvos_cache.system.text_files import read_text
from rvos_select.evaluation.against import check_same_ground_truth
from rvos_select.evaluation.protocols import PROTOCOLS, Protocol, protocol_of_scores
from rvos_select.paths import PathLike

RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0
MOVED = 10
"""Expressions listed each way."""
CHUNK = 1 << 20
"""Random numbers generated at a time, which bounds the memory."""


def compare(first: PathLike, second: PathLike, allow_missing: bool = False, seed: int = SEED) -> dict[str, Any]:
    """How much `second` differs from `first`, files that `evaluate --json` wrote; fractions of 1.

    {"protocol", "videos", "expressions", <measure>: {"a", "b", "difference", "interval"}, "up", "down", "only_a", "only_b"}:
    means over the common expressions (weighted by their frames in the protocol "image"), their difference b - a, its 95 %
    interval over resampled videos (None with one video), and the expressions that gained and lost most. Raises InputError for a
    file without scores, for scores of different datasets, splits or protocols, and, without `allow_missing`, where an expression
    is in one file alone.
    """
    first, second = Path(first), Path(second)
    a, b = _read(first), _read(second)
    for name in ("protocol", "dataset", "split"):
        if name in a and name in b and a[name] != b[name]:
            raise InputError(f"{second}: scores of {name} {b[name]}, {first} has {a[name]}; compare scores of the same {name}")
    check_same_ground_truth(a, b, str(second))
    labelled = a if "protocol" in a else b
    protocol = protocol_of_scores(labelled)
    if protocol is None:
        known = ", ".join(label for known in PROTOCOLS.values() for label in known.labels)
        raise InputError(f"{first}: scores of protocol {labelled['protocol']}; protocols that can be compared: {known}")
    rows = [_rows(path, content, protocol) for path, content in ((first, a), (second, b))]
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
    label = str(labelled.get("protocol", protocol.labels[0]))
    compared = _compared(rows, common, protocol, label, np.random.default_rng(seed))
    return compared | {"only_a": only[0], "only_b": only[1]}


def resampled(path: PathLike, seed: int = SEED) -> dict[str, dict[str, Any]]:
    """Each measure of a file that `evaluate --json` wrote: {<measure>: {"mean", "interval"}}, fractions of 1.

    interval: of 95 %, over resampled videos; None with one video. Raises InputError for a file without scores.
    """
    path = Path(path)
    content = _read(path)
    protocol = protocol_of_scores(content)
    if protocol is None:
        raise InputError(f"{path}: scores of protocol {content['protocol']}, which cannot be resampled")
    rows = _rows(path, content, protocol)
    values, weights = np.array([row[0] for row in rows.values()]), np.array([row[1] for row in rows.values()], np.float64)
    names, video = np.unique([key.partition("/")[0] for key in rows], return_inverse=True)
    sums = np.stack([np.bincount(video, weights * values[:, i]) for i in range(values.shape[1])], 1)
    size = np.bincount(video, weights)
    intervals = [None] * len(sums[0]) if len(names) < 2 else _intervals(sums, size, np.random.default_rng(seed))
    means = np.average(values, axis=0, weights=weights)
    return {
        field.key: {"mean": float(mean), "interval": interval}
        for field, mean, interval in zip(protocol.measure_fields, means, intervals)
    }


def _compared(
    rows: list[dict[str, Any]], common: list[str], protocol: Protocol, label: str, rng: np.random.Generator
) -> dict[str, Any]:
    values = np.array([[of_file[key][0] for key in common] for of_file in rows])
    weights = np.array([rows[0][key][1] for key in common], np.float64)
    if not np.array_equal(weights, [rows[1][key][1] for key in common]):
        raise InputError("the two files count other frames of an expression; evaluate both with the same dataset")
    names, video = np.unique([key.partition("/")[0] for key in common], return_inverse=True)
    size = np.bincount(video, weights)
    compared: dict[str, Any] = {"protocol": label, "videos": len(names), "expressions": len(common)}
    difference = values[1] - values[0]
    sums = np.stack([np.bincount(video, weights * difference[:, i]) for i in range(difference.shape[1])], 1)
    intervals = [None] * difference.shape[1] if len(names) < 2 else _intervals(sums, size, rng)
    for i, field in enumerate(protocol.measure_fields):
        mean_a, mean_b = (float(np.average(of_file[:, i], weights=weights)) for of_file in values)
        mean_difference = float(np.average(difference[:, i], weights=weights))
        compared[field.key] = {"a": mean_a, "b": mean_b, "difference": mean_difference, "interval": intervals[i]}
    order = np.argsort(difference[:, 0], kind="stable")
    for name, sign, ordered in (("up", 1, order[::-1]), ("down", -1, order)):
        compared[name] = [
            {
                "expression": common[i],
                "a": float(values[0, i, 0]),
                "b": float(values[1, i, 0]),
                "difference": float(difference[i, 0]),
            }
            for i in [i for i in ordered if sign * difference[i, 0] > 0][:MOVED]
        ]
    return compared


def _intervals(sums: NDArray[Any], size: NDArray[Any], rng: np.random.Generator) -> list[list[float]]:
    """The interval of sum(sums) / sum(size) of each column of `sums` (videos, measures), over resampled videos."""
    means, left = [], RESAMPLES
    while left:
        count = min(left, max(1, CHUNK // len(size)))
        sampled = rng.integers(0, len(size), (count, len(size)))
        means.append(sums[sampled].sum(axis=1) / size[sampled].sum(axis=1)[:, None])
        left -= count
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return [[float(a), float(b)] for a, b in zip(low, high)]


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of scores. Raises InputError."""
    fix = "give a file that rvos-select evaluate --json wrote"
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {fix}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, no scores; {fix}")
    return content


def _rows(path: Path, content: Mapping[str, Any], protocol: Protocol) -> dict[str, tuple[list[float], int]]:
    """Key -> the measures and the weight of each compared item of a file. Raises InputError for one that lacks them."""
    items = content.get(protocol.compared)
    if not isinstance(items, dict) or not items:
        raise InputError(f'{path}: no scores, expected {{"{protocol.compared}": …}}; give a file that evaluate --json wrote')
    names = [field.key for metric in protocol.metrics for field in metric.item_fields]
    required = [*names, *([protocol.weight] if protocol.weight else [])]
    rows = {}
    for key, row in items.items():
        numbers: list[Any] = [row.get(name) for name in required] if isinstance(row, dict) else [None]
        if not all(type(v) in (int, float) and 0 <= v < float("inf") for v in numbers) or row.get(protocol.weight, 1) == 0:
            raise InputError(f"{path}, expression {key}: expected numbers {', '.join(required)}; give what evaluate --json wrote")
        measures = [value for metric in protocol.metrics for value in metric.measures(row).values()]
        rows[key] = (measures, row[protocol.weight] if protocol.weight else 1)
    return rows
