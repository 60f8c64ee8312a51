"""Runs a row: its commands one after another, in this process, and the record of its scores."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipelines.rows.check import check_row
from pipelines.rows.needs import Places
from pipelines.rows.papers import Paper, Row
from pipelines.rows.rates import measured
from pipelines.rows.results import Record, add_scores, definition_of, read_record, record_path, scores_of, zips_of
from pipelines.rows.steps import Step, steps_of


def run_row(paper: Paper, name: str, row: Row, places: Places, seeds: Sequence[int] = (0,)) -> Record:
    """Do everything that is left of a row, and add its scores to its record.

    Every command goes on where it was stopped. Raises InputError for a row that cannot be run here, and for a dataset or weights
    that are missing, or a setting that is none, before anything runs.
    """
    check_row(paper, name, row, places, len(seeds))
    before, definition = len(read_record(name, places).scores), definition_of(paper, row)
    for seed in seeds:
        steps = steps_of(paper, name, row, places, seed)
        for number, step in enumerate(steps, 1):
            click.echo(f"[{number}/{len(steps)}] {step.line()}")
            with measured(step, places):
                call(step)
        settings = (seed, places.changes, definition)
        record = add_scores(name, places, list(scores_of(steps, *settings)), list(zips_of(steps, *settings)))
        if len(record.scores) < before:
            click.echo(f"{record_path(name, places)}: scores with other settings are not kept")
        before = len(record.scores)
    return record


def call(step: Step) -> None:
    """Run one command in this process, as its program does."""
    from rvos_cache.cli import cli as rvos_cache
    from rvos_select.cli import cli as rvos_select

    program = {"rvos-cache": rvos_cache, "rvos-select": rvos_select}[step.program]
    program.main(list(step.words), prog_name=step.program, standalone_mode=False)
