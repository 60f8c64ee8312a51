"""Pack mask PNGs as a benchmark's server takes them, after checking that they are all there and whole."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError

LAYOUTS = {
    "mevis": "{video}/{expression}/{frame}.png",
    "ref-youtube-vos": "Annotations/{video}/{expression}/{frame}.png",
}
"""Dataset -> place of a mask in its zip. MeViS: video folders at the root, no folder above them; Ref-YouTube-VOS: one above."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: equal masks give equal bytes."""


def submit(
    predictions: Path, dataset: str, out: Path, expected: Dataset | None = None, root: Path | None = None, split: str = "valid"
) -> Path:
    """Write `out`, a zip of every expression's masks, 8-bit 0 and 255 at the video's size; returns it.

    expected: the split to submit; default: `dataset` under `root` (default data/<dataset>) and `split`. Everything is
    checked before anything is written. Raises InputError naming the first mask that is missing or wrong.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"no submission format of dataset {dataset!r}; there are: {', '.join(sorted(LAYOUTS))}")
    predictions, out = Path(predictions), Path(out)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    split_of = expected or open_dataset(dataset, root or Path("data") / dataset, split)
    entries = list(_entries(predictions, split_of, LAYOUTS[dataset]))
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            # Stored: PNGs are compressed already.
            for name, path in sorted(entries):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())
        os.replace(aside, out)
    except OSError as error:
        raise InputError(f"{out}: the zip cannot be written ({error.strerror}); free or change the place") from error
    finally:
        aside.unlink(missing_ok=True)
    return out


def _entries(predictions: Path, dataset: Dataset, layout: str) -> Iterator[tuple[str, Path]]:
    """(name in the zip, file) of every mask of the split, each checked."""
    for video_id in dataset.video_ids():
        video = dataset.video(video_id)
        for expression in dataset.expressions(video_id):
            for frame in video.frame_names:
                path = predictions / video_id / expression.expression_id / f"{frame}.png"
                _check(path, video.size)
                yield layout.format(video=video_id, expression=expression.expression_id, frame=frame), path


def _check(path: Path, size: tuple[int, int]) -> None:
    if not path.is_file():
        raise InputError(f"{path}: the mask is missing, a submission needs every frame of every expression; run merge for it")
    # Pillow and not OpenCV, which writes lines of its own about a damaged file.
    try:
        with Image.open(path) as file:
            mode, image = file.mode, np.asarray(file)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a readable PNG ({error}); write it again") from error
    if mode != "L" or image.shape != size:
        raise InputError(f"{path}: wanted 8-bit grey {size} (height, width), found {mode} {image.shape}; write it again")
    if not ((image == 0) | (image == 255)).all():
        found = int(image[(image > 0) & (image < 255)][0])
        raise InputError(f"{path}: wanted values 0 and 255 only, found {found}; write it again")
