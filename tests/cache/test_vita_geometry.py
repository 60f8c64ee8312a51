"""Frames in the segmenter's input, logits in the frame, and masks in cells, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rvos_cache.trackers.vita.geometry import vita_geometry


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((720, 1280), (360, 640), (384, 640)),
        ((480, 854), (360, 640), (384, 640)),  # 640.5 would be too long
        ((1280, 720), (640, 360), (640, 384)),
        ((500, 500), (360, 360), (384, 384)),
        ((480, 640), (360, 480), (384, 480)),
        ((90, 160), (360, 640), (384, 640)),
        ((100, 1000), (64, 640), (64, 640)),
        ((1, 1), (360, 360), (384, 384)),
        ((1, 5000), (1, 640), (32, 640)),
    ],
)
def test_the_shorter_side_is_360_and_the_longer_at_most_640(
    size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    geometry = vita_geometry(size, 360, 640)
    assert (geometry.resized, geometry.padded) == (resized, padded)
    assert geometry.cells() == (padded[0] // 4, padded[1] // 4)


def test_the_input_is_resized_then_normalised_then_zero_padded() -> None:
    geometry = vita_geometry((10, 20), 36, 640)
    assert geometry.resized == (36, 72) and geometry.padded == (64, 96)
    image = geometry.image(np.broadcast_to(np.array([255, 0, 128], np.uint8), (10, 20, 3)).copy())
    # ImageNet's mean and deviation as published, of values from 0 to 1.
    expected = (np.array([1, 0, 128 / 255]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert image.shape == (3, 64, 96) and image.dtype == torch.float32
    assert np.allclose(image[:, :36, :72].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert (image[:, 36:] == 0).all() and (image[:, :, 72:] == 0).all()


def test_reducing_a_frame_antialiases_it() -> None:
    """Alternating columns of 0 and 200 have the mean 100 at a quarter of the width; without antialiasing, 0 or 200."""
    frame = np.zeros((128, 256, 3), np.uint8)
    frame[:, ::2] = 200
    geometry = vita_geometry((128, 256), 32, 640)
    red = geometry.image(frame)[0, :32, 4:60] * 58.395 + 123.675
    assert (red - 100).abs().max() < 8
    resized = np.asarray(Image.fromarray(frame).resize((64, 32), Image.Resampling.BILINEAR), np.float32)
    assert np.allclose(red.numpy(), resized[:, 4:60, 0], atol=1e-3)


def test_logits_are_resized_to_the_frame_without_the_padding() -> None:
    geometry = vita_geometry((50, 100), 32, 640)
    assert geometry.resized == (32, 64) and geometry.padded == (32, 64)
    rising = torch.arange(16.0).expand(8, 16)[None].clone()
    logits = geometry.enlarge(rising)
    assert logits.shape == (1, 50, 100)
    # The middle of pixel x lies at (x + 0.5) * 16 / 100 cells.
    inner = (torch.arange(10, 90) + 0.5) * 0.16 - 0.5
    assert torch.allclose(logits[0, 25, 10:90], inner, atol=0.03)
    wide = vita_geometry((50, 70), 33, 640)
    assert wide.resized == (33, 46) and wide.padded == (64, 64)
    logits = torch.full((1, 16, 16), 5.0)
    logits[:, 10:] = -100
    logits[:, :, 13:] = -100
    assert torch.allclose(wide.enlarge(logits), torch.tensor(5.0))


@pytest.mark.parametrize("size", [(64, 96), (41, 63), (7, 5), (200, 90)])
def test_shares_are_the_part_of_each_cell_that_the_mask_covers(size: tuple[int, int]) -> None:
    geometry = vita_geometry(size, 64, 96)
    masks = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) > 0.6
    shares = geometry.shares(masks)
    h, w = geometry.cells()
    # Each cell is sampled at 40 x 40 points, each in one pixel or in the padding.
    fine = 40
    ys, xs = (
        (torch.arange(n * fine) + 0.5) * 4 / fine * side / scaled for n, side, scaled in zip((h, w), size, geometry.resized)
    )
    inside = torch.zeros(3, h * fine, w * fine)
    keep = (ys < size[0])[:, None] & (xs < size[1])
    inside[:, keep] = masks[:, ys.long().clamp(max=size[0] - 1)][:, :, xs.long().clamp(max=size[1] - 1)][:, keep].float()
    expected = inside.reshape(3, h, fine, w, fine).mean((2, 4))
    assert shares.shape == (3, h, w)
    assert (shares - expected).abs().max() < 0.06
    area = geometry.resized[0] * geometry.resized[1] / (size[0] * size[1]) / 16
    assert torch.allclose(shares.sum((1, 2)), masks.sum((1, 2)) * area, rtol=1e-4)


def test_a_single_pixel_has_a_share_and_an_empty_mask_has_none() -> None:
    geometry = vita_geometry((400, 600), 64, 96)
    masks = torch.zeros(2, 400, 600, dtype=torch.bool)
    masks[0, 399, 599] = True
    shares = geometry.shares(masks).sum((1, 2))
    assert shares[0] > 0 and shares[1] == 0
