"""Whether a row can be run: what it needs is there, and every setting that it or the user gives exists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.rows.needs import Need, Places, choices_of, named_upstream, needs_of, weights_of
from pipelines.rows.papers import PAGES, PLACEHOLDER, Paper, Row, TrackerChoice
from rvos_cache.errors import InputError
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.text import encoder_class
from rvos_cache.trackers import tracker_class
from rvos_cache.trackers.referdino.tune_settings import tune_settings


def check_row(paper: Paper, name: str, row: Row, places: Places, seeds: int = 1) -> None:
    """Raises InputError for a row that cannot be run here, whose datasets or weights are missing, or with an option that is none.

    seeds: how many seeds it is run with.
    """
    check_options(paper, name, row, places, seeds)
    _check_needs(name, needs_of(paper, row, places))


def _check_needs(name: str, needs: Iterable[Need]) -> None:
    absent = [need for need in needs if need.present is False]
    if absent:
        need, others = absent[0], ", ".join(need.name for need in absent[1:])
        raise InputError(
            f"row {name} needs {need.name}, expected at {need.where}; get it: {need.fetch}; or give {need.option}"
            + (f" (missing too: {others}; python -m pipelines lists where they are published)" if others else "")
        )


def check_options(paper: Paper, name: str, row: Row, places: Places, seeds: int = 1) -> None:
    """Raises InputError for a row that cannot be run here, for a setting that it has not, and for --weights that are not there, before
    anything is extracted."""
    if row.reason:
        raise InputError(f"{paper.path}: row {name} cannot be run here: {row.reason}")
    if row.way in ("import", "select") and (places.overrides or seeds > 1):
        given = f"--set {places.overrides[0]}" if places.overrides else f"--seeds {seeds}"
        raise InputError(f"{given}: row {name} trains nothing; leave it out (--tracker-set has the settings of its trackers)")
    for choice in choices_of(paper, row, places):
        kind = tracker_class(choice.tracker) if isinstance(choice, TrackerChoice) else encoder_class(choice.encoder)
        settings = build(kind.Settings, parse_overrides(_filled(choice.set, places)), f"row {name}, {choice.key}")
        if getattr(settings, "masks", "") == "none":
            raise InputError(f"row {name}, {choice.key}: masks=none has no masks to score; leave it out, or masks=box")
    _check_needs(name, (need for need in weights_of(paper, row, places) if need.name in places.weights))
    if row.way == "tune":
        pairs = _filled([named_upstream(pair, row) for pair in row.tune], places)
        tune_settings(parse_overrides([*pairs, *places.overrides]))
    if row.way == "train":
        _check_training(row.settings, row.set, places, name)
        if row.first:
            first = paper.trainings[row.first]
            _check_training(first.settings, first.set, places, f"{name}, training {row.first}")


def _check_training(settings: str, pairs: Sequence[str], places: Places, location: str) -> None:
    from rvos_select.selectors import selector_class
    from rvos_select.training.settings import TrainSettings

    values = merge(read_toml(PAGES / settings), parse_overrides([*_filled(pairs, places), *places.overrides]))
    resolved = build(TrainSettings, values, f"row {location}")
    build(selector_class(resolved.selector).Config, resolved.config, f"row {location}, config")


def _filled(pairs: Sequence[str], places: Places) -> list[str]:
    """Settings with the places of their weights; the run of a row is none yet."""
    return [places.filled(PLACEHOLDER.sub(lambda m: "run" if m[1] == "run" else m[0], pair)) for pair in pairs]
