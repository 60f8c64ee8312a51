"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
DATASET = click.option("--dataset", required=True, help="mevis, or your own package.module:Class.")
ROOT = click.option("--root", type=PATH, required=True, help="Folder of the dataset.")
SPLIT = click.option("--split", required=True)
TRACKER = click.option("--tracker", default="flow", show_default=True)
SET = click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting; may repeat.")
CORRUPT = click.option("--corrupt", metavar="NAME:1-5", help="What is done to frames first, as gaussian_noise:5 (ImageNet-C).")
OUT = click.option("--out", type=PATH, required=True, help="The cache to write (.zarr).")
JOBS = click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
