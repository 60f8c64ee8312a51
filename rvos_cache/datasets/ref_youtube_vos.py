"""Ref-YouTube-VOS, in the layout of `palette_split`: splits train, valid and test, and two parts of train.

The list of valid holds 507 videos; the 305 that the list of test repeats are not of valid: 202 remain. valid and test hide
their answers unless released ones were put there: `<split>/Annotations` and an "obj_id" in each expression. `held_out`
is one video in twenty of train, chosen by a hash of its id, to score without a server; `fit` is the rest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rvos_cache.datasets.meta_expressions import read_videos
from rvos_cache.datasets.palette_split import ANNOTATIONS, EXPRESSIONS, FRAMES, LISTS, PaletteSplit, found_splits
from rvos_cache.errors import InputError

SPLITS = ("train", "valid", "test")
PARTS = ("fit", "held_out")
"""Parts of train; `splits` leaves them out, so that an extraction of all splits does not see a video twice."""
LISTED, VALID = 507, 202
"""Videos in the published list of valid, and those of them that are not of test."""


class RefYoutubeVos(PaletteSplit):
    """One split of Ref-YouTube-VOS."""

    name = "ref-youtube-vos"
    one_object = True

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError, also when valid cannot be told from test or is not the published 202 videos."""
        super().__init__(root, split, "train" if split in PARTS else None)
        if split in PARTS:
            self.videos = {v: entry for v, entry in self.videos.items() if is_held_out(v) == (split == "held_out")}
        if split == "valid":
            self.videos = self._without_test(self.videos)
        if not self.videos:
            raise InputError(f"{self.file}: no video of split {split} is in this list; give another --split")
        if split == "test" and not self.frames.is_dir():
            # YouTube-VOS's archive of 2019 has the frames of all 507 videos in valid.
            self.frames = self.root / "valid" / FRAMES
        # Missing PNGs of train are a fault, not a sign that they are hidden.
        self.answers = split == "train" or split in PARTS or self._released()

    @staticmethod
    def splits(root: Path) -> list[str]:
        """Those of train, valid and test that are found under `root`, then any other folder with expressions."""
        return found_splits(root, SPLITS)

    def _released(self) -> bool:
        """Whether answers were put into a split that hides them.

        PNGs alone are no answers: YouTube-VOS's archive has those of first frames in valid, and no expression names them.
        """
        entries = (v.get("expressions") for v in self.videos.values() if isinstance(v, dict))
        said = (e for listed in entries if isinstance(listed, dict) for e in listed.values())
        return (self.folder / ANNOTATIONS).is_dir() and any(isinstance(e, dict) and "obj_id" in e for e in said)

    def _without_test(self, videos: dict[str, Any]) -> dict[str, Any]:
        other = self.root / LISTS / "test" / EXPRESSIONS
        if not other.exists():
            if len(videos) > VALID:
                held = f"lists {len(videos)} videos, those of test too; valid has {VALID}"
                raise InputError(f"{self.file}: {held}: the list of test tells them apart; copy it to {other}")
            return videos
        test = read_videos(other, [])
        kept = {v: entry for v, entry in videos.items() if v not in test}
        if len(videos) > VALID and len(kept) != VALID:
            came = f"wanted {VALID} videos = {LISTED} - {LISTED - VALID} of {other}, came {len(kept)} of {len(videos)}"
            raise InputError(f"{self.file}: {came}; copy both files again")
        return kept


def is_held_out(video_id: str) -> bool:
    """Whether a video of train is one of the twentieth that is kept from training: the same on every machine."""
    return int(hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % 20 == 0
