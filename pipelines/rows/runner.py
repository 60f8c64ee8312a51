"""Runs a row: its commands one after another, in this process, and the record of its scores."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipelines.rows.needs import Places, needs_of
from pipelines.rows.papers import Paper, Row
from pipelines.rows.results import Record, add_scores, scores_of
from pipelines.rows.steps import Step, steps_of
from rvos_cache.errors import InputError


def run_row(paper: Paper, name: str, row: Row, places: Places, seeds: Sequence[int] = (0,)) -> Record:
    """Do everything that is left of a row, and add its scores to its record.

    Every command goes on where it was stopped. Raises InputError for a row that cannot be run here, and for a dataset or weights
    that are missing, before anything runs.
    """
    check_needs(paper, name, row, places)
    record = Record(row=name)
    for seed in seeds:
        steps = steps_of(paper, name, row, places, seed)
        for number, step in enumerate(steps, 1):
            click.echo(f"[{number}/{len(steps)}] {step.line()}")
            call(step)
        record = add_scores(name, places, list(scores_of(steps, seed, places.changes)))
    return record


def check_needs(paper: Paper, name: str, row: Row, places: Places) -> None:
    """Raises InputError for a row that cannot be run here, or whose datasets or weights are missing."""
    if row.reason:
        raise InputError(f"{paper.path}: row {name} cannot be run here: {row.reason}")
    for need in needs_of(paper, row, places):
        if need.found is False:
            raise InputError(f"row {name} needs {need.name}, expected at {need.where}; fetch it from {need.fetch}")


def call(step: Step) -> None:
    """Run one command in this process, as its program does."""
    from rvos_cache.cli import cli as rvos_cache
    from rvos_select.cli import cli as rvos_select

    program = {"rvos-cache": rvos_cache, "rvos-select": rvos_select}[step.program]
    program.main(list(step.words), prog_name=step.program, standalone_mode=False)
