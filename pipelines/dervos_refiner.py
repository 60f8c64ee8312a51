"""Stage 0 of DeRVOS (its rows with †): DVIS++'s temporal refiner trained on RefCOCO, RefCOCO+ and RefCOCOg, and what comes after it.

`python -m pipelines.dervos_refiner --dvis DVIS --beit3 BEIT3 --images data/refcoco --out REFINER`, then `rvos-cache replace-refiner
DVIS REFINER --out DVIS-dagger`, and the page of the row with `--dvis DVIS-dagger`. The same command resumes after Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page
from pipelines.single_object import IMAGES
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.settings import build, describe, format_settings, merge, parse_overrides
from rvos_select.tuning import RefinerSettings, tune_refiner


@click.command(cls=Page)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("data/refcoco"),
    show_default=True,
    help="Folder of the datasets that --dataset names.",
)
@click.option(
    "--dataset",
    "names",
    multiple=True,
    default=IMAGES,
    show_default=True,
    help="May repeat. Of a dataset of videos each frame is an image.",
)
@click.option("--split", default="train", show_default=True)
@click.option("--dvis", help="A folder that rvos-cache convert-dvis wrote.")
@click.option("--beit3", help="A folder that rvos-cache convert-beit3 wrote.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dervos_refiner"), show_default=True)
@click.option("--set", "settings", multiple=True, metavar="K=V", help="One setting; may repeat. --list shows them.")
@click.option("--list", "list_settings", is_flag=True, help="List the settings and train nothing.")
def dervos_refiner(
    images: Path,
    names: tuple[str, ...],
    split: str,
    dvis: str | None,
    beit3: str | None,
    out: Path,
    settings: tuple[str, ...],
    list_settings: bool,
) -> None:
    """Train the refiner of a DVIS++ folder together with TAIS on images."""
    if list_settings:
        click.echo(format_settings("dervos_refiner", describe(RefinerSettings)))
        return
    if dvis is None or beit3 is None:
        raise InputError(f"it needs the option --{'dvis' if dvis is None else 'beit3'} FOLDER")
    # As a shell completes it; the record of a run has it without the slash.
    dvis = dvis.rstrip("/") or dvis
    values = merge({"dvis": dvis, "beit3": {"checkpoint": beit3}}, parse_overrides(settings))
    resolved = build(RefinerSettings, values, "dervos_refiner")
    tune_refiner([open_dataset(name, images, split) for name in names], resolved, out)
    click.echo(f"{out}: rvos-cache replace-refiner {dvis} {out} --out {Path(dvis)}-dagger, then extract all caches again")


if __name__ == "__main__":
    run_command(dervos_refiner)
