"""Ref-DAVIS17's predictions as its benchmark's code reads them: one picture per frame of all objects that an annotator named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_select.merging.label_maps import Answer, Answers, Frames, PngAnswers, annotators, label_maps
from rvos_select.metrics.davis import PROPOSALS
from rvos_select.submission.zips import write_zip

LAYOUT = "anno_{annotator}/{video}/{frame}.png"
"""Place of a picture in the zip."""
COLOURS = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (191, 0, 0), (64, 128, 0), (191, 128, 0), (64, 0, 128), (191, 0, 128), (64, 128, 128), (191, 128, 128),
    (0, 64, 0), (128, 64, 0), (0, 191, 0), (128, 191, 0), (0, 64, 128), (128, 64, 128),
)  # fmt: skip
"""DAVIS's palette; the values above are grey."""
PALETTE = bytes(value for colour in (*COLOURS, *((n, n, n) for n in range(len(COLOURS), 256))) for value in colour)


def submit_ref_davis(predictions: Path | Answers, dataset: RefDavis17, out: Path) -> Path:
    """Write `out`, a zip of `anno_<annotator>/<video>/<frame>.png`; returns it. A pixel is the number of its object, 0 is none.

    predictions: a folder of mask PNGs, where of overlapping objects the lower wins, or Answers with scores. Each mask is read
    once. The zip appears when all is checked. Raises InputError naming the first mask that is missing or wrong, and where an
    object has a number that the benchmark refuses.
    """
    answers = PngAnswers(predictions) if isinstance(predictions, Path) else predictions
    said = {video_id: annotators(dataset, video_id) for video_id in dataset.video_ids()}
    for video_id in said:
        # A missing mask is told before the others are read.
        for a in range(dataset.annotators):
            _given(dataset, answers, video_id, said[video_id][a])
    return write_zip(Path(out), _entries(dataset, answers, said))


def _given(dataset: RefDavis17, answers: Answers, video_id: str, expressions: dict[int, str]) -> tuple[Frames, list[Answer]]:
    video = dataset.video(video_id)
    frames = Frames(video_id, video.frame_names, video.size)
    return frames, [answers.answer(frames, expression_id, number) for number, expression_id in expressions.items()]


def _entries(dataset: RefDavis17, answers: Answers, said: dict[str, list[dict[int, str]]]) -> Iterator[tuple[str, bytes]]:
    for a in range(dataset.annotators):
        for video_id in sorted(said):
            video, given = _given(dataset, answers, video_id, said[video_id][a])
            for name, pixels in zip(video.frame_names, label_maps(given, video)):
                if pixels.max() > PROPOSALS:
                    where = f"video {video_id}, frame {name}: object {pixels.max()}"
                    raise InputError(f"{where}, the benchmark takes {PROPOSALS}; number the objects from 1")
                yield LAYOUT.format(annotator=a, video=video_id, frame=name), palette_png(pixels)


def palette_png(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a palette PNG of object numbers (H, W)."""
    image, raw = Image.fromarray(pixels), io.BytesIO()
    image.putpalette(PALETTE)
    image.save(raw, format="PNG")
    return raw.getvalue()
