"""Augmentation of clips for ReferDINO: what moves together, which sizes and colours come out, which boxes stay valid."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rvos_cache.media.boxes import centre_and_size, corners, last_pixel_boxes
from rvos_cache.trackers.referdino import augment as referdino_augment
from rvos_cache.trackers.referdino.augment import (
    CLIP_SIZES,
    IMAGE_SIZES,
    PERMUTATIONS,
    Colours,
    LiveClip,
    aspect_size,
    augment_clip,
    augment_image,
    crop,
    flip,
    recolour,
    resize,
    sample_colours,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip_of(*boxes: tuple[int, int, int, int] | None, size: tuple[int, int] = (24, 40), sentence: str = "left") -> LiveClip:
    """A frame for each box, x0, y0 up to and with x1, y1, white inside of it."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes):
        if box is not None:
            mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    frames = (masks[..., None] * 255).to(torch.uint8).expand(*masks.shape, 3).contiguous()
    return LiveClip.of(frames, masks, sentence)


def test_boxes_are_those_of_the_masks() -> None:
    clip = clip_of((3, 4, 12, 9), None)
    assert clip.boxes.tolist() == [[3, 4, 12, 9], [0, 0, 0, 0]]
    boxes, valid = clip.targets()
    assert valid.tolist() == [True, False] and boxes[1].tolist() == [0] * 4
    torch.testing.assert_close(boxes[0], torch.tensor([7.5 / 40, 6.5 / 24, 9 / 40, 5 / 24]))
    torch.testing.assert_close(centre_and_size(corners(boxes)), boxes)


def test_an_object_of_one_column_or_row_has_no_valid_box_and_keeps_its_mask() -> None:
    clip = clip_of((3, 4, 3, 9), (3, 4, 9, 4), (3, 4, 4, 5))
    assert clip.targets()[1].tolist() == [False, False, True]
    assert clip.masks.flatten(1).sum(1).tolist() == [6, 7, 4]


def test_a_flip_mirrors_everything() -> None:
    clip = clip_of((3, 4, 12, 9), None, sentence="the leftmost bright dog turning right")
    mirrored = flip(clip)
    assert mirrored.sentence == "the rightmost bright dog turning left"
    torch.testing.assert_close(mirrored.frames[..., 0] == 255, mirrored.masks)
    assert mirrored.masks[0, 4, 40 - 1 - 3] and not mirrored.masks[0, 4, 3]
    # The box of columns 3 to 12 becomes 28 to 37, and not 27 to 36, as released.
    assert mirrored.boxes.tolist() == [[28, 4, 37, 9], [40, 0, 40, 0]]
    assert mirrored.targets()[1].tolist() == [True, False]
    assert torch.equal(flip(mirrored).boxes, clip.boxes) and flip(mirrored).sentence == clip.sentence


def test_a_crop_cuts_boxes_and_keeps_masks() -> None:
    clip = clip_of((3, 4, 12, 9), (20, 10, 30, 20), None)
    out = crop(clip, 6, 8, (10, 16))
    assert out.size == (10, 16) and out.frames.shape == (3, 10, 16, 3)
    assert torch.equal(out.masks, clip.masks[:, 6:16, 8:24])
    assert out.boxes.tolist() == [[0, 0, 4, 3], [12, 4, 16, 10], [0, 0, 0, 0]]
    assert out.targets()[1].tolist() == [True, True, False]
    outside = crop(clip, 0, 13, (10, 7))
    assert outside.targets()[1].tolist() == [False, False, False] and not outside.masks.any()
    assert outside.targets()[0].abs().sum() == 0


def test_a_resize_scales_boxes_with_the_masks() -> None:
    clip = clip_of((4, 4, 11, 9))
    out = resize(clip, (48, 120))
    assert out.boxes.tolist() == [[12, 8, 33, 18]]
    assert out.frames.shape == (1, 48, 120, 3) and last_pixel_boxes(out.masks).tolist() == [[12, 8, 35, 19]]
    # Shares of the frame stay what they are.
    torch.testing.assert_close(out.targets()[0], clip.targets()[0])


@pytest.mark.parametrize(
    ("size", "short_side", "longest", "expected"),
    [
        # 640 · 360 / 640 = 360; 288 · 640 / 360 = 512; 400 · 640 / 427 = 599.53, down; 800 · 427 / 640 = 533.75, to the nearest.
        ((360, 640), 512, 640, (360, 640)),
        ((360, 640), 288, 640, (288, 512)),
        ((427, 640), 400, None, (400, 599)),
        ((640, 427), 400, None, (599, 400)),
        ((427, 640), 768, 800, (534, 800)),
        ((500, 500), 512, 640, (512, 512)),
        ((720, 1280), 720, None, (720, 1280)),
        ((2, 5000), 288, 640, (1, 2500)),
    ],
)
def test_sizes_are_rounded_as_in_detr(
    size: tuple[int, int], short_side: int, longest: int | None, expected: tuple[int, int]
) -> None:
    assert aspect_size(size, short_side, longest) == expected


def test_no_colours_change_nothing() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(recolour(frame, Colours()), frame)


def test_each_colour_by_hand() -> None:
    frame = np.array([[[10, 100, 250], [200, 50, 0]]], np.uint8)

    def out(**changes: object) -> list[list[int]]:
        return recolour(frame, Colours(**changes))[0].tolist()  # type: ignore[arg-type]

    assert out(brightness=20.0) == [[30, 120, 255], [220, 70, 20]]
    assert out(brightness=-32.0) == [[0, 68, 218], [168, 18, 0]]
    assert out(contrast=1.5) == [[15, 150, 255], [255, 75, 0]]
    assert out(channels=(2, 0, 1)) == [[250, 10, 100], [0, 200, 50]]
    # Brightness comes before contrast.
    assert out(brightness=10.0, contrast=0.5) == [[10, 55, 130], [105, 30, 5]]


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(0.5, 1.0), st.floats(-18, 18))
def test_saturation_and_hue_are_python_s(colour: tuple[int, int, int], saturation: float, hue: float) -> None:
    h, s, v = colorsys.rgb_to_hsv(*colour)
    expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)
    found = recolour(np.array([[colour]], np.uint8), Colours(saturation=saturation, hue=hue))[0, 0]
    np.testing.assert_allclose(found, expected, atol=0.6)


@pytest.mark.parametrize("behind", [False, True])
def test_all_colours_together(behind: bool) -> None:
    """Against Python's own colours, with contrast before hue and behind it; saturation beyond 1 gives values below 0."""
    frame = np.array([[[200, 40, 90]]], np.uint8)
    h, s, v = colorsys.rgb_to_hsv(*((frame[0, 0].astype(float) + 30) * (1 if behind else 0.5)))
    expected = np.array(colorsys.hsv_to_rgb((h + 10 / 360) % 1, s * 1.5, v)) * (0.5 if behind else 1)
    assert expected.min() < 0
    found = recolour(frame, Colours(30, 0.5, 1.5, 10, (1, 2, 0)))[0, 0]
    np.testing.assert_allclose(found, expected[[1, 2, 0]].clip(0, 255), atol=0.6)


def test_colours_are_sampled_from_their_ranges() -> None:
    generator = seeded(0)
    drawn = [sample_colours(generator) for _ in range(2000)]
    for name, least, largest, neutral in (
        ("brightness", -32, 32, 0), ("contrast", 0.5, 1.5, 1), ("saturation", 0.5, 1.5, 1), ("hue", -18, 18, 0),
    ):  # fmt: skip
        values = np.array([getattr(colours, name) for colours in drawn])
        changed = values[values != neutral]
        assert 0.45 < len(changed) / 2000 < 0.55, name
        spread = largest - least
        assert least <= changed.min() < least + 0.02 * spread and largest - 0.02 * spread < changed.max() <= largest, name
        assert abs(changed.mean() - neutral) < 0.05 * spread
    shares = {p: np.mean([colours.channels == p for colours in drawn]) for p in PERMUTATIONS}
    assert len(shares) == 6 and shares[(0, 1, 2)] == pytest.approx(7 / 12, abs=0.04)
    assert all(shares[p] == pytest.approx(1 / 12, abs=0.03) for p in PERMUTATIONS[1:])


def test_each_frame_has_colours_of_its_own() -> None:
    grey = torch.full((8, 4, 4, 3), 100, dtype=torch.uint8)
    clip = LiveClip.of(grey, torch.ones(8, 4, 4, dtype=torch.bool), "")
    out = referdino_augment._colours(clip, seeded(1))
    assert len({tuple(frame[0, 0].tolist()) for frame in out.frames}) > 2
    assert torch.equal(out.masks, clip.masks) and torch.equal(clip.frames, grey)


@pytest.fixture
def sizes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels and masks are not resampled, only their sizes change."""
    monkeypatch.setattr(referdino_augment, "resize_pixels", lambda x, size: torch.empty(len(x), *size, 3, dtype=torch.uint8))
    monkeypatch.setattr(referdino_augment, "resize_masks", lambda x, size: torch.empty(len(x), *size, dtype=torch.bool))


@pytest.mark.usefixtures("sizes_alone")
@pytest.mark.parametrize("kind", ["clip", "image"])
def test_the_sizes_are_the_released_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frames of 480 x 640: whole, their short sides are all of the set that the limit allows; a crop's are those of its window."""
    sizes = {"clip": CLIP_SIZES, "image": IMAGE_SIZES}[kind]
    clip, generator = clip_of((100, 100, 400, 300), size=(480, 640)), seeded(0)
    windows: list[tuple[int, int, int, int]] = []
    cut = referdino_augment.crop

    def watched(own: LiveClip, top: int, left: int, size: tuple[int, int]) -> LiveClip:
        assert min(own.size) in (400, 500, 600) and own.size == aspect_size((480, 640), min(own.size))
        assert 0 <= top <= own.size[0] - size[0] and 0 <= left <= own.size[1] - size[1]
        assert all(384 <= side <= min(600, whole) for side, whole in zip(size, own.size))
        windows.append((*size, min(own.size), top))
        return cut(own, top, left, size)

    monkeypatch.setattr(referdino_augment, "crop", watched)
    whole, cropped, count = set(), set(), 400
    for _ in range(count):
        before = len(windows)
        out = referdino_augment._sized(clip, sizes, generator)
        assert out.frames.shape[1:3] == out.masks.shape[1:] == out.size
        if len(windows) == before:
            assert out.size in {aspect_size((480, 640), short, sizes.longest_whole) for short in sizes.whole}
            whole.add(out.size)
        else:
            window = windows[-1][:2]
            assert out.size in {aspect_size(window, short, sizes.longest_after_crop) for short in sizes.after_crop}
            assert max(out.size) <= 640
            cropped.add(min(out.size))
    assert 0.4 * count < len(windows) < 0.6 * count
    assert whole == {aspect_size((480, 640), short, sizes.longest_whole) for short in sizes.whole}
    assert cropped >= set(sizes.after_crop[:6])
    assert {short for *_, short, _ in windows} == {400, 500, 600} and len({top for *_, top in windows}) > 30


def test_sets_of_sizes() -> None:
    assert CLIP_SIZES == ((288, 320, 352, 392, 416, 448, 480, 512), 640, (288, 320, 352, 392, 416, 448, 480, 512), 640)
    assert IMAGE_SIZES.whole == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768) and IMAGE_SIZES.longest_whole == 800
    assert IMAGE_SIZES[2:] == ((296, 328, 360, 392, 416, 448, 480, 512), 640)


def test_frames_masks_and_boxes_move_together() -> None:
    """Without colours a white object stays where its mask is, and its box around what is left of it."""
    clip, generator = clip_of((60, 30, 110, 70), (10, 20, 40, 90), size=(100, 150)), seeded(3)
    for _ in range(6):
        out = augment_image(clip, generator)
        inside = out.frames[..., 0] > 127
        assert (inside != out.masks).float().mean() < 0.02
        boxes, valid = out.targets()
        own = last_pixel_boxes(out.masks)
        pixel = max(out.size) / 100
        assert valid.all() or not out.masks[~valid].flatten(1).any()
        assert (out.boxes[valid] - own[valid]).abs().max() <= 2 * pixel if valid.any() else True
        assert (boxes[valid] >= 0).all() and (corners(boxes[valid]) <= 1 + 1e-6).all()


def test_the_same_seed_gives_the_same_clip() -> None:
    clip = clip_of((60, 30, 110, 70), (10, 20, 40, 90), size=(100, 150), sentence="on the left")
    one, two, other = (augment_clip(clip, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.frames, two.frames) and torch.equal(one.boxes, two.boxes) and one.sentence == two.sentence
    assert one.frames.shape != other.frames.shape or not torch.equal(one.frames, other.frames)
    sentences = [referdino_augment._flip(clip, generator).sentence for generator in map(seeded, range(200))]
    assert 70 < sentences.count("on the right") < 130 and set(sentences) == {"on the left", "on the right"}


def test_images_keep_their_colours() -> None:
    clip = clip_of((1, 1, 3, 3), size=(6, 8))
    plain = replace(clip, frames=torch.full((1, 6, 8, 3), 77, dtype=torch.uint8))
    assert all((augment_image(plain, seeded(seed)).frames == 77).all() for seed in range(3))
    assert any((augment_clip(plain, seeded(seed)).frames != 77).any() for seed in range(3))
