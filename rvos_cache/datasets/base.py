"""The base class of datasets, and the checks of a dataset class before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.plugins import check_overridden, check_signatures
from rvos_cache.types import Expression, GroundTruth, Video


class Dataset:
    """One split of one dataset. Creating it reads the expressions, never frames or masks.

    A subclass overrides `video_ids`, `video` and `expressions`, and for ground truth both `has_ground_truth` and `ground_truth`;
    everything else has a default.

    A dataset may also have three methods that the base class does not define; they are used if they exist:
    `expression_ids(video_id)`, also the ids of expressions that cannot be read, so that missing predictions are counted;
    `kind(video_id, expression_id) -> str | None`, the category of a sentence; and `samples(video_id) -> tuple[Sample, ...]`, the
    frames that its benchmark scores.
    """

    name: str = ""
    """Name of the dataset; by default the name of the class."""
    one_object: bool = False
    """Whether every expression names exactly one object, so that the best track alone may be the prediction."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.name:
            cls.name = cls.__name__

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError if there is no such split, or its files cannot be read."""
        self.root, self.split = Path(root), split

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`, in the dataset's own order; by default none, so that `extract-all` needs --split."""
        return []

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split has its ground truth; by default it does not."""
        return False

    def video_ids(self) -> tuple[str, ...]:
        """The videos of the split in file order. Raises InputError if the list of videos is damaged."""
        raise NotImplementedError

    def video(self, video_id: str) -> Video:
        """Raises InputError if the video is not listed or its frames are missing."""
        raise NotImplementedError

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """All expressions of the video in file order."""
        raise NotImplementedError

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The annotated objects; None if and only if the split hides its ground truth. Raises InputError for damaged files."""
        return None

    def check(self) -> Iterator[str]:
        """Every fault of the split, one line each, naming its file. By default: everything that raises InputError when read."""
        for video_id in self.video_ids():
            try:
                video = self.video(video_id)
                self.expressions(video_id)
                self.ground_truth(video_id)
                for t in range(len(video)):
                    video.read(t)
            except InputError as error:
                yield str(error)


def check_dataset_class(cls: type[Dataset], title: str) -> None:
    """Check a dataset class without opening a split. Raises InputError, starting with `title`, for the first fault."""
    required = ["video_ids", "video", "expressions"]
    check_overridden(cls, Dataset, required, title)
    check_signatures(cls, Dataset, ["__init__", "splits", *required, "ground_truth", "check"], title)
    parts = ("has_ground_truth", "ground_truth")
    own = [name for name in parts if getattr(cls, name) is not getattr(Dataset, name)]
    if len(own) == 1:
        missing = next(name for name in parts if name not in own)
        raise InputError(f"{title}: defines {own[0]}, but not {missing}; define both, or neither")
