"""Scores of predictions by the protocol of their dataset's benchmark, see `evaluation.protocols`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.store import read_card
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.protocols import DEFAULT_PROTOCOL, PROTOCOLS, Protocol, protocol_of
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.evaluation.video import evaluate_pngs, evaluate_selections
from rvos_select.merging.merge import check_masks_of
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions

__all__ = [
    "PROTOCOLS",
    "Scope",
    "annotator_rows",
    "benchmark_pngs",
    "benchmark_selections",
    "evaluate_pngs",
    "evaluate_selections",
    "protocol_of",
]


def benchmark_pngs(
    dataset: str, root: Path, split: str, predictions: Path, options: Mapping[str, Any], scope: Scope = WHOLE
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png` by the dataset's own protocol.

    options: those of the protocol that the caller gave. Raises InputError also for one that the protocol does not have.
    """
    protocol = protocol_of(dataset)
    protocol.check_options(options, dataset)
    _check_also(protocol, scope, dataset)
    _check_texts(scope, {(dataset, split)})
    check_masks_of(predictions, dataset, split)
    scores: dict[str, Any] = protocol.evaluator("evaluate_pngs")(dataset, root, split, predictions, scope=scope, **options)
    return scores


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
    cards = TrackSource(caches).cards
    names = sorted({card.dataset for card in cards}) if dataset is None else [dataset]
    protocols = [protocol_of(name) for name in names]
    if any(protocol != protocols[0] for protocol in protocols):
        raise InputError(f"{caches[0]}: caches of {', '.join(names)}, which have different protocols; evaluate one at a time")
    protocols[0].check_options(options, names[0])
    _check_also(protocols[0], scope, names[0])
    _check_texts(scope, {(card.dataset, card.split) for card in cards})
    evaluate = protocols[0].evaluator("evaluate_selections")
    scores: dict[str, Any] = evaluate(
        selections, caches, dataset=dataset, root=root, split=split, policy=policy, scope=scope, **options
    )
    return scores


def _check_also(protocol: Protocol, scope: Scope, dataset: str) -> None:
    if scope.also and protocol != DEFAULT_PROTOCOL:
        raise InputError(f"--also {scope.also[0]} is of whole videos; {dataset} is scored by frames or objects: leave it out")


def _check_texts(scope: Scope, scored: set[tuple[str, str]]) -> None:
    """Raises InputError for words of another split than those that are scored."""
    for path in scope.texts:
        card = read_card(path)
        if (card.dataset, card.split) not in scored:
            listed = ", ".join(" ".join(pair) for pair in sorted(scored))
            raise InputError(f"{path}: words of {card.dataset} {card.split}, scored is {listed}; give --text of that split")


def annotator_rows(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a table of Ref-DAVIS17's scores: those of each annotator with its objects; none where there is but one."""
    rows = scores.get("annotators", {})
    objects = {a: {k: v for k, v in scores["objects"].items() if k.split("/")[1] == a} for a in rows}
    return {f"annotator {a}": {**row, "objects": objects[a]} for a, row in rows.items()} if len(rows) > 1 else {}
