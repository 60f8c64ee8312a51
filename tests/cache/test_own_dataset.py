"""A dataset of the user's own: what it needs, and what the default check finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from odd_videos import call
from PIL import Image

from rvos_cache.datasets import Dataset, dataset_class, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.frames import folder_video
from rvos_cache.store import TrackCache
from rvos_cache.types import Expression, GroundTruth, Video

Patch = pytest.MonkeyPatch


class Smallest(Dataset):
    """A user's dataset, with nothing but what is required."""

    def video_ids(self) -> tuple[str, ...]:
        return tuple(sorted(p.name for p in (self.root / self.split).iterdir()))

    def video(self, video_id: str) -> Video:
        return folder_video(self.root / self.split / video_id, video_id)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        targets = (f"{video_id}-1",) if self.has_ground_truth else None
        return (Expression(video_id, "0", "the dog that runs", targets),)


class WithTruth(Smallest):
    """The same with ground truth, whose object ids and frames the tests change."""

    object_name, frames = "{}-1", 2

    def ground_truth(self, video_id: str) -> GroundTruth:
        masks = RleMasks.from_dense(np.ones((1, self.frames, 8, 12), bool))
        return GroundTruth((self.object_name.format(video_id),), masks, np.ones(self.frames, bool))


class Unfinished(Dataset):
    def video_ids(self) -> tuple[str, ...]:
        return ()


class Alone:
    """No subclass of Dataset."""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for video in ("a", "b"):
        (root / "train" / video).mkdir(parents=True)
        for t in range(2):
            Image.fromarray(np.full((8, 12, 3), 60 * t, np.uint8)).save(root / "train" / video / f"{t}.png")
    return root


HERE = "test_own_dataset"


@pytest.mark.parametrize(("name", "annotated"), [("Smallest", False), ("WithTruth", True)])
def test_three_methods_are_a_dataset(folders: Path, tmp_path: Path, name: str, annotated: bool, monkeypatch: Patch) -> None:
    data = open_dataset(f"{HERE}:{name}", folders, "train")
    assert data.name == f"{HERE}:{name}" and type(data).splits(folders) == ["train"]
    assert data.has_ground_truth == annotated
    assert (data.protocol, data.one_object, data.submission_layout, data.submission_split) == ("video", False, None, None)
    assert data.expression_ids("a") == ("0",) and data.kind("a", "0") is None and data.samples("a") is None
    assert (data.ground_truth("a") is not None) == annotated
    assert list(data.check()) == []
    options = ("--dataset", data.name, "--root", folders, "--split", "train")
    assert call(monkeypatch, None, "check", *options)[0] == 0
    assert call(monkeypatch, None, "extract", *options, "--out", tmp_path / "t.zarr")[0] == 0
    assert TrackCache(tmp_path / "t.zarr").video_ids() == ("a", "b")
    with pytest.raises(InputError, match="no split 'valid'; splits of .*: train; give another"):
        open_dataset(f"{HERE}:{name}", folders, "valid")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Unfinished", r"has no video; write def video\(self, video_id\)"),
        ("Alone", "is not a subclass of rvos_cache.Dataset"),
        ("open_dataset", "is not a subclass of rvos_cache.Dataset"),
        ("Missing", "cannot be imported"),
    ],
)
def test_a_class_that_is_no_dataset_is_one_line(folders: Path, name: str, problem: str) -> None:
    for step in (lambda: open_dataset(f"{HERE}:{name}", folders, "train"), lambda: dataset_class(f"{HERE}:{name}")):
        with pytest.raises(InputError, match=problem) as error:
            step()
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"object_name": "x"}, ["video a, expression 0: object 'a-1'", "video b, expression 0", "'x' is also used in video a"]),
        ({"frames": 3}, [f"video {v}: masks of 3 frames of (8, 12) pixels, expected 2 frames of (8, 12)" for v in "ab"]),
        ({"has_ground_truth": False}, [f"video {v}: has_ground_truth is False, so" for v in "ab"]),
        ({"ground_truth": lambda self, video_id: None}, [f"video {v}: has_ground_truth is True, so" for v in "ab"]),
        (
            {"expressions": lambda self, v: (Expression(v, "0", "a", None),)},
            [f"video {v}, expression 0: expected targets a tuple" for v in "ab"],
        ),
    ],
)
def test_the_default_check_names_what_breaks_the_contract(
    folders: Path, change: dict[str, object], messages: list[str], monkeypatch: Patch
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(WithTruth, name, value)
    faults = list(WithTruth(folders, "train").check())
    assert len(faults) == len(messages)
    assert all(message in fault and str(folders) in fault for message, fault in zip(messages, faults)), faults


def test_the_default_check_reads_every_frame(folders: Path) -> None:
    for name in ("0", "1"):
        path = folders / f"train/b/{name}.png"
        path.write_bytes(path.read_bytes()[:45])
    faults = list(Smallest(folders, "train").check())
    assert len(faults) == 2 and "b/0.png" in faults[0] and "b/1.png" in faults[1]
