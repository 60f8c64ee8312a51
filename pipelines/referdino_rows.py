"""The rows of ReferDINO's tables for its pages: the ways to each, and the published numbers of each way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.rows.needs import Places
from pipelines.rows.papers import PAGES, Row, read_paper
from pipelines.rows.published import named, paper_row
from rvos_cache.errors import InputError, warn_once
from rvos_cache.settings import parse_overrides
from rvos_cache.system.text_files import read_text
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.referdino.upstream import read_record, recorded_settings, steps_of, tuned_settings

if TYPE_CHECKING:
    from pipelines.referdino_models import Models

PAPER = PAGES / "papers/referdino.toml"
SYSTEM = "referdino"
IMPORTED_UPSTREAM = "upstream"
"""Folder of the run that `rvos-select import-referdino` writes, with GroundingDINO and ReferDINO's head."""
WAYS = {
    "import": "the weights of --imported",
    "tune": "live training of the upstream, which takes hours to days",
    "cached": "stage two alone on a frozen upstream",
    "baseline": "Grounded-SAM 2, of which nothing is trained",
}
"""The ways of papers/referdino.toml to reach a row, and what each runs."""
GROUNDING = "grounding_checkpoint="
TESTED = {
    "mevis": "mevis/valid", "ref-youtube-vos": "ref-youtube-vos/valid", "ref-davis17": "ref-davis17/valid",
    "a2d-sentences": "a2d-sentences/test-frames", "jhmdb-sentences": "jhmdb-sentences/test-frames",
}  # fmt: skip
"""Dataset -> the split of its published numbers."""
RESIZED = {"a2d-sentences": "image"}
"""`resizing` of the tracker for what was trained on a dataset, if it is not video."""
RELEASES = {
    "mevis": "mevis", "ryt": "ref-youtube-vos", "ytvos": "ref-youtube-vos", "davis": "ref-davis17", "a2d": "a2d-sentences",
    "jhmdb": "jhmdb-sentences", "coco": "refcoco",
}  # fmt: skip
"""Begin of a released file's name -> the dataset that it was trained on."""
WIDTHS = {"tiny": 96, "base": 128}
"""End of the name of a GroundingDINO -> channels of its Swin's first stage."""
ABLATED = ("mask_head", "text_ca", "deform_ca", "tracker", "temporal_layers", "keep_ratio", "prune_score")
"""Settings of `tune-referdino` by which rows differ."""


def all_rows() -> dict[str, dict[str, Any]]:
    """Row `<table>.<row>` -> what the pages read of it, of each row that is not a further way to another.

    "paper": dataset/split -> the published numbers; with "reason" there is no more. Else "reach": its ways, "upstream": the
    GroundingDINO of tune and cached, "set": settings of stage two, "tune", "tracker": settings of tune-referdino and of the tracker.
    """
    rows = {whole.partition(".")[2]: row for whole, row in read_paper(PAPER).rows()}
    further = {further_name(name, way) for name, row in rows.items() for way in row.reach[1:]}
    return {name: _values(rows, name) for name in rows if name not in further}


def further_name(row: str, way: str) -> str:
    """The name of a row that is reached by another way than its first, as on the board."""
    return f"{row}_{way}"


def _values(rows: Mapping[str, Row], name: str) -> dict[str, Any]:
    row = rows[name]
    if row.reason:
        return {"paper": row.paper, "reason": row.reason}
    ways = {way: rows[further_name(name, way) if number else name] for number, way in enumerate(row.reach)}
    upstream = Places().checkpoint(row.upstream)
    values: dict[str, Any] = {"paper": row.paper, "reach": list(row.reach), "upstream": upstream, "set": []}
    if "cached" in ways:
        values["set"] = list(ways["cached"].set)
    if "tune" in ways:
        values["tune"] = [pair for pair in ways["tune"].tune if not pair.startswith(("preset=", "checkpoint="))]
        values["preset"] = next(pair for pair in ways["tune"].tune if pair.startswith("preset="))
    # The page of single frames sets their size itself.
    pairs = dict.fromkeys(text.partition(".")[2] for text in row.tracker_set)
    values["tracker"] = [pair for pair in pairs if not pair.startswith("resizing=")]
    if "baseline" in ways:
        values["tracker"] = [f"{GROUNDING}{upstream}", "prompt_every=100000"]
    return values


def published_row(row: str, benchmark: str, models: Models) -> dict[str, Any]:
    """The row `<table>.<row>` of the paper, see `all_rows`, with the way that `models` asks for.

    row: also as the board names it, with the system and with a further way. Added are "way", "name": that of its folder, another one
    for each way, and "scores": the published numbers on `benchmark`, [J&F, J, F] or [mAP, overall IoU, mean IoU]; stage two alone
    ("cached") has none. Raises InputError when the dataset `benchmark` has no such row, or it cannot be run here.
    """
    rows = all_rows()
    given, row = row, row.removeprefix(f"{SYSTEM}.")
    further = {further_name(name, way): (name, way) for name, values in rows.items() for way in values.get("reach", ())[1:]}
    if row in further:
        row, way = further[row]
        if models.imported is not None or models.way not in (None, way):
            other = "--imported" if models.imported is not None else f"--way {models.way}"
            raise InputError(f"--row {given}: is the row {row!r} by --way {way}; leave {other} out")
        models = replace(models, way=way)
    possible = [name for name, values in rows.items() if "reach" in values and scores(values, benchmark) is not None]
    if row in rows and "reason" in rows[row]:
        raise InputError(f"{PAPER}: the row {row!r} is not trained here: {rows[row]['reason']}")
    if row not in possible:
        raise InputError(f"{PAPER}: no row {row!r} of {benchmark}; there are: {', '.join(possible)}")
    values, reach = rows[row], rows[row]["reach"]
    way = models.way_of(values)
    if way == "import":
        _check_imported(row, values, models)
        values = {**values, "origin": _check_origin(row, values, models, benchmark)}
    elif way not in reach:
        others = [name for name in possible if way in rows[name]["reach"]]
        raise InputError(
            f"{PAPER}: the row {row!r} is not reached by --way {way}, but by {_options(reach)}; rows by --way {way}: "
            f"{', '.join(others)}"
        )
    if models.tuning and way != "tune":
        instead = "; or give --way tune" if "tune" in reach else ""
        raise InputError(
            f"--tune-set {models.tuning[0]}: the row {row!r} is reached by {_options([way])}, which tunes nothing; leave it out"
            f"{instead}"
        )
    paper = {split: [] for split in values["paper"]} if way == "cached" else values["paper"]
    name = row if way == reach[0] else further_name(row, way)
    published = {**values, "paper": paper, "way": way, "name": name}
    published["scores"] = scores(published, benchmark)
    models.check_checkpoint_options(published)
    return published


def _check_imported(row: str, values: dict[str, Any], models: Models) -> None:
    """Raises InputError where --imported is no run that reaches the row: released weights, or a run that was tuned as the row is."""
    assert models.imported is not None
    folder = models.imported / IMPORTED_UPSTREAM
    # A run of one's own tuning reaches a row that is tuned.
    if "tune" not in values["reach"]:
        if "import" in values["reach"]:
            return
        raise InputError(f"{PAPER}: no weights of the row {row!r} were released; leave --imported out")
    recorded = recorded_settings(folder)
    if not recorded:
        if "import" in values["reach"]:
            return
        raise InputError(
            f"{PAPER}: no weights of the row {row!r} were released, and {models.imported} was not tuned here; give --imported a run "
            "of your own tuning, or --way tune in its place"
        )
    tuned = tune_settings(parse_overrides([values["preset"], *values["tune"]])).model_dump()
    other = [name for name in ABLATED if name in recorded and recorded[name] != tuned[name]]
    if other:
        name = other[0]
        raise InputError(
            f"{models.imported}: was tuned with {name}={recorded[name]}, the row {row!r} with {name}={tuned[name]}; give a run that "
            "was tuned so, or another --row"
        )


def _check_origin(row: str, values: dict[str, Any], models: Models, benchmark: str) -> str:
    """What the imported weights were trained on, as text. Raises InputError where that is not what the row's were, or their size is
    another; warns where it is not known."""
    assert models.imported is not None
    folder = models.imported / IMPORTED_UPSTREAM
    record = read_record(folder)
    source, tuned = str(record.get("source", "")), bool(record.get("settings"))
    dataset = record.get("dataset") if tuned else RELEASES.get(source.partition("_")[0])
    origin = f"tuned on {dataset} {record.get('split')}" if tuned and dataset else source or "weights of unknown origin"
    if steps := steps_of(record):
        origin += f" to step {steps[0]} of {steps[1]}"
    start, of_row = f"{models.imported}: {origin}", f"the row {row!r}"
    give = "give a run of such weights, or another row or page"
    is_single, wants_single = (
        resizing == "image" for resizing in (tuned_settings(folder).get("resizing"), RESIZED.get(benchmark))
    )
    if dataset is not None and dataset != benchmark:
        raise InputError(f"{start}: was trained on {dataset}, {of_row} on {benchmark}; {give}")
    if (tuned or "untrained" in record) and is_single != wants_single:
        kinds = ("clips", "single frames")
        raise InputError(f"{start}: was trained on {kinds[is_single]}, {of_row} on {kinds[wants_single]}; {give}")
    unknown = [] if dataset else [f"it is not known what it was trained on, {of_row} on {benchmark}"]
    width, expected = _width(folder), next((n for end, n in WIDTHS.items() if values["upstream"].endswith(end)), None)
    if width is not None and expected is not None and width != expected:
        other = f"its Swin has {width} channels, that of {of_row} {expected} ({Path(values['upstream']).name})"
        if width in WIDTHS.values():
            raise InputError(f"{start}: {other}; {give}")
        unknown.append(other)
    if unknown:
        warn_once(f"{start}: {'; '.join(unknown)}: its scores are not those of the row")
    return origin


def _width(folder: Path) -> int | None:
    """Channels of the first stage of Swin of the GroundingDINO in `folder`; None where it cannot be read, which its loader tells."""
    try:
        width = json.loads(read_text(folder / "config.json"))["backbone_config"].get("embed_dim", WIDTHS["tiny"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return width if isinstance(width, int) else None


def _options(ways: list[str]) -> str:
    return ", ".join("--imported RUN" if way == "import" else f"--way {way}" for way in ways)


def scores(values: dict[str, Any], benchmark: str) -> list[float] | None:
    """The published scores of a row on a dataset; None where it is not tested there."""
    tested: list[float] | None = values["paper"].get(TESTED[benchmark])
    return tested


def way_line(published: dict[str, Any]) -> str:
    """What a page prints first: the row and the way that it takes, as in "row table_2.referdino_t by --way tune: live training …"."""
    other = [way for way in published["reach"] if way != published["way"]]
    more = f" (other ways: {_options(other)})" if other else ""
    origin = f", {published['origin']}" if published.get("origin") else ""
    return f"row {published['name']}, by {_options([published['way']])}: {WAYS[published['way']]}{origin}{more}"


def paper_rows(benchmark: str, values: list[float]) -> dict[str, dict[str, float]]:
    """The published numbers as a row of a report, see `paper_row`; none of a way that has no number."""
    return paper_row(TESTED[benchmark], values)


def published_scores(benchmark: str, values: list[float]) -> str:
    """As in "the paper: mevis/valid J&F 48.0, J 43.6, F 52.3"; of a way that has no number, that."""
    tested = TESTED[benchmark]
    return (
        f"the paper: {tested} {named(tested, values)}" if values else f"the paper: {tested} has no published number of this way"
    )
