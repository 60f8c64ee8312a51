"""Masks of tensors as runs, against pycocotools; without a GPU its kernels are run by the interpreter of Triton."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    # Triton reads it when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from rvos_cache.mask_encoding import CAPACITY, Encoding, encode_masks, from_changes  # noqa: E402
from rvos_cache.masks import RleMasks  # noqa: E402
from rvos_cache.trackers.sam2.track_writer import TrackWriter  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"


def pixels(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Empty, full, one pixel, the first pixel, the last pixel, all but the first, stripes and noise."""
    height, width = size
    out = np.zeros((9, height, width), bool)
    out[1] = out[5] = True
    out[2, height // 2, width // 3] = out[3, 0, 0] = out[4, -1, -1] = True
    out[5, 0, 0] = False
    out[6, ::2] = out[7, :, ::2] = True
    out[8] = np.random.default_rng(0).random(size) < 0.5
    return out


def test_changes_of_pixels_are_masks() -> None:
    masks = pixels((13, 9))
    changes = np.diff(masks.transpose(0, 2, 1).reshape(9, -1), prepend=False, axis=1)
    assert from_changes(changes.nonzero()[1], changes.sum(1).cumsum(), (13, 9)) == RleMasks.from_dense(masks[:, None])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("size", [(7, 5), (130, 70), (720, 400)])
def test_masks_are_those_of_pycocotools(size: tuple[int, int], dtype: torch.dtype) -> None:
    """At the largest size noise has more runs than are copied as runs."""
    masks = pixels(size)
    values = torch.from_numpy(masks).to(DEVICE, dtype)
    if dtype.is_floating_point:
        values = values - 0.5
    expected = RleMasks.from_dense(masks[:, None])
    assert encode_masks(values) == expected
    assert encode_masks(values.transpose(1, 2).contiguous().transpose(1, 2)) == expected
    noise = values[8:].expand(3, -1, -1)
    assert encode_masks(noise) == RleMasks.from_dense(masks[[8, 8, 8], None])
    assert size[0] < 720 or np.diff(masks[8].T.ravel()).sum() > CAPACITY
    assert encode_masks(values[:0]).shape == (0, 1)


def test_other_masks_may_be_computed_before_the_first_ones_are_read() -> None:
    parts = [torch.from_numpy(np.roll(pixels((61, 47)), t, 2)).to(DEVICE) for t in range(4)]
    expected = [RleMasks.from_dense(part.cpu().numpy()[:, None]) for part in parts]
    waiting = [Encoding(part) for part in parts]
    parts.clear()
    assert [encoding.result() for encoding in waiting] == expected


def test_a_thread_encodes_the_masks_of_tracks() -> None:
    dense = np.stack([np.roll(pixels((61, 47)), t, 2) for t in range(3)], 1)
    with TrackWriter(3, (61, 47)) as writer:
        for t in range(3):
            masks = torch.from_numpy(dense[:, t]).to(DEVICE)
            writer.put(t, torch.zeros(9, 2, device=DEVICE), torch.zeros(9, device=DEVICE), masks.float() - 0.5)
        assert writer.tracks().masks == RleMasks.from_dense(dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("size", [(7, 5), (64, 32), (65, 33), (130, 70)])
def test_the_kernel_finds_the_changes(size: tuple[int, int], dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from rvos_cache.mask_encoding import kernels

    dense = torch.from_numpy(pixels(size)).to(DEVICE)
    masks: Tensor = dense if dtype == torch.bool else torch.where(dense, 0.5, -0.0)
    stops = torch.zeros(9, dtype=torch.int32, device=DEVICE)
    positions = torch.full((9 * (size[0] + 1) * size[1],), -7, dtype=torch.int32, device=DEVICE)
    kernels.flips(masks, stops, positions)
    changes = positions.cpu().numpy()[: int(stops[-1])]
    assert from_changes(changes, stops.cpu().numpy(), size) == RleMasks.from_dense(dense.cpu().numpy()[:, None])
    # Beyond the end nothing is written, also where there is no room.
    assert (positions[int(stops[-1]) :] == -7).all()
    few = torch.full((20,), -7, dtype=torch.int32, device=DEVICE)
    kernels.flips(masks, stops, few[:10])
    assert torch.equal(few[:10], positions[:10]) and (few[10:] == -7).all()
