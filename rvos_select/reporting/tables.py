"""The table of scores, each row with the measures of its protocol and the number of items that were scored."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rvos_cache.system.counts import counted
from rvos_select.evaluation.protocols import DEFAULT_PROTOCOL, Protocol, protocol_of_scores
from rvos_select.metrics.metric import percent

NAMES = {
    "sola": "SOLA", "mean_cosine": "mean cosine", "all_tracks": "all tracks", "oracle": "oracle (perfect labels)",
    "clip-zero-shot": "CLIP, zero-shot", "clip-zero-shot-several": "CLIP, zero-shot, several tracks",
    "sola_paraphrases": "SOLA, paraphrases", "mean_cosine_paraphrases": "mean cosine, paraphrases",
}  # fmt: skip
"""Titles of rows that pages name shortly."""
KINDS = {
    "static": "appearance suffices", "motion": "motion alone tells the objects apart", "mixed": "appearance and motion are needed",
    "both": "it has cues of appearance and of motion", "neither": "it has no cue", "none": "it names no object",
}  # fmt: skip
"""What the kinds of expressions in the table mean."""
COUNTED = {
    "davis": (
        "Rows of objects are by DAVIS's protocol: in each frame the predictions of an annotator's sentences become one map, where a "
        "pixel belongs to one object, and each object of an annotator counts once. Rows of expressions, and everything below the "
        "table, take the mask of each sentence by itself, so their J&F is another number."
    ),
    "image": (
        "Rows of samples are by the protocol of single frames: a sample is a sentence in a scored frame, and mAP ranks all of its "
        "candidate masks. Rows of expressions, and everything below the table, take the mask that is selected for each sentence."
    ),
}
"""What the rows of a protocol count, where that is not expressions."""


def titled(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """`rows` under the titles that the table shows."""
    return {NAMES.get(name, name): row for name, row in rows.items()}


def counts_expressions(row: Mapping[str, Any]) -> bool:
    """Whether the scores `row` are of expressions, as those below the table."""
    return _protocol(row).name == DEFAULT_PROTOCOL.name


def score_table(rows: Mapping[str, Mapping[str, Any]], note: str = "") -> str:
    """Rows of scores: the fields that a row has, the number of scored items, then the main field for each kind of expressions.

    note: text above the table. A row of published numbers has no items.
    """
    protocols = list(dict.fromkeys(map(_protocol, rows.values())))
    fields = dict.fromkeys(field for protocol in protocols for field in protocol.fields)
    shown = [field for field in fields if any(field.value(row) is not None for row in rows.values())]
    kinds = sorted({kind for row in rows.values() for kind in row.get("kinds", {})})
    titles = [*(field.title for field in shown), *(f"{shown[0].title} {kind}" for kind in kinds), "scored"]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for name, row in rows.items():
        values = [field.value(row) for field in shown]
        values += [shown[0].value(row.get("kinds", {}).get(kind, {})) for kind in kinds]
        cells = "".join(f"<td>{percent(value)}</td>" for value in values)
        lines.append(f'<tr><td>{escape(name)}</td>{cells}<td class="count">{_count(row)}</td></tr>')
    meaning = "; ".join(f"{kind}: {KINDS[kind]}" for kind in kinds if kind in KINDS)
    notes = [f"Kinds of sentences: {meaning}."] if meaning else []
    notes += [COUNTED[protocol.name] for protocol in protocols if protocol.name in COUNTED]
    below = "".join(f'<p class="note">{escape(text)}</p>' for text in notes)
    above = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>Scores, percent</h2>{above}<table><tr><th></th>{head}</tr>{''.join(lines)}</table>{below}"


def _protocol(row: Mapping[str, Any]) -> Protocol:
    return protocol_of_scores(row) or DEFAULT_PROTOCOL


def _count(row: Mapping[str, Any]) -> str:
    """As in "12 expressions"; of published numbers "–"."""
    items = _protocol(row).counted
    return counted(len(row[items]), items.removesuffix("s")) if items in row else "–"
