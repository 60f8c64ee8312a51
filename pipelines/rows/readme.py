"""The part of pipelines/README.md that is made from the papers' tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.rows.needs import all_needs
from pipelines.rows.papers import PAGES, Paper
from pipelines.rows.published import titles_of
from rvos_cache.errors import InputError
from rvos_cache.system.files import write_text
from rvos_cache.system.text_files import read_text

README = PAGES / "README.md"
START, END = "<!-- made by: python -m pipelines readme -->", "<!-- end -->"


def with_rows(text: str, papers: Mapping[str, Paper]) -> str:
    """`text` with the part between START and END made anew. Raises InputError if it lacks them."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"{README}: has no lines {START!r} and {END!r}; put them where the rows belong")
    lines = "\n".join(_lines(papers))
    return f"{before}{START}\n\n{lines}\n\n{END}{after}"


def write_readme(papers: Mapping[str, Paper], out: Path = README) -> Path:
    """Write pipelines/README.md with its rows made anew to `out`."""
    write_text(out, with_rows(read_text(README), papers))
    return out


def _lines(papers: Mapping[str, Paper]) -> Iterator[str]:
    for paper in papers.values():
        yield from _paper(paper)
    yield "### Weights"
    yield ""
    yield "| name for `--weights` | what | licence, GB | looked for at | where to get it |"
    yield "|---|---|---|---|---|"
    for name, weights in all_needs().weights.items():
        size = f"{weights.gigabytes}" if weights.gigabytes else "not known"
        facts = f"{weights.licence or 'not known'}, {size}"
        yield f"| `{name}` | {weights.what} | {facts} | `{weights.checkpoint}` | {weights.source()} |"


def _paper(paper: Paper) -> Iterator[str]:
    yield f"### {paper.system}"
    yield ""
    title = f"[{paper.title}]({paper.link})" if paper.link else paper.title
    yield f"{title}; rows in [`papers/{paper.path.name}`](papers/{paper.path.name})."
    yield ""
    if paper.choices:
        yield from (f"- {choice}" for choice in paper.choices)
        yield ""
    yield "| row | what | published, percent |"
    yield "|---|---|---|"
    for name, row in paper.rows():
        if row.reason == "another system":
            continue
        title = paper.tables[name.split(".")[1]].title
        what = f"{title}: {row.note}" if row.note else title
        numbers = "; ".join(_numbers(split, values) for split, values in row.paper.items())
        yield f"| `{name}` | {what}{f' (not here: {row.reason})' if row.reason else ''} | {numbers} |"
    yield ""


def _numbers(split: str, values: list[float]) -> str:
    """As in "mevis/valid 48.6 / 45.2 / 52.1"; mAP is named, J&F is not."""
    measure = "" if titles_of(split)[0] == "J&F" else f" {titles_of(split)[0]}"
    return f"{split}{measure} {' / '.join(f'{value:.1f}' for value in values) or '–'}"
