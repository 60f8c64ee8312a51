"""Ref-DAVIS17's predictions as its benchmark's code reads them: a label map per frame of the objects that an annotator names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.system.progress import tracked
from rvos_select.evaluation.ref_davis import annotators
from rvos_select.merging.label_maps import Answer, Frames, PngPredictions, Predictions, label_maps
from rvos_select.metrics.davis import PROPOSALS
from rvos_select.submission.zips import write_zip

COLOURS = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (191, 0, 0), (64, 128, 0), (191, 128, 0), (64, 0, 128), (191, 0, 128), (64, 128, 128), (191, 128, 128),
    (0, 64, 0), (128, 64, 0), (0, 191, 0), (128, 191, 0), (0, 64, 128), (128, 64, 128),
)  # fmt: skip
"""DAVIS's palette; the values above are grey."""
PALETTE = bytes(value for colour in (*COLOURS, *((n, n, n) for n in range(len(COLOURS), 256))) for value in colour)


def submit_ref_davis(predictions: Path | Predictions, dataset: RefDavis17, out: Path) -> Path:
    """Write `out`, a zip of `anno_<annotator>/<video>/<frame>.png`; returns it. A pixel is the number of its object, 0 is none.

    predictions: a folder of mask PNGs, where of overlapping objects the lower number wins, or Predictions with scores. Each mask
    is read once. The zip appears when everything is checked. Raises InputError naming the first mask that is missing or wrong,
    and for an object number that the benchmark does not take.
    """
    source = PngPredictions(predictions) if isinstance(predictions, Path) else predictions
    expressions = {video_id: annotators(dataset, video_id) for video_id in dataset.video_ids()}
    for video_id, of_annotators in expressions.items():
        # A missing mask is an error before any is read.
        for of_annotator in of_annotators:
            _answers(dataset, source, video_id, of_annotator)
    return write_zip(Path(out), _entries(dataset, source, expressions))


def _answers(
    dataset: RefDavis17, predictions: Predictions, video_id: str, expressions: dict[int, str]
) -> tuple[Frames, list[Answer]]:
    """The frames of a video, and the predictions of an annotator's expressions."""
    video = dataset.video(video_id)
    frames = Frames(video_id, video.frame_names, video.size)
    return frames, [predictions.predict(frames, expression_id, number) for number, expression_id in expressions.items()]


def _entries(
    dataset: RefDavis17, predictions: Predictions, expressions: dict[str, list[dict[int, str]]]
) -> Iterator[tuple[str, bytes]]:
    for a, video_id in tracked(list(product(range(dataset.annotators), sorted(expressions))), "submit"):
        video, answers = _answers(dataset, predictions, video_id, expressions[video_id][a])
        for name, pixels in zip(video.frame_names, label_maps(answers, video)):
            if pixels.max() > PROPOSALS:
                raise InputError(
                    f"video {video_id}, frame {name}: object {pixels.max()}, the benchmark takes {PROPOSALS}; number the "
                    "objects from 1"
                )
            yield (RefDavis17.submission_layout or "").format(annotator=a, video=video_id, frame=name), palette_png(pixels)


def palette_png(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a palette PNG of object numbers (H, W)."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.putpalette(PALETTE)
    image.save(buffer, format="PNG")
    return buffer.getvalue()
