"""Ref-YouTube-VOS, in the layout of `palette_split`: splits train, valid and test, and two parts of train.

The published list of valid has 507 videos; the 305 that the list of test has too do not belong to valid: 202 remain. valid and
test have no ground truth unless it was added: `<split>/Annotations` and an "obj_id" in each expression. `held_out` is one video
in twenty of train, selected by a hash of its id, for scoring without a server; `fit` is the rest of train.

Source: Seo et al., "URVOS: Unified Referring Video Object Segmentation Network with a Large-Scale Benchmark", ECCV 2020.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rvos_cache.datasets.meta_expressions import read_videos
from rvos_cache.datasets.palette_split import ANNOTATIONS, EXPRESSIONS, FRAMES, LISTS, PaletteSplit
from rvos_cache.errors import InputError

PARTS = ("fit", "held_out")
"""Parts of train. `splits` does not list them, so that an extraction of all splits does not read a video twice."""
LISTED, VALID = 507, 202
"""Videos in the published list of valid, and those of them that are not in the list of test."""


class RefYoutubeVos(PaletteSplit):
    """One split of Ref-YouTube-VOS."""

    name = "ref-youtube-vos"
    submission_layout = "Annotations/{video}/{expression}/{frame}.png"
    known_splits = ("train", "valid", "test")

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError: also if the videos of valid cannot be told from those of test, or are not the published 202."""
        super().__init__(root, split, "train" if split in PARTS else None)
        if split in PARTS:
            self.videos = {v: entry for v, entry in self.videos.items() if is_held_out(v) == (split == "held_out")}
        if split == "valid":
            self.videos = self._without_test(self.videos)
        if not self.videos:
            raise InputError(f"{self.file}: no video of split {split} is in this list; give another --split")
        if split == "test" and not self.frames.is_dir():
            # YouTube-VOS's archive of 2019 has the frames of all 507 videos in the folder of valid.
            self.frames = self.root / "valid" / FRAMES
        self._annotated = split == "train" or split in PARTS or self._annotations_added()

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split has ground truth: train and its parts (missing PNGs are a fault there), others if it was added."""
        return self._annotated

    def _annotations_added(self) -> bool:
        """Whether ground truth was added to valid or test: PNGs, and expressions that name their objects.

        PNGs alone are not enough: YouTube-VOS's archive has those of first frames in valid, and no expression names them.
        """
        entries = (v.get("expressions") for v in self.videos.values() if isinstance(v, dict))
        expressions = (e for by_id in entries if isinstance(by_id, dict) for e in by_id.values())
        return (self.folder / ANNOTATIONS).is_dir() and any(isinstance(e, dict) and "obj_id" in e for e in expressions)

    def _without_test(self, videos: dict[str, Any]) -> dict[str, Any]:
        """Return the videos that the list of test does not have. Raises InputError: if that list is missing or another."""
        list_of_test = self.root / LISTS / "test" / EXPRESSIONS
        if not list_of_test.exists():
            if len(videos) > VALID:
                problem = f"lists {len(videos)} videos, also those of test; valid has {VALID}"
                raise InputError(f"{self.file}: {problem}: the list of test tells them apart; copy it to {list_of_test}")
            return videos
        test = read_videos(list_of_test, [])
        remaining = {v: entry for v, entry in videos.items() if v not in test}
        if len(videos) > VALID and len(remaining) != VALID:
            problem = f"expected {VALID} videos = {LISTED} - {LISTED - VALID} of {list_of_test}"
            raise InputError(f"{self.file}: {problem}, got {len(remaining)} of {len(videos)}; copy both files again")
        return remaining


def is_held_out(video_id: str) -> bool:
    """Return whether a video of train is in `held_out`: one in twenty, the same on every machine."""
    return int(hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % 20 == 0
