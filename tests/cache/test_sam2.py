"""SAM 2 in batches of objects against runs of transformers that loop over objects and encode again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from numpy.typing import NDArray
from plain_sam2 import image_values, plain_tracks, video_values
from sam2_video import FRAMES, SIZE, TOLERANCE, as_video, make_backend, moving, prompts_of, propagate, squares

from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.trackers.sam2.preprocess import (
    image_pixels,
    normalise,
    resize_bicubic,
    resize_mask_prompts,
    scale_points,
    video_pixels,
)
from rvos_cache.trackers.sam2.schedule import schedule
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


@pytest.fixture
def precise_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories in float32 in both runs: rounding them to bfloat16 turns a difference of 1e-7 into one of 1e-3."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("precise_memories")
@pytest.mark.parametrize("t", [0, 7, FRAMES - 1])
def test_a_batch_equals_a_loop_over_objects_that_encodes_again(t: int) -> None:
    backend = make_backend()
    tracks = propagate(FRAMES, t, squares(t), backend)
    tokens, scores, pixels = plain_tracks(backend.network.model, list(moving(FRAMES)), t, squares(t))
    np.testing.assert_allclose(tracks.tokens, tokens, **TOLERANCE)
    np.testing.assert_allclose(tracks.scores, scores, **TOLERANCE)
    assert (tracks.masks.dense() != pixels).mean() < 1e-4
    # If all objects or frames were alike, a wrong memory would pass.
    others = np.delete(tokens, t, 1)
    assert others.std(0).max() > 0.1 and others.std(1).max() > 0.1
    assert (scores < 0).any() and (np.delete(scores, t, 1) > 0).any()


@pytest.mark.usefixtures("precise_memories")
def test_an_empty_mask_prompts_an_object_that_is_hidden_in_its_frame() -> None:
    masks = squares(2)
    masks[1] = False
    backend = make_backend()
    tracks = propagate(5, 2, masks, backend)
    tokens, scores, _ = plain_tracks(backend.network.model, list(moving(5)), 2, masks)
    np.testing.assert_allclose(tracks.tokens, tokens, **TOLERANCE)
    np.testing.assert_allclose(tracks.scores, scores, **TOLERANCE)
    assert tracks.scores[:, 2].tolist() == [10, -10, 10] and not tracks.masks.area()[1, 2]
    no_object = backend.network.model.no_object_pointer[0]
    np.testing.assert_allclose(tracks.tokens[1, 2], no_object, rtol=1e-6)


@pytest.mark.usefixtures("precise_memories")
def test_a_batch_equals_its_objects_alone() -> None:
    together = propagate(9, 4, squares(4))
    for b in range(3):
        alone = propagate(9, 4, squares(4)[b : b + 1])
        np.testing.assert_allclose(alone.tokens[0], together.tokens[b], **TOLERANCE)
        assert (alone.masks.dense() != together.masks.select([b]).dense()).mean() < 1e-4


FEWER = {
    "num_maskmem": 3, "max_object_pointers_in_encoder": 4, "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False, "multimask_output_for_tracking": False,
}  # fmt: skip


@pytest.mark.usefixtures("precise_memories")
@pytest.mark.parametrize("changes", [FEWER, {"memory_attention_num_attention_heads": 2}])
def test_other_configurations_equal_the_loop_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    backend = TransformersBackend(GridSettings(checkpoint=str(tiny_sam2.tiny_sam2(tmp_path, **changes))))
    tracks = propagate(9, 3, squares(3), backend)
    tokens, scores, pixels = plain_tracks(backend.network.model, list(moving(9)), 3, squares(3))
    np.testing.assert_allclose(tracks.tokens, tokens, **TOLERANCE)
    np.testing.assert_allclose(tracks.scores, scores, **TOLERANCE)
    assert (tracks.masks.dense() != pixels).mean() < 1e-4
    assert np.delete(tokens[0], 3, 0).std(0).max() > 0.1


def test_a_video_of_one_frame_returns_its_prompts() -> None:
    tracks = propagate(1, 0, squares(0))
    assert tracks.tokens.shape == (3, 1, tiny_sam2.WIDTH) and (tracks.scores == 10).all()
    areas, expected = tracks.masks.area()[:, 0], squares(0).sum((1, 2))
    assert (np.abs(areas - expected) < 0.25 * expected).all()


@pytest.mark.parametrize(("num_maps", "num_pointers"), [(7, 16), (4, 6), (2, 3), (1, 1), (5, 2)])
@pytest.mark.parametrize("prompt", [0, 1, 3, 11, 17, 19])
def test_a_schedule_is_what_sam_2_attends_to(prompt: int, num_maps: int, num_pointers: int) -> None:
    """Against the published rule, applied to every memory there ever was, with the maps in the slots they were written to."""
    frames = 20
    plan = schedule(prompt, frames, num_maps, num_pointers)
    tracked = [prompt]
    slots = [prompt] + [-1] * (plan.slots - 1)
    for backward, steps in ((False, plan.forward), (True, plan.backward)):
        if backward:
            slots[1 : 1 + len(plan.behind)] = plan.behind
        for step in steps:
            t, sign = step.frame, -1 if backward else 1
            maps = {0: prompt} | {k: t - sign * k for k in range(num_maps - 1, 0, -1)}
            maps = {k: s for k, s in maps.items() if s in tracked and (s != prompt or k == 0)}
            pointers = [(prompt, sign * (t - prompt))] + [(t - sign * k, k) for k in range(1, num_pointers)]
            pointers = [(s, k) for i, (s, k) in enumerate(pointers) if s in tracked and (s != prompt or i == 0)]
            assert {distance: slots[i] for i, distance in enumerate(step.distances)} == maps
            assert list(step.pointers) == pointers
            assert len(step.distances) <= plan.slots and 0 < step.slot < plan.slots
            slots[step.slot] = t
            tracked.append(t)
    assert sorted(tracked) == list(range(frames)) and set(plan.behind) <= set(range(prompt + 1, frames))


def test_frames_are_prepared_as_meta_s_two_predictors_prepare_them() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    video, image = (normalise(resize(frame, 128)[None])[0] for resize in (video_pixels, image_pixels))
    np.testing.assert_allclose(video, video_values(frame, 128), atol=1e-5)
    np.testing.assert_allclose(image, image_values(frame, 128), atol=1e-5)
    assert np.abs(video - image).max() > 0.1


@pytest.mark.parametrize(
    ("size", "side"), [((72, 128), 104), ((61, 47), 128), ((41, 163), 16), ((5, 7), 3), ((64, 64), 64), ((1, 2), 8)]
)
def test_a_gpu_resizes_frames_to_the_same_pixels(size: tuple[int, int], side: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, *size, 3), np.uint8)
    frames[1] = np.where(rng.random((*size, 1)) < 0.5, 0, 255)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    resized = resize_bicubic(torch.from_numpy(frames).to(where), side).cpu()
    assert torch.equal(resized, torch.stack([video_pixels(frame, side) for frame in frames]))


def test_points_are_scaled_along_each_axis() -> None:
    assert scale_points(np.array([[10, 5], [20, 50]]), (50, 100), 200).tolist() == [[20, 20], [40, 200]]
    assert scale_points(np.array([[10, 5, 20, 50]]), (50, 100), 200).tolist() == [[20, 20, 40, 200]]


def test_a_mask_prompt_is_cut_at_one_half_and_stays_empty_only_if_it_was() -> None:
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    masks[1, 40, 40] = True
    resized = resize_mask_prompts(masks, 16)
    assert resized.shape == (3, 1, 16, 16) and resized[0].sum() == 16 and resized[0, 0, 2:6, 2:6].all()
    assert resized[1, 0, 10, 10] == 1 and resized[1].sum() == 1 and not resized[2].any()


def test_half_precision_gives_nearly_the_same_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision of a GPU, on the CPU: every part takes bfloat16; the prompt frame attends to no memory."""
    whole = propagate(4, 1, squares(1))
    monkeypatch.setattr("rvos_cache.trackers.sam2.transformers_backend.native_dtype", lambda device: torch.bfloat16)
    backend = make_backend(**tiny_sam2.GRID)
    with backend.open(as_video(moving(4))) as session:
        half = session.propagate(1, prompts_of(squares(1), 1))
        assert session.features.in_memory[0].dtype == torch.bfloat16
        assert session.grid_masks(1, backend.settings).shape[0] > 0
    spread = whole.tokens[:, 1].std()
    assert np.abs(half.tokens[:, 1] - whole.tokens[:, 1]).max() < 0.2 * spread
    assert half.tokens.dtype == np.float32 and np.isfinite(half.tokens).all()
    assert half.masks.frames(1, 2) == whole.masks.frames(1, 2)


@pytest.mark.parametrize("features", ["image", "video"])
def test_boxes_are_computed_in_float32_whatever_the_precision_of_tracking(monkeypatch: pytest.MonkeyPatch, features: str) -> None:
    boxes, settings = np.array([[3, 3, 40, 40]], np.float32), BoxSettings(prompt_features=features)
    dtypes: list[torch.dtype] = []
    backend = make_backend()
    decode = backend.network.decode

    def recorded(*inputs: Any) -> Any:
        outputs = decode(*inputs)
        dtypes.append(outputs[0].dtype)
        return outputs

    monkeypatch.setattr(backend.network, "decode", recorded)
    with backend.open(as_video(moving(2))) as session:
        whole = session.box_masks(1, boxes, settings)
        backend.dtype = torch.bfloat16
    with backend.open(as_video(moving(2))) as session:
        half = session.box_masks(1, boxes, settings)
    assert dtypes == [torch.float32] * 2
    if features == "image":
        assert half[0] == whole[0] and half[1] == whole[1]


def test_positions_do_not_depend_on_which_precision_runs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvos_cache.trackers.sam2.transformers_backend.native_dtype", lambda device: torch.bfloat16)
    tokens = []
    for boxes_first in (False, True):
        with make_backend().open(as_video(moving(4))) as session:
            if boxes_first:
                session.box_masks(1, np.array([[3, 3, 40, 40]], np.float32), BoxSettings())
            tokens.append(session.propagate(1, prompts_of(squares(1), 1)).tokens)
    assert np.array_equal(*tokens)


def test_a_compiled_encoder_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or (lambda *inputs: f(*inputs)))
    backend = make_backend(compile=True)
    assert len(compiled) == 1 and backend.weight_hashes() == make_backend().weight_hashes()
    assert propagate(2, 0, squares(0), backend).masks == propagate(2, 0, squares(0)).masks


def test_an_error_of_reading_a_frame_is_raised() -> None:
    def source(t: int) -> NDArray[np.uint8]:
        if t == 3:
            raise InputError("00003.jpg: not a whole image")
        return moving(5)[t]

    with make_backend().open(Video("v", tuple("01234"), SIZE, source)) as session, pytest.raises(InputError, match="00003.jpg"):
        session.propagate(0, prompts_of(squares(0), 0))


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SAM 2 checkpoint") as error:
        TransformersBackend(GridSettings(checkpoint=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_file_of_meta_s_is_sent_to_the_converter() -> None:
    with pytest.raises(InputError, match="rvos-cache convert-sam2 sam2_hiera_large.pt --out DIR"):
        TransformersBackend(GridSettings(checkpoint="sam2_hiera_large.pt"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_every": 0}, {"prompt_every": "third"}, {"gpu_memory": "lots"}, {"same_iou": 2}, {"batch": 0},
        {"rounds": "theirs"}, {"prompt_features": "both"},
    ],
)  # fmt: skip
def test_an_invalid_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        build(GridSettings, wrong, "--set")
