"""`rvos-cache`: shapes, convert, check, extract (-text, -all), plan, info, verify. Heavy imports happen in the command."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from rvos_cache.extract import ExtractReport

PATH = click.Path(path_type=Path)
DATASET = click.option("--dataset", required=True, help="mevis, or your own package.module:Class.")
ROOT = click.option("--root", type=PATH, required=True, help="Folder of the dataset.")
SPLIT = click.option("--split", required=True)
TRACKER = click.option("--tracker", default="flow", show_default=True)
SET = click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting; may repeat.")
OUT = click.option("--out", type=PATH, required=True, help="The cache to write (.zarr).")
JOBS = click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Run frozen trackers and text encoders over a dataset once and keep what they see."""


@cli.command()
@click.option("--out", type=PATH, required=True, help="Folder to write, in MeViS's layout.")
@click.option("--videos", type=click.IntRange(2), required=True, help="Videos in all; one fifth of them is valid_u.")
@click.option("--seed", type=int, default=0, show_default=True)
@JOBS
def shapes(out: Path, videos: int, seed: int, jobs: int) -> None:
    """Make the moving-shapes dataset."""
    from rvos_cache.shapes import write_shapes

    with click.progressbar(length=videos, label="shapes", file=sys.stderr) as bar:
        write_shapes(out, videos, seed, progress=lambda done, total: bar.update(1), jobs=jobs)
    click.echo(f"{videos} videos: {out}")


@cli.group()
def convert() -> None:
    """Write a dataset from its published parts in the layout that is read here."""


@convert.command("ref-davis")
@click.option("--davis", type=PATH, required=True, help="DAVIS-2017-Unsupervised-trainval-480p: its folder or zip.")
@click.option("--text", type=PATH, required=True, help="Folder or zip of the four Davis17_annot*.txt.")
@click.option("--out", type=PATH, required=True, help="Folder to write; must not be there.")
def convert_ref_davis(davis: Path, text: Path, out: Path) -> None:
    """Ref-DAVIS17 in ReferFormer's layout; files are copied."""
    from rvos_cache.datasets.convert_ref_davis import convert_ref_davis as step

    with click.progressbar(length=1, label="ref-davis", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(1)

        counts = step(davis, text, out, progress)
    for split, (videos, frames, expressions) in counts.items():
        click.echo(f"{split}: {videos} videos, {frames} frames, {expressions} expressions: {out}")


@cli.command()
@DATASET
@ROOT
@SPLIT
def check(dataset: str, root: Path, split: str) -> None:
    """Read everything of a split and name every fault with its file."""
    from rvos_cache.datasets import open_dataset

    source = open_dataset(dataset, root, split)
    faults = 0
    for fault in source.check():
        click.echo(fault)
        faults += 1
    videos = source.video_ids()
    if faults:
        raise InputError(f"{root}, split {split}: faults found: {faults}; mend the files named above")
    expressions = sum(len(source.expressions(v)) for v in videos)
    frames = sum(len(source.video(v)) for v in videos)
    truths = (source.ground_truth(v) for v in videos) if source.has_answers else ()
    objects = sum(len(t.object_ids) for t in truths if t is not None)
    counted = f", {objects} objects" if source.has_answers else ", answers hidden"
    click.echo(f"{len(videos)} videos, {frames} frames, {expressions} expressions{counted}: no fault")


@cli.command()
@DATASET
@ROOT
@SPLIT
@TRACKER
@OUT
@click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N videos.")
@click.option("--shard", default="1/1", show_default=True, metavar="I/N", help="Every N-th video from the I-th.")
@SET
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
    jobs: int,
) -> None:
    """Write the tracks of a split. Run it again to resume."""
    from rvos_cache.extract import extract as step
    from rvos_cache.settings import parse_overrides

    settings = parse_overrides(overrides)
    told({
        str(out): step(
            dataset, root, split, tracker, out, videos=videos, limit=limit, shard=shard, overrides=settings, jobs=jobs
        )
    })  # fmt: skip


@cli.command("extract-text")
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


@cli.command("extract-all")
@DATASET
@click.option("--root", type=PATH, help="Folder of the dataset.  [default: data/<dataset>]")
@click.option("--split", "splits", multiple=True, help="Only this split; may repeat.  [default: every split found]")
@TRACKER
@click.option("--encoder", default="hashed", show_default=True)
@click.option("--out", type=PATH, help="Folder of the caches.  [default: out/cache/<dataset>]")
@SET
@JOBS
def extract_all(
    dataset: str,
    root: Path | None,
    splits: tuple[str, ...],
    tracker: str,
    encoder: str,
    out: Path | None,
    overrides: tuple[str, ...],
    jobs: int,
) -> None:
    """Tracks and words of every split: what `make extract DATASET=...` runs."""
    from rvos_cache.extract import extract_all as step
    from rvos_cache.settings import parse_overrides

    where = root or Path("data") / dataset
    settings = parse_overrides(overrides)
    told(step(dataset, where, splits=splits, tracker=tracker, encoder=encoder, out=out, overrides=settings, jobs=jobs))


@cli.command()
@click.argument("cache", type=PATH)
@OUT
@JOBS
def mirror(cache: Path, out: Path, jobs: int) -> None:
    """The tracks of a split seen in a mirror, from its cache and without tracking again: more to train on."""
    from rvos_cache.mirror import mirror as step

    told({str(out): step(cache, out, jobs)})


@cli.command()
@click.argument("cache", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(cache: Path, as_json: bool) -> None:
    """What a cache is and holds: videos done, failed and missing (neither), bytes, card, and one digest of the content."""
    from rvos_cache.extract import at_hand, failed_videos
    from rvos_cache.store import content_digest, open_cache

    opened = open_cache(cache)
    dataset = at_hand(opened.card)
    done, failed = opened.video_ids(), failed_videos(opened, dataset)
    facts: dict[str, Any] = {
        "done": len(done),
        "failed": failed,
        "missing": None if dataset is None else sorted(set(dataset.video_ids()) - {*done, *failed}),
        "bytes": sum(map(size_of, cache.rglob("*"))),
        "content": content_digest(cache),
        "card": opened.card.model_dump(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    card = opened.card
    click.echo(f"{card.kind} of {card.dataset} {card.split} by {card.producer}")
    absent = "unknown (dataset not found)" if facts["missing"] is None else len(facts["missing"])
    click.echo(f"done {facts['done']}, failed {len(failed)}, missing {absent}, {facts['bytes'] / 1e6:.1f} MB")
    for video, error in failed.items():
        click.echo(f"failed {video}: {error}")
    for name, value in card.model_dump().items():
        if value not in ({}, [], None, ""):
            click.echo(f"  {name}: {value}")
    click.echo(f"content {facts['content']}")


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of a folder, and of what another process has just published or swept."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


@cli.command()
@click.argument("cache", type=PATH)
def verify(cache: Path) -> None:
    """Check every file of a cache; a line per fault and exit status 1. What a killed run left behind is a note."""
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
    click.echo("no fault")


@cli.command()
@DATASET
@ROOT
@SPLIT
@TRACKER
@SET
@click.option("--sample", type=click.IntRange(1), default=2, show_default=True, help="Videos to time.")
@JOBS
def plan(dataset: str, root: Path, split: str, tracker: str, overrides: tuple[str, ...], sample: int, jobs: int) -> None:
    """Videos, frames, bytes and hours of an extraction, from a timing of a few videos."""
    import tempfile
    import time

    from rvos_cache.datasets import open_dataset
    from rvos_cache.extract import extract as step
    from rvos_cache.settings import parse_overrides

    source = open_dataset(dataset, root, split)
    lengths = {v: len(source.video(v)) for v in source.video_ids()}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        out = Path(folder) / "plan.zarr"
        report = step(dataset, root, split, tracker, out, limit=sample, overrides=parse_overrides(overrides))
        seconds = time.perf_counter() - began
        held = sum(map(size_of, out.rglob("*")))
    timed = sum(lengths[v] for v in report.done)
    if not timed:
        raise InputError(f"{root}: none of the first {sample} videos could be extracted; see rvos-cache check")
    frames = sum(lengths.values())
    click.echo(f"{len(lengths)} videos, {frames} frames")
    click.echo(f"{held / timed * frames / 1e6:.0f} MB, {seconds / timed * frames / 3600 / jobs:.2f} hours with {jobs} jobs")
    click.echo(f"(from {timed} frames of {len(report.done)} videos: {seconds / timed:.3f} s per frame)")


def told(reports: Mapping[str, ExtractReport]) -> None:
    """One line per cache; exit status 1 when any video failed."""
    failed = total = 0
    for where, report in reports.items():
        click.echo(f"{where}: {len(report.done)} done, {len(report.skipped)} were there, {len(report.failed)} failed")
        for video, error in report.failed.items():
            click.echo(f"failed {video}: {error}", err=True)
        failed += len(report.failed)
        total += len(report.done) + len(report.skipped) + len(report.failed)
    if failed:
        raise InputError(
            f"{failed} of {total} videos failed (listed in failures.jsonl); mend them and run the same command again"
        )


def run_command(command: Callable[..., object]) -> NoReturn:
    """Run a click command line: a fault of the input is one line and status 1, usage 2, Ctrl-C 130; a warning is one line."""
    warnings.showwarning = lambda message, *where: click.echo(f"warning: {' '.join(str(message).split())}", err=True)
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough; nothing must be flushed to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        what = error.strerror or type(error).__name__
        click.echo(f"error: {error.filename or 'file system'}: {what}; make room or choose a writable path", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was finished is kept: run the same command again to go on", err=True)
        sys.exit(130)
    sys.exit(0)


def main() -> None:
    """The `rvos-cache` program."""
    run_command(cli)
