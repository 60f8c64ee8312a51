"""The board: every row of every table, what it needs and costs, the published numbers and ours."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.rows.costs import MEASURED_ON, Cost, cost_of
from pipelines.rows.needs import Need, Places, needs_of
from pipelines.rows.papers import Paper, Row
from pipelines.rows.published import keys_of, titles_of
from pipelines.rows.rates import Rates, device_name, read_rates
from pipelines.rows.results import Output, Record, Score, definition_of, mean_and_deviation, read_record
from pipelines.rows.steps import is_scored_by_server

Entry = dict[str, Any]


def entries(papers: Mapping[str, Paper], places: Places) -> Iterator[Entry]:
    """An entry for each row and tested split, as `--json` prints them."""
    rates = read_rates(places)
    for paper in papers.values():
        for name, row in paper.rows():
            yield from _entries_of(paper, name, row, places, rates)


def _entries_of(paper: Paper, name: str, row: Row, places: Places, rates: Rates) -> Iterator[Entry]:
    needs = [] if row.reason else needs_of(paper, row, places)
    cost = Cost(None, None) if row.reason else cost_of(paper, name, row, places, rates)
    record, definition = read_record(name, places), "" if row.reason else definition_of(paper, row)
    table = paper.tables[name.split(".")[1]]
    for split, published in row.paper.items():
        scores = record.of(split)
        outputs: list[Output] = [*scores, *record.zips(split)]
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
            "changes": list(outputs[0].changes) if outputs else [],
            "roots": _roots(outputs),
            "needs": [need.__dict__ for need in needs],
            "hours": cost.hours,
            "gigabytes": cost.gigabytes,
            "server": is_scored_by_server(split),
            "state": _state(row, record, needs, split, definition),
        }


def _roots(outputs: Sequence[Output]) -> dict[str, str]:
    """Dataset -> the folder that a row was run with."""
    roots: dict[str, str] = {}
    for line in (command for output in outputs for command in output.commands):
        words = shlex.split(line)
        given = dict(zip(words, words[1:]))
        if "--dataset" in given and "--root" in given:
            roots[given["--dataset"]] = given["--root"]
    return roots


def _ours(scores: Sequence[Score], key: str) -> dict[str, float | None] | None:
    mean, deviation = mean_and_deviation(scores, key)
    return None if mean is None else {"mean": mean, "deviation": deviation}


def _state(row: Row, record: Record, needs: Sequence[Need], split: str, definition: str) -> str:
    """One of: not here, scored, old, to be sent, missing, ready. definition: of the row as it is now."""
    if row.reason:
        return f"not here: {row.reason}"
    scores = record.of(split)
    if scores:
        old = any(score.definition not in ("", definition) for score in scores)
        return "old: the row was changed since it was scored; run it again" if old else "scored"
    zips = [zipped for zipped in record.zips(split) if zipped.definition == definition and Path(zipped.source).exists()]
    if zips:
        return f"to be sent: {', '.join(zipped.source + '*' * bool(zipped.changes) for zipped in zips)}"
    absent = [need for need in needs if need.present is False]
    return f"missing: {', '.join(need.name for need in absent)}" if absent else "ready"


def show(rows: Sequence[Entry]) -> None:
    """Print a line for each entry, table by table, and below them what is missing."""
    import click

    for title, own in _by_table(rows).items():
        click.secho(f"\n{title}", bold=True)
        lines = [_cells(entry) for entry in own]
        lines.insert(0, ("row", "split", "paper", "ours", "oracle", "hours", "GB", "state"))
        widths = [max(map(len, column)) for column in zip(*lines)]
        for cells in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        for entry in own:
            if entry["changes"]:
                click.echo(f"* {entry['row']} {entry['split']} was run with {' '.join(entry['changes'])}")
    click.echo("\nJ&F / J / F in percent where no other measure is named; *: with settings that are not the row's.")
    absent = {need["name"]: need for entry in rows for need in entry["needs"] if not need["present"]}
    roots = {name: root for entry in rows for name, root in entry["roots"].items()}
    for need in absent.values():
        status = "missing" if need["present"] is False else "not fetched yet"
        option = shlex.quote(f"{need['name']}={roots.get(need['name'])}")
        ran = f"; a row that ran had --root {option}" if need["name"] in roots and status == "missing" else ""
        click.echo(f"{status}: {need['name']}, at {need['where']}; {need['fetch']}{ran}")
    if absent:
        click.echo("--root DATASET=FOLDER and --weights NAME=PLACE name other places.")
    click.echo(
        f"hours: for the caches and runs that are not there, which rows share; of this machine ({device_name()}) for what ran here, "
        f"else of one {MEASURED_ON}; GB: of those caches; –: not known."
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    costs = ("", "") if entry["state"].startswith("not here") else (_number(entry["hours"]), _number(entry["gigabytes"]))
    oracle = "" if entry["oracle"] is None else _number(entry["oracle"])
    measure = "" if entry["metrics"][0] == "J&F" or not entry["paper"] else f"{entry['metrics'][0]} "
    return entry["row"], entry["split"], measure + numbers(entry["paper"]), ours_text(entry), oracle, *costs, entry["state"]


def _by_table(rows: Sequence[Entry]) -> dict[str, list[Entry]]:
    tables: dict[str, list[Entry]] = {}
    for entry in rows:
        number = entry["row"].split(".")[1].replace("_", " ")
        tables.setdefault(f"{entry['system']}, {number}: {entry['table']}", []).append(entry)
    return tables


def numbers(values: Sequence[float | None]) -> str:
    """As in "48.6 / 45.2 / 52.1"."""
    return " / ".join(map(_number, values)) or "–"


def ours_text(entry: Entry) -> str:
    """Our numbers, with the deviation over seeds, or the interval of one seed, and the date."""
    if not entry["ours"]:
        return ""
    text = numbers([value and value["mean"] for value in entry["ours"]])
    first = entry["ours"][0]
    if first is not None and first["deviation"] is not None:
        text += f" ± {first['deviation']:.1f} ({len(entry['seeds'])} seeds)"
    elif entry["interval"] is not None:
        text += f" [{entry['interval'][0]:.1f} to {entry['interval'][1]:.1f}]"
    return f"{text}{'*' if entry['changes'] else ''}, {entry['date']}, {entry['commit'] or 'no commit'}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
