"""The board: every row of every table, what it needs and costs, the published numbers and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.rows.costs import MEASURED_ON, Cost, cost_of
from pipelines.rows.needs import Need, Places, needs_of
from pipelines.rows.papers import Paper, Row
from pipelines.rows.published import keys_of, titles_of
from pipelines.rows.results import Score, mean_and_deviation, read_record
from pipelines.rows.steps import is_scored_by_server

Entry = dict[str, Any]


def entries(papers: Mapping[str, Paper], places: Places) -> Iterator[Entry]:
    """An entry for each row and tested split, as `--json` prints them."""
    for paper in papers.values():
        for name, row in paper.rows():
            yield from _entries_of(paper, name, row, places)


def _entries_of(paper: Paper, name: str, row: Row, places: Places) -> Iterator[Entry]:
    needs, cost = ([], Cost(None, None)) if row.reason else (needs_of(paper, row, places), cost_of(paper, name, row, places))
    record = read_record(name, places)
    table = paper.tables[name.split(".")[1]]
    for split, published in row.paper.items():
        scores = record.of(split)
        yield {
            "row": name,
            "system": paper.system,
            "table": table.title,
            "note": row.note,
            "split": split,
            "metrics": list(titles_of(split)),
            "paper": published,
            "ours": [_ours(scores, key) for key in keys_of(split)] if scores else [],
            "seeds": [score.seed for score in scores],
            "interval": scores[0].interval if scores else None,
            "oracle": scores[0].oracle if scores else None,
            "date": scores[-1].date if scores else None,
            "commit": scores[-1].commit if scores else None,
            "changes": list(scores[0].changes) if scores else [],
            "needs": [need.__dict__ for need in needs],
            "hours": cost.hours,
            "gigabytes": cost.gigabytes,
            "server": is_scored_by_server(split),
            "state": _state(row, scores, needs, split, name, places),
        }


def _ours(scores: Sequence[Score], key: str) -> dict[str, float | None] | None:
    if any(key not in score.values for score in scores):
        return None
    mean, deviation = mean_and_deviation(scores, key)
    return {"mean": mean, "deviation": deviation}


def _state(row: Row, scores: Sequence[Score], needs: Sequence[Need], split: str, name: str, places: Places) -> str:
    """One of: not here, scored, to be sent, missing, ready."""
    if row.reason:
        return f"not here: {row.reason}"
    if scores:
        return "scored"
    packed = places.out / name / split.replace("/", "-") / "submission.zip"
    if packed.exists():
        return f"to be sent: {packed}"
    absent = [need for need in needs if need.found is False]
    return f"missing: {', '.join(need.name for need in absent)}" if absent else "ready"


def show(rows: Sequence[Entry]) -> None:
    """Print a line for each entry, table by table, and below them what is missing."""
    import click

    for title, own in _by_table(rows).items():
        click.secho(f"\n{title}", bold=True)
        lines = [_cells(entry) for entry in own]
        lines.insert(0, ("row", "split", " / ".join(own[0]["metrics"]), "ours", "oracle", "hours", "GB", "state"))
        widths = [max(map(len, column)) for column in zip(*lines)]
        for cells in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    click.echo()
    absent = {need["name"]: need for entry in rows for need in entry["needs"] if not need["found"]}
    for need in absent.values():
        status = "missing" if need["found"] is False else "not fetched yet"
        click.echo(f"{status}: {need['name']}, at {need['where']}; {need['fetch']}")
    click.echo(
        f"hours: of one {MEASURED_ON}, for the caches and runs that are not there; –: not known. This machine: {gpu_name()}"
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    costs = ("", "") if entry["state"].startswith("not here") else (_number(entry["hours"]), _number(entry["gigabytes"]))
    oracle = "" if entry["oracle"] is None else _number(entry["oracle"])
    return entry["row"], entry["split"], numbers(entry["paper"]), ours_text(entry), oracle, *costs, entry["state"]


def _by_table(rows: Sequence[Entry]) -> dict[str, list[Entry]]:
    tables: dict[str, list[Entry]] = {}
    for entry in rows:
        number = entry["row"].split(".")[1].replace("_", " ")
        tables.setdefault(f"{entry['system']}, {number}: {entry['table']}", []).append(entry)
    return tables


def numbers(values: Sequence[float]) -> str:
    """As in "48.6 / 45.2 / 52.1"."""
    return " / ".join(f"{value:.1f}" for value in values) or "–"


def ours_text(entry: Entry) -> str:
    """Our numbers, with the deviation over seeds, or the interval of one seed, and the date."""
    if not entry["ours"]:
        return ""
    text = numbers([value["mean"] for value in entry["ours"] if value is not None])
    first = entry["ours"][0]
    if first is not None and first["deviation"] is not None:
        text += f" ± {first['deviation']:.1f} ({len(entry['seeds'])} seeds)"
    elif entry["interval"] is not None:
        text += f" [{entry['interval'][0]:.1f} to {entry['interval'][1]:.1f}]"
    changed = f", changed: {' '.join(entry['changes'])}" if entry["changes"] else ""
    return f"{text}, {entry['date']}, {entry['commit'] or 'no commit'}{changed}"


def gpu_name() -> str:
    """The GPU of this machine, or that there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
