"""Scores as tables on the terminal, and as JSON files. Titles and columns are those of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rvos_cache.system import files
from rvos_cache.system.counts import counted

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_select.evaluation.protocols import Protocol

WIDEST = 1000
"""Columns of characters."""


def print_table(table: Table) -> None:
    """Print a table as wide as its content, also where the terminal is narrower or there is none: no number and no name is cut."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    Console(width=max(console.width, width)).print(table)


def show_scores(rows: Mapping[str, Mapping[str, Any]], json_path: Path | None, scores: Mapping[str, Any]) -> None:
    """Print a table in percent, and write `scores` as JSON in fractions of 1.

    rows: title -> scores of the same protocol as `scores`; columns that no row has are left out.
    """
    from rich.table import Table

    from rvos_select.evaluation.against import against_line
    from rvos_select.metrics.metric import percent
    from rvos_select.metrics.table import ALSO

    protocol = _protocol(scores)
    candidates = [*protocol.fields, *(field for metrics in ALSO.values() for metric in metrics for field in metric.fields)]
    fields = [field for field in candidates if any(field.value(row) is not None for row in rows.values())]
    table = Table("", *(field.title for field in fields), protocol.counted)
    for name, row in rows.items():
        table.add_row(name, *(percent(field.value(row)) for field in fields), str(len(row[protocol.counted])))
    print_table(table)
    missing = scores.get("missing") or []
    if missing:
        more = ", …" if len(missing) > 5 else ""
        click.echo(f"{len(missing)} missing predictions were scored 0: {', '.join(missing[:5])}{more}", err=True)
    if line := against_line(scores):
        click.echo(line)
    write_json(json_path, scores)


def show_slices(scores: Mapping[str, Any]) -> None:
    """Print the scores of the slices of each attribute in percent, where there are any."""
    from rich.table import Table

    from rvos_select.metrics.metric import percent
    from rvos_select.metrics.table import ALSO

    slices = scores.get("slices", {})
    if not slices:
        return
    titles = {field.key: field.title for metrics in ALSO.values() for metric in metrics for field in metric.fields}
    titles |= _protocol(scores).titles()
    keys = [key for key in next(iter(next(iter(slices.values())).values())) if key != "count"]
    table = Table("slice", "", *(titles[key] for key in keys), "count")
    for attribute, of_attribute in slices.items():
        for name, row in of_attribute.items():
            table.add_row(attribute, name, *(percent(row[key]) for key in keys), str(row["count"]))
    print_table(table)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what `compare` returned, in percent."""
    from rich.markup import escape
    from rich.table import Table

    from rvos_select.metrics.metric import percent

    table = Table("", "A", "B", "B - A", "95 % of resampled videos")
    for field in _protocol(comparison).measure_fields:
        row = comparison[field.key]
        interval = row["interval"] and " to ".join(f"{100 * end:+.2f}" for end in row["interval"])
        difference = f"{100 * row['difference']:+.2f}"
        table.add_row(field.title, percent(row["a"]), percent(row["b"]), difference, interval or "– (one video)")
    print_table(table)
    moved = Table("moved most", "A", "B", "B - A")
    for row in [*comparison["up"], *comparison["down"][::-1]]:
        moved.add_row(escape(row["expression"]), percent(row["a"]), percent(row["b"]), f"{100 * row['difference']:+.1f}")
    if moved.row_count:
        print_table(moved)
    click.echo(f"{counted(comparison['expressions'], 'expression')} of {counted(comparison['videos'], 'video')}")
    for name, keys in (("A", comparison["only_a"]), ("B", comparison["only_b"])):
        if keys:
            click.echo(f"{len(keys)} expressions only in {name}: {', '.join(keys[:5])}", err=True)


def _protocol(scores: Mapping[str, Any]) -> Protocol:
    """The protocol of scores; the default one where they name none that is known."""
    from rvos_select.evaluation.protocols import DEFAULT_PROTOCOL, protocol_of_scores

    return protocol_of_scores(scores) or DEFAULT_PROTOCOL


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Replace the file `path` by `content`; None: nothing. Raises OSError, with the file as it was, when it cannot be written."""
    if path is not None:
        files.write_json(path, content)
