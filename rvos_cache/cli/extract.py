"""Commands that run frozen models: extract, extract-text, extract-all, plan."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import CORRUPT, DATASET, JOBS, OUT, PATH, ROOT, SET, SPLIT, TRACKER
from rvos_cache.cli.run import told
from rvos_cache.errors import InputError


@click.command()
@DATASET
@ROOT
@SPLIT
@TRACKER
@OUT
@click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N videos.")
@click.option("--shard", default="1/1", show_default=True, metavar="I/N", help="Every N-th video from the I-th.")
@SET
@CORRUPT
@JOBS
def extract(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    out: Path,
    videos: tuple[str, ...],
    limit: int | None,
    shard: str,
    overrides: tuple[str, ...],
    corrupt: str | None,
    jobs: int,
) -> None:
    """Write the tracks of a split. Run it again to resume."""
    from rvos_cache.extract import extract as step
    from rvos_cache.settings import parse_overrides

    settings = parse_overrides(overrides)
    told({
        str(out): step(
            dataset, root, split, tracker, out,
            videos=videos, limit=limit, shard=shard, overrides=settings, corrupt=corrupt, jobs=jobs,
        )
    })  # fmt: skip


@click.command("extract-text")
@DATASET
@ROOT
@SPLIT
@click.option("--encoder", default="hashed", show_default=True)
@SET
@OUT
def extract_text(dataset: str, root: Path, split: str, encoder: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the words of a split's expressions."""
    from rvos_cache.extract import extract_text as step
    from rvos_cache.settings import parse_overrides

    told({str(out): step(dataset, root, split, encoder, out, overrides=parse_overrides(overrides))})


@click.command("extract-all")
@DATASET
@click.option("--root", type=PATH, help="Folder of the dataset.  [default: data/<dataset>]")
@click.option("--split", "splits", multiple=True, help="Only this split; may repeat.  [default: every split found]")
@TRACKER
@click.option("--encoder", default="hashed", show_default=True)
@click.option("--out", type=PATH, help="Folder of the caches.  [default: out/cache/<dataset>]")
@SET
@CORRUPT
@JOBS
def extract_all(
    dataset: str,
    root: Path | None,
    splits: tuple[str, ...],
    tracker: str,
    encoder: str,
    out: Path | None,
    overrides: tuple[str, ...],
    corrupt: str | None,
    jobs: int,
) -> None:
    """Tracks and words of every split: what `make extract DATASET=...` runs."""
    from rvos_cache.extract import extract_all as step
    from rvos_cache.settings import parse_overrides

    where = root or Path("data") / dataset
    settings = parse_overrides(overrides)
    told(
        step(
            dataset, where, splits=splits, tracker=tracker, encoder=encoder, out=out,
            overrides=settings, corrupt=corrupt, jobs=jobs,
        )
    )  # fmt: skip


@click.command()
@DATASET
@ROOT
@SPLIT
@TRACKER
@SET
@CORRUPT
@click.option("--sample", type=click.IntRange(1), default=2, show_default=True, help="Videos to time.")
@JOBS
def plan(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    overrides: tuple[str, ...],
    corrupt: str | None,
    sample: int,
    jobs: int,
) -> None:
    """Videos, frames, bytes and hours of an extraction, from a timing of a few videos."""
    import tempfile
    import time

    from rvos_cache.datasets import open_dataset
    from rvos_cache.extract import extract as step
    from rvos_cache.settings import parse_overrides
    from rvos_cache.store import place_of

    source = open_dataset(dataset, root, split)
    lengths = {v: len(source.video(v)) for v in source.video_ids()}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        out = Path(folder) / "plan.zarr"
        settings = parse_overrides(overrides)
        report = step(dataset, root, split, tracker, out, limit=sample, overrides=settings, corrupt=corrupt)
        seconds = time.perf_counter() - began
        held = place_of(out).size()
    timed = sum(lengths[v] for v in report.done)
    if not timed:
        raise InputError(f"{root}: none of the first {sample} videos could be extracted; see rvos-cache check")
    frames = sum(lengths.values())
    click.echo(f"{len(lengths)} videos, {frames} frames")
    click.echo(f"{held / timed * frames / 1e6:.0f} MB, {seconds / timed * frames / 3600 / jobs:.2f} hours with {jobs} jobs")
    click.echo(f"(from {timed} frames of {len(report.done)} videos: {seconds / timed:.3f} s per frame)")


COMMANDS: tuple[click.Command, ...] = (extract, extract_text, extract_all, plan)
