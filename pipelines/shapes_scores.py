"""What the pages of moving shapes share: runs of several settings on the same caches, and their scores by what a sentence needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvos_cache.settings import build
from rvos_cache.system.files import write_json
from rvos_cache.system.progress import print_line
from rvos_cache.system.text_files import read_text
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.reporting import report
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

TRAIN, VALID = "train", "valid_u"
Caches = Mapping[str, Sequence[Path]]
"""Split -> its caches."""

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


def claims_of(split: Path) -> dict[str, str]:
    """ "<video>/<expression>" -> what its sentence says, as `rvos_cache.shapes.language.PHRASES` names it, or "then" for every pair of
    directions; of the sentences of moving shapes in the folder `split` that need motion alone."""
    videos = json.loads(read_text(split / "meta_expressions.json"))["videos"]
    return {
        f"{video}/{number}": "then" if " then " in sentence["claim"] else sentence["claim"]
        for video, values in videos.items()
        for number, sentence in values["expressions"].items()
        if sentence["kind"] == "motion"
    }


def show_claims(scores: Mapping[str, Mapping[str, Any]], claims: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Print J&F in percent by what a sentence says, the commonest first; return title -> claim -> J&F, in fractions of 1.

    claims: as from `claims_of`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("motion alone", "count", *scores)
    table.columns[0].no_wrap = True
    out: dict[str, dict[str, float]] = {name: {} for name in scores}
    for claim, count in Counter(claims.values()).most_common():
        for name, row in scores.items():
            values = [row["expressions"][key] for key, own in claims.items() if own == claim]
            out[name][claim] = sum(value["j"] + value["f"] for value in values) / (2 * count)
        table.add_row(claim, str(count), *(f"{100 * own[claim]:.1f}" for own in out.values()))
    Console().print(table)
    return out


def train_and_predict(
    runs: Mapping[str, Mapping[str, Any]], tracks: Caches, texts: Caches, out: Path, page: Path
) -> dict[str, Path]:
    """Train every run on TRAIN, to `out`/runs; returns its selections on VALID, below `out`/selections.

    runs: name -> settings of training; page: the file that errors name. Runs that were interrupted continue.
    """
    selections = {name: out / f"selections/{name}.zarr" for name in runs}
    for name, values in runs.items():
        run = out / "runs" / name
        print_line(f"train and predict {name}:")
        train(
            tracks[TRAIN],
            texts[TRAIN],
            valid_tracks=tracks[VALID],
            valid_texts=texts[VALID],
            settings=build(TrainSettings, values, str(page)),
            out=run,
            resume=run.exists(),
        )
        predict(run, tracks[VALID], texts[VALID], selections[name])
    return selections


def score(
    main: str,
    selections: Mapping[str, Path],
    tracks: Sequence[Path],
    root: Path,
    out: Path,
    titles: Mapping[str, str] = {},
) -> tuple[dict[str, Any], Path]:
    """Print the scores of all selections and of the oracle, in all, by what a sentence needs and by what it says; and write
    `out`/metrics.json and the report of the run `main`.

    titles: name of selections, or "oracle" -> what tables call it, by default its name.
    Returns name -> kind of a sentence -> J&F, in fractions of 1, and the page of the report.
    """
    scores = {name: evaluate_selections(path, tracks, root=root) for name, path in selections.items()}
    scores["oracle"] = oracle(tracks)
    titled = {titles.get(name, name): row for name, row in scores.items()}
    index = report(out / "runs" / main, selections[main], tracks, out / "report", root=root, rows=titled)
    show_scores(titled, None, scores[main])
    kinds = dict(zip(scores, show_kinds(titled).values()))
    totals = {name: {key: row[key] for key in ("j", "f", "jf")} for name, row in scores.items()}
    claims = dict(zip(scores, show_claims(titled, claims_of(root / VALID)).values()))
    write_json(out / "metrics.json", {**totals, "kinds": kinds, "claims": claims})
    return kinds, index
