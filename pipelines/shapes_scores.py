"""The table of the pages of moving shapes: J&F by what a sentence needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {"static": "appearance", "mixed": "appearance and motion", "motion": "motion alone", "none": "no target"}
"""Kind of a sentence -> what it needs; the kinds of `rvos_cache.shapes.language.Sentence`."""


def show_kinds(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Print J&F in percent by what a sentence needs; return title -> kind -> J&F, in fractions of 1."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(scores.values()))["kinds"]
    kinds = [kind for kind in KINDS if kind in first]
    table = Table("J&F of", *(f"{KINDS[kind]} ({first[kind]['count']})" for kind in kinds))
    table.columns[0].no_wrap = True
    out = {}
    for name, row in scores.items():
        out[name] = {kind: float(row["kinds"][kind]["jf"]) for kind in kinds}
        table.add_row(name, *(f"{100 * value:.1f}" for value in out[name].values()))
    Console().print(table)
    return out
