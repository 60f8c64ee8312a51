"""Score predictions as the benchmark of their dataset does. To add a protocol, write a file and its lines in PROTOCOLS.

A protocol is a module with `evaluate_pngs` and `evaluate_selections`, which return a table as JSON holds it ("protocol",
"dataset", "split" and its scores in fractions of 1), and OPTIONS, the settings that only it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.evaluation.video import evaluate_pngs, evaluate_selections
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions

__all__ = [
    "PROTOCOLS",
    "Scope",
    "annotator_rows",
    "benchmark_pngs",
    "benchmark_selections",
    "evaluate_pngs",
    "evaluate_selections",
]

VIDEO, IMAGE = "rvos_select.evaluation.video", "rvos_select.evaluation.image"
PROTOCOLS = {
    "a2d-sentences": IMAGE,
    "jhmdb-sentences": IMAGE,
    "mevis": VIDEO,
    "plain": VIDEO,
    "ref-davis17": "rvos_select.evaluation.ref_davis",
    "ref-youtube-vos": VIDEO,
    "refcoco": IMAGE,
    "refcoco+": IMAGE,
    "refcocog": IMAGE,
}
"""Dataset -> the module of its benchmark's protocol; any other dataset is scored as a video."""


def benchmark_pngs(
    dataset: str, root: Path, split: str, predictions: Path, options: Mapping[str, Any], scope: Scope = WHOLE
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png` by the dataset's own protocol.

    options: settings of the protocol, those that were given. Raises InputError also for one that the protocol does not have.
    """
    return _protocol(dataset, options).evaluate_pngs(dataset, root, split, predictions, scope=scope, **options)


def benchmark_selections(
    selections: Path,
    caches: Sequence[Path],
    options: Mapping[str, Any],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of selections by the protocol of `dataset` (default: the caches'). Raises like `benchmark_pngs`."""
    names = sorted({card.dataset for card in TrackSource(caches).cards}) if dataset is None else [dataset]
    if len({PROTOCOLS.get(name, VIDEO) for name in names}) > 1:
        raise InputError(f"{caches[0]}: caches of {', '.join(names)}, which are scored in other ways; evaluate one at a time")
    given = {"dataset": dataset, "root": root, "split": split, "policy": policy, "scope": scope}
    return _protocol(names[0], options).evaluate_selections(selections, caches, **given, **options)


def annotator_rows(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a table of Ref-DAVIS17: each annotator's scores and objects; none of what has one annotator or no such thing."""
    held = scores.get("annotators", {})
    objects = {a: {k: v for k, v in scores["objects"].items() if k.split("/")[1] == a} for a in held}
    return {f"annotator {a}": {**row, "objects": objects[a]} for a, row in held.items()} if len(held) > 1 else {}


def _protocol(dataset: str, options: Mapping[str, Any]) -> Any:
    found = import_module(PROTOCOLS.get(dataset, VIDEO))
    foreign = sorted(set(options) - set(found.OPTIONS))
    if foreign:
        name = foreign[0].replace("_", "-")
        raise InputError(f"--{name} is no setting of the scores of {dataset}; leave it out")
    return found
