"""Too little GPU memory, raised where there is no GPU: SAM 2 goes on with fewer prompts, and other work ends in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from sam2_video import as_video, make_backend, moving, prompts_of, propagate, squares
from store_fixtures import TinyTracker

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract
from rvos_cache.system.gpu_memory import Parts, explaining_memory
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersSession

TINY = "store_fixtures:Tiny"


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


class Full(TinyTracker):
    """One video does not fit."""

    def track(self, video: Any, expressions: Any, ground_truth: object = None) -> Any:
        if video.video_id == "v02":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return super().track(video, expressions, ground_truth)


class Small:
    """A GPU with room for so many items at once."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, list[int]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.asked.append(len(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation")
        return [2 * i for i in items]


@pytest.mark.filterwarnings("ignore:.*do not fit into GPU memory")
def test_parts_are_halved_and_stay_so() -> None:
    parts, gpu = Parts("prompts"), Small(2)
    assert list(parts(gpu, list(range(7)))) == [[0], [2], [4], [6], [8], [10], [12]]
    assert gpu.asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [x for part in parts(gpu, [5, 6]) for x in part] == [10, 12] and gpu.asked[-2:] == [1, 1]


def test_all_at_once_where_they_fit(recwarn: pytest.WarningsRecorder) -> None:
    gpu = Small(8)
    assert list(Parts("prompts")(gpu, [1, 2, 3])) == [[2, 4, 6]] and gpu.asked == [3] and not recwarn


def test_what_one_item_lacks_is_raised() -> None:
    with (
        pytest.warns(UserWarning, match="2 prompts at once do not fit into GPU memory; 1 from here on"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        list(Parts("prompts")(Small(0), [1, 2]))


def test_another_error_is_not_tried_again() -> None:
    asked: list[int] = []

    def fail(items: Sequence[int]) -> None:
        asked.append(len(items))
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        list(Parts("prompts")(fail, [1, 2]))
    assert asked == [2]


def test_one_line_says_what_to_lower() -> None:
    """Settings that do not change the tracks, with half their values."""
    with pytest.raises(InputError) as caught, explaining_memory("video v", GridSettings(encoder_batch=8, points_per_batch=1)):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
    message = str(caught.value)
    lower = "--set gpu_memory=6.0GiB (now 12.0GiB); --set encoder_batch=4 (now 8)"
    assert message == f"video v: out of GPU memory; {lower}; --device cpu, or a GPU with more memory"
    with pytest.raises(ValueError), explaining_memory("video v"):
        raise ValueError


@pytest.mark.filterwarnings("ignore:.*do not fit into GPU memory")
def test_sam2_goes_on_with_half_the_prompts_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracks are those of the whole batch: objects do not see each other."""
    whole = propagate(5, 2, squares(2))
    run, encode, prompts, frames = TransformersSession._propagate, TransformersSession._encode_frames, list[int](), list[int]()

    def small(self: TransformersSession, t: int, part: Any) -> Any:
        prompts.append(len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, t, part)

    def encode_few(self: TransformersSession, pixels: torch.Tensor) -> Any:
        frames.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, pixels)

    monkeypatch.setattr(TransformersSession, "_propagate", small)
    monkeypatch.setattr(TransformersSession, "_encode_frames", encode_few)
    with make_backend().open(as_video(moving(5))) as session:
        parts = session.propagate(2, prompts_of(squares(2), 2))
        assert len(parts.tokens) == len(whole.tokens) > 1
    assert prompts == [len(whole.tokens), *[1] * len(whole.tokens)] and frames == [5, 2, 2, 1]
    np.testing.assert_allclose(parts.tokens, whole.tokens, atol=1e-3)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-3)
    assert (parts.masks.dense() != whole.masks.dense()).mean() < 1e-3


def test_extraction_records_the_line_of_a_video_that_does_not_fit(tmp_path: Path) -> None:
    """The others go on."""
    report = extract(TINY, tmp_path / "3", "train", "test_gpu_memory:Full", tmp_path / "t.zarr", overrides={"wait": 0.0})
    assert len(report.done) == 2
    assert (
        report.failed["v02"].startswith("video v02, 5 frames of ") and "out of GPU memory; --device cpu" in report.failed["v02"]
    )
