"""Runs a row: its commands one after another, in this process, and the record of its scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from pipelines.rows.check import check_row
from pipelines.rows.needs import Places, needs_of
from pipelines.rows.papers import Paper, Row
from pipelines.rows.rates import measured
from pipelines.rows.results import Record, add_scores, definition_of, read_record, record_path, scores_of, zips_of
from pipelines.rows.steps import Step, steps_of
from rvos_cache.errors import InputError

CHECKPOINT_OPTION = re.compile(r"--(set \w+=|grounding )FOLDER")
"""How a command names a checkpoint, at the end of an error."""


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
            with naming_weights(paper, row, places), measured(step, places):
                call(step)
        settings = (seed, places.changes, definition)
        record = add_scores(name, places, list(scores_of(steps, *settings)), list(zips_of(steps, *settings)))
        if len(record.scores) < before:
            click.echo(f"{record_path(name, places)}: scores with other settings are not kept")
        before = len(record.scores)
    return record


@contextmanager
def naming_weights(paper: Paper, row: Row, places: Places) -> Iterator[None]:
    """Raises InputError of the block, about a checkpoint, with the option --weights in the place of the command's own."""
    try:
        yield
    except InputError as error:
        message = str(error)
        own = [
            need for need in needs_of(paper, row, places) if need.option.startswith("--weights") and repr(need.where) in message
        ]
        if not own or not CHECKPOINT_OPTION.search(message):
            raise
        raise InputError(CHECKPOINT_OPTION.sub(f"--weights {own[0].name}=FOLDER", message)) from error


def call(step: Step) -> None:
    """Run one command in this process, as its program does."""
    from rvos_cache.cli import cli as rvos_cache
    from rvos_select.cli import cli as rvos_select

    program = {"rvos-cache": rvos_cache, "rvos-select": rvos_select}[step.program]
    program.main(list(step.words), prog_name=step.program, standalone_mode=False)
