"""The SAM 2 backends against recorded values of Meta's package, 2.0 and 2.1: tokens, scores and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from golden_sam2 import GRID, PROMPT_FRAME, SIDE, VERSIONS, golden, golden_checkpoint, unpack
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2 import generate
from rvos_cache.trackers.sam2.backend import Backend, Propagated, make_prompts
from rvos_cache.trackers.sam2.preprocess import image_pixels, normalise, resize_bicubic, scale_points, video_pixels
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings
from rvos_cache.trackers.sam2.tracker import open_backend
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

pytestmark = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """The recorded values are float32; on a GPU SAM 2 runs in bfloat16."""
    with tiny_sam2.without_gpu():
        yield


def still(frame: NDArray[np.uint8]) -> Video:
    return Video("v", ("0",), frame.shape[:2], lambda t: frame)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The smallest IoU of masks (..., H, W); 1 where both are empty."""
    shared, union = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return float(np.where(union == 0, 1, shared / np.maximum(union, 1)).min())


def propagate(backend: Backend) -> Propagated:
    frames = golden()["input.frames"].numpy()
    prompts = make_prompts(RleMasks.from_dense(unpack(golden()["input.prompt_masks"])[:, None]), PROMPT_FRAME)
    video = Video("v", tuple(map(str, range(len(frames)))), frames.shape[1:3], frames.__getitem__)
    with backend.open(video) as session:
        return session.propagate(PROMPT_FRAME, prompts)


def assert_recorded(tracks: Propagated, version: str) -> None:
    pointers, scores = (golden()[f"output.{version}.{name}"].numpy() for name in ("pointers", "score_logits"))
    # Memories are rounded to bfloat16, so a difference of 1e-7 may grow to 1e-5.
    errors = np.linalg.norm(tracks.tokens - pointers, axis=-1) / np.linalg.norm(pointers, axis=-1)
    assert errors.max() < 1e-4
    np.testing.assert_allclose(tracks.scores, scores, rtol=1e-4, atol=1e-4)
    assert iou(tracks.masks.dense(), unpack(golden()[f"output.{version}.masks"])) >= 0.999


def test_tracks_are_those_of_meta_s_package(version: str) -> None:
    assert_recorded(propagate(TransformersBackend(GridSettings(checkpoint=golden_checkpoint(version)))), version)


def test_tracks_of_meta_s_package_itself_where_it_is_installed(version: str) -> None:
    pytest.importorskip("sam2")
    assert_recorded(propagate(open_backend(GridSettings(checkpoint=golden_checkpoint(version), backend="official"))), version)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid", "wide_grid"])
def test_grid_masks_are_those_of_meta_s_generator(version: str, name: str) -> None:
    frame = golden()[{"grid": "input.grid_frame", "wide_grid": "input.wide_frame"}[name]].numpy()
    backend = TransformersBackend(GridSettings(checkpoint=golden_checkpoint(version), **GRID))
    with backend.open(still(frame)) as session:
        masks = session.grid_masks(0, backend.settings).dense()[:, 0]
    expected = unpack(golden()[f"output.{version}.{name}.masks"])
    assert len(expected) > 1 and masks.shape == expected.shape
    assert iou(masks, expected) >= 0.999


def test_boxes_give_the_masks_of_meta_s_predictor_within_the_frame_and_beyond(version: str) -> None:
    frame, boxes = golden()["input.wide_frame"].numpy(), golden()["input.boxes"].numpy()
    settings = BoxSettings(checkpoint=golden_checkpoint(version))
    with TransformersBackend(settings).open(still(frame)) as session:
        masks, stability = session.box_masks(0, boxes, settings)
    assert iou(masks.dense()[:, 0], unpack(golden()[f"output.{version}.boxes.masks"])) >= 0.999
    logits = golden()[f"output.{version}.boxes.low_res_logits"].numpy()
    # A logit near an offset may fall on either side of it.
    expected = (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2))
    np.testing.assert_allclose(stability, expected, atol=2e-3)


def test_points_give_the_logits_of_meta_s_predictor(version: str) -> None:
    frame, points = golden()["input.grid_frame"].numpy(), golden()["input.points"].numpy()
    backend = TransformersBackend(GridSettings(checkpoint=golden_checkpoint(version)))
    with backend.open(still(frame)) as session, backend.precision():
        features = session._prompt_features(0, backend.settings, backend.network)
        placed = scale_points(points, frame.shape[:2], SIDE)
        logits, predicted_iou = generate._decode_prompts(backend.network, features, True, points=placed)
    expected = golden()[f"output.{version}.points.low_res_logits"]
    torch.testing.assert_close(logits.clamp(-32, 32), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(predicted_iou, golden()[f"output.{version}.points.predicted_iou"], rtol=0, atol=1e-4)


def test_one_encoding_gives_other_prompt_masks(version: str) -> None:
    """The price of prompt_features=video, on random weights; and that the grid test would notice a wrong resizing."""
    frame = golden()["input.wide_frame"].numpy()
    values: dict[str, Any] = {"checkpoint": golden_checkpoint(version), **GRID, "prompt_features": "video"}
    backend = TransformersBackend(GridSettings(**values))
    with backend.open(still(frame)) as session:
        masks = session.grid_masks(0, backend.settings).dense()[:, 0]
    expected = unpack(golden()[f"output.{version}.wide_grid.masks"])
    assert masks.shape != expected.shape or iou(masks, expected) < 0.999


def test_frames_are_resized_as_meta_s_predictors_resize_them(version: str) -> None:
    for frame, resized in zip(golden()["input.frames"].numpy(), golden()["input.frames_resized"]):
        assert torch.equal(video_pixels(frame, SIDE).permute(1, 2, 0), resized)
        assert torch.equal(resize_bicubic(torch.from_numpy(frame[None]), SIDE)[0].permute(1, 2, 0), resized)
    rows = normalise(image_pixels(golden()["input.wide_frame"].numpy(), SIDE)[None])[0, :, ::8]
    torch.testing.assert_close(rows, golden()["output.wide_frame_rows"], rtol=0, atol=1e-5)
