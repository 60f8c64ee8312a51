"""Commands that read and change nothing: check, info, verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from rvos_cache.cli.options import DATASET, PATH, ROOT, SPLIT
from rvos_cache.errors import InputError
from rvos_cache.system.counts import counted


@click.command()
@DATASET
@ROOT
@SPLIT
def check(dataset: str, root: Path, split: str) -> None:
    """Read a whole split and print its faults. Each fault is one line that names its file; exit status 1 if there is any."""
    from rvos_cache.datasets import open_dataset

    source = open_dataset(dataset, root, split)
    faults = 0
    for fault in source.check():
        click.echo(fault)
        faults += 1
    if faults:
        raise InputError(f"{root}, split {split}: faults found: {faults}; fix the files named above")
    videos = source.video_ids()
    expressions = sum(len(source.expressions(v)) for v in videos)
    frames = sum(len(source.video(v)) for v in videos)
    truths = (source.ground_truth(v) for v in videos) if source.has_ground_truth else ()
    objects = sum(len(t.object_ids) for t in truths if t is not None)
    truth = f", {objects} objects" if source.has_ground_truth else ", ground truth hidden"
    click.echo(f"{counted(len(videos), 'video')}, {frames} frames, {counted(expressions, 'expression')}{truth}: no fault")


@click.command()
@click.argument("cache", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(cache: Path, as_json: bool) -> None:
    """Print what a cache contains. Videos done, failed and missing (neither), bytes, card, and one digest of the content."""
    from rich.filesize import decimal

    from rvos_cache.extraction import failed_videos, find_dataset
    from rvos_cache.store import content_digest, open_cache

    opened = open_cache(cache)
    dataset = find_dataset(opened.card)
    done, failed = opened.video_ids(), failed_videos(opened, dataset)
    facts: dict[str, Any] = {
        "done": len(done),
        "failed": failed,
        "missing": None if dataset is None else sorted(set(dataset.video_ids()) - {*done, *failed}),
        "bytes": opened.backend.size(),
        "content": content_digest(cache),
        "card": opened.card.model_dump(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    card = opened.card
    click.echo(f"{card.kind} of {card.dataset} {card.split} by {card.producer}")
    missing = "unknown (dataset not found)" if facts["missing"] is None else len(facts["missing"])
    click.echo(f"done {facts['done']}, failed {len(failed)}, missing {missing}, {decimal(facts['bytes'], precision=2)}")
    for video, error in failed.items():
        click.echo(f"failed {video}: {error}")
    for name, value in card.model_dump().items():
        if name in ("feature_specs", "measurement_specs"):
            _print_declared(name.removesuffix("_specs"), value)
        elif value not in ({}, [], None, ""):
            click.echo(f"  {name}: {value}")
    click.echo(f"content {facts['content']}")


def _print_declared(kind: str, specs: list[dict[str, Any]]) -> None:
    from rvos_cache.types import FeatureSpec

    for spec in specs:
        click.echo(f"  {kind}: {FeatureSpec(**{**spec, 'dims': tuple(spec['dims'])})}")


@click.command()
@click.argument("cache", type=PATH)
def verify(cache: Path) -> None:
    """Check every file of a cache. One line per fault, and exit status 1 if there is any. Notes: files of a killed run, and videos
    whose frames, sentences or masks have changed in the dataset since, where the dataset is found."""
    from rvos_cache.extraction import changes
    from rvos_cache.store import leftovers
    from rvos_cache.store import verify as step

    faults = 0
    for fault in step(cache):
        click.echo(f"fault: {fault}")
        faults += 1
    for note in leftovers(cache):
        click.echo(f"note: {note}")
    if faults:
        sys.exit(1)
    for note in changes(cache):
        click.echo(f"note: {note}")
    click.echo("no fault")


COMMANDS: tuple[click.Command, ...] = (check, info, verify)
