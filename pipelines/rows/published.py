"""The numbers of a table: which measures they are, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

VIDEO_KEYS, VIDEO_TITLES = ("jf", "j", "f"), ("J&F", "J", "F")
IMAGE_KEYS, IMAGE_TITLES = ("map", "overall_iou", "mean_iou"), ("mAP", "overall IoU", "mean IoU")
IMAGES = ("a2d-sentences", "jhmdb-sentences", "refcoco", "refcoco+", "refcocog")
"""Datasets whose tables have mAP and IoU."""


def keys_of(split: str) -> tuple[str, ...]:
    """The measures of the numbers of `<dataset>/<split>`, in their order."""
    return IMAGE_KEYS if split.partition("/")[0] in IMAGES else VIDEO_KEYS


def titles_of(split: str) -> tuple[str, ...]:
    """Their titles."""
    return IMAGE_TITLES if split.partition("/")[0] in IMAGES else VIDEO_TITLES


def named(split: str, values: Sequence[float]) -> str:
    """As in "J&F 48.6, J 45.2, F 52.1"; fewer where a table has fewer."""
    return ", ".join(f"{title} {value:.1f}" for title, value in zip(titles_of(split), values)) or "no number"


def paper_row(split: str, values: Sequence[float]) -> dict[str, dict[str, float]]:
    """The published numbers as a row of a report's table: title -> measure -> fraction of 1; none without numbers."""
    return {f"the paper, {split}": {key: value / 100 for key, value in zip(keys_of(split), values)}} if values else {}


def published_line(paper: Mapping[str, Sequence[float]]) -> str:
    """As in "the paper: mevis/valid J&F 48.6, J 45.2, F 52.1"."""
    return "the paper: " + "; ".join(f"{split} {named(split, values)}" for split, values in paper.items())
