"""Augmentations of clips: pixels against Pillow, masks against their pixels, what moves together, who may use which."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.media.clips import resize_masks, resize_pixels
from rvos_cache.media.resize import shortest_edge
from rvos_cache.types import FeatureSpec
from rvos_select.contracts import write_caches
from rvos_select.data import augment_clips
from rvos_select.data.augment import AUGMENTATIONS, Clip, changes_sentence, check_augmentation, keeps_sentence, load_augmentation
from rvos_select.data.augment_clips import crop_and_resize, horizontal_flip_frames, rotate_over_clip
from rvos_select.data.caches import TrackSource
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.samples import load_video
from rvos_select.data.texts import TextSource
from rvos_select.selectors import Selector


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), generator=seeded(seed), dtype=torch.uint8)


def picture(frames: int, height: int, width: int) -> Clip:
    """A clip whose mask is where its first colour is above 127: a smooth pattern, the same in all frames."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = (127.5 + 127 * torch.sin(x / 37.0 + 1) * torch.cos(y / 29.0)).to(torch.uint8)
    pixels = torch.stack([wave, (x * 255 // width).to(torch.uint8), (y * 255 // height).to(torch.uint8)], -1)
    return Clip(pixels[None].repeat(frames, 1, 1, 1), (wave > 127)[None, None].repeat(1, frames, 1, 1), "left", still=True)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4), st.integers(0, 99))
def test_pixels_are_those_of_pillow(sizes: tuple[int, int, int, int], seed: int) -> None:
    """Noise, smaller and larger: rows and columns are each rounded to 8 bits, so that a pixel may be 2 off, and hardly any is."""
    height, width, new_height, new_width = sizes
    pixels = noise(2, height, width, seed)
    resized = resize_pixels(pixels, (new_height, new_width))
    assert resized.dtype == torch.uint8 and resized.shape == (2, new_height, new_width, 3)
    for own, frame in zip(resized, pixels):
        expected = np.asarray(Image.fromarray(frame.numpy()).resize((new_width, new_height), Image.Resampling.BILINEAR))
        errors = np.abs(own.numpy().astype(int) - expected)
        assert errors.max() <= 2 and (errors > 1).sum() <= 2 + 0.001 * errors.size


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4), st.integers(0, 99))
def test_masks_are_those_of_pillow(sizes: tuple[int, int, int, int], seed: int) -> None:
    """But where a centre lies on a border, which Pillow's sums of floating-point steps may miss."""
    height, width, new_height, new_width = sizes
    rows, columns = (((2 * np.arange(new) + 1) * old % (2 * new)) != 0 for old, new in ((height, new_height), (width, new_width)))
    masks = torch.rand(2, 1, height, width, generator=seeded(seed)) < 0.5
    resized = resize_masks(masks, (new_height, new_width))
    for own, mask in zip(resized[:, 0], masks[:, 0]):
        expected = Image.fromarray(mask.numpy().astype(np.uint8)).resize((new_width, new_height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(own.numpy()[rows][:, columns], (np.asarray(expected) > 0)[rows][:, columns])
    assert resize_masks(torch.tensor([[False, False, True, True]]), (1, 2)).tolist() == [[False, True]]
    assert resize_masks(torch.arange(6)[None] == 3, (1, 3)).tolist() == [[False, True, False]]
    assert resize_masks(masks[:0], (3, 4)).shape == (0, 1, 3, 4)


def test_sizes_by_hand() -> None:
    """360 x 640 at 288 to 512; the long side of 16:9 frames is never above 768, and nothing has no pixels."""
    assert shortest_edge((360, 640), 288, 768) == (288, 512)
    assert shortest_edge((360, 640), 448, 768) == (432, 768)
    assert shortest_edge((640, 360), 512, 768) == (768, 432)
    assert shortest_edge((480, 480), 512, 768) == (512, 512)
    assert shortest_edge((427, 640), 600, 1333) == (600, 899)
    assert shortest_edge((2, 5000), 288, 768) == (1, 768)


def test_a_crop_has_the_sizes_of_the_paper_and_moves_with_its_masks() -> None:
    clip = picture(4, 120, 200)
    shapes = Counter[tuple[int, ...]]()
    for seed in range(60):
        out = crop_and_resize(clip, seeded(seed))
        frames, height, width, _ = out.pixels.shape
        assert frames == 4 and out.truth.shape == (1, 4, height, width) and out.sentence == "left" and out.still
        assert min(height, width) in range(288, 513, 32) or max(height, width) == 768
        assert max(height, width) <= 768
        # Bilinear pixels and nearest masks differ along edges alone.
        wrong = (out.pixels[..., 0] > 127) != out.truth[0]
        assert wrong.float().mean() < 0.02
        shapes[height, width] += 1
    assert len(shapes) > 15
    assert torch.equal(crop_and_resize(clip, seeded(3)).pixels, crop_and_resize(clip, seeded(3)).pixels)


def test_half_of_the_clips_are_cropped_and_the_window_glides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the red and green ramps of a clip; the crop is between the two resizings, so those are watched."""
    windows = []
    crop = augment_clips._crop
    monkeypatch.setattr(
        augment_clips,
        "_crop",
        lambda clip, tops, lefts, window: (
            windows.append((clip.pixels.shape[1:3], tops, lefts, window)) or crop(clip, tops, lefts, window)
        ),
    )
    for seed in range(120):
        crop_and_resize(picture(5, 36, 64), seeded(seed))
    assert 40 < len(windows) < 80
    moving = 0
    for (height, width), tops, lefts, window in windows:
        assert min(height, width) in (400, 500, 600)
        for side, starts, length in ((height, tops, window[0]), (width, lefts, window[1])):
            assert min(384, side) <= length <= min(600, side)
            assert all(0 <= start <= side - length for start in starts) and len(starts) == 5
            steps = np.diff(starts)
            assert steps.max() - steps.min() <= 1
            moving += starts[0] != starts[-1]
    assert {min(size) for size, *_ in windows} == {400, 500, 600}
    assert moving > len(windows)
    assert augment_clips._glide(10, 1, seeded(0))[0] in range(11)


def test_a_window_is_cut_where_it_says() -> None:
    clip = replace(picture(3, 20, 30), pixels=noise(3, 20, 30))
    out = augment_clips._crop(clip, [0, 1, 2], [5, 4, 3], (10, 12))
    for t, (y, x) in enumerate(((0, 5), (1, 4), (2, 3))):
        assert torch.equal(out.pixels[t], clip.pixels[t, y : y + 10, x : x + 12])
        assert torch.equal(out.truth[:, t], clip.truth[:, t, y : y + 10, x : x + 12])


def test_a_flip_of_frames_keeps_the_words() -> None:
    clip = replace(picture(2, 6, 8), pixels=noise(2, 6, 8))
    clips = [horizontal_flip_frames(clip, seeded(seed)) for seed in range(40)]
    flipped = [c for c in clips if not torch.equal(c.pixels, clip.pixels)]
    assert 10 < len(flipped) < 30 and {c.sentence for c in clips} == {"left"}
    assert all(torch.equal(c.pixels, clip.pixels.flip(2)) and torch.equal(c.truth, clip.truth.flip(3)) for c in flipped)


def test_a_rotation_is_pillows_and_grows_over_the_clip() -> None:
    clip = picture(4, 90, 120)
    angles = []
    for seed in range(8):
        out = rotate_over_clip(clip, seeded(seed))
        angle = 15 * (2 * torch.rand((), generator=seeded(seed)).item() - 1)
        angles.append(angle)
        assert torch.equal(out.pixels[0], clip.pixels[0]) and torch.equal(out.truth[:, 0], clip.truth[:, 0])
        for t in range(1, 4):
            image = Image.fromarray(clip.pixels[t].numpy())
            expected = np.asarray(image.rotate(angle * t / 3, Image.Resampling.BILINEAR)).astype(int)
            # Along the border Pillow repeats its pixels, and here they blend into the black outside.
            inside = binary_erosion(np.asarray(Image.new("L", image.size, 1).rotate(angle * t / 3)), iterations=2)
            assert inside.mean() > 0.6
            assert np.abs(out.pixels[t].numpy() - expected)[inside].max() <= 2
            assert ((out.pixels[t, ..., 0] > 127) != out.truth[0, t]).numpy()[inside].mean() < 0.02
        corners = out.pixels[3, [0, 0, -1, -1], [0, -1, 0, -1]].sum(-1)
        assert abs(angle) < 3 or (corners == 0).any()
    assert min(angles) < -5 and max(angles) > 5


def test_only_still_clips_are_rotated() -> None:
    clip = picture(3, 20, 30)
    assert rotate_over_clip(replace(clip, still=False), seeded(0)).pixels is clip.pixels
    assert rotate_over_clip(replace(clip, pixels=clip.pixels[:1], truth=clip.truth[:, :1]), seeded(0)).truth.shape[1] == 1
    none = rotate_over_clip(replace(clip, truth=clip.truth[:0]), seeded(0))
    assert none.truth.shape == (0, 3, 20, 30) and not torch.equal(none.pixels, clip.pixels)


class Cached(Selector):
    """Reads pixels, and cached words."""

    requires = ("pixels", "truth", "spans", "word_ids")


class Live(Selector):
    """Reads pixels and sentences."""

    requires = ("pixels", "truth")
    encodes_text = True


@keeps_sentence
def cheats(clip: Clip, generator: torch.Generator) -> Clip:
    """Declared to keep the sentence, and does not."""
    return replace(clip, sentence="another")


def undeclared(clip: Clip, generator: torch.Generator) -> Clip:
    """Says nothing of the sentence."""
    return clip


def test_who_may_use_which() -> None:
    assert {name for name in AUGMENTATIONS if changes_sentence(name)} == {"horizontal_flip"}
    keeping = [name for name in AUGMENTATIONS if not changes_sentence(name)]
    check_augmentation([*keeping], Cached(), clips=True)
    check_augmentation(list(AUGMENTATIONS), Live(), clips=True)
    with pytest.raises(InputError, match="horizontal_flip changes the sentence, but Cached reads cached words .*_frames flips"):
        check_augmentation([*keeping, "horizontal_flip"], Cached(), clips=True)
    with pytest.raises(InputError, match="undeclared changes the sentence, .* declared with .*keeps_sentence"):
        check_augmentation(["test_clip_augmentation:undeclared"], Cached(), clips=True)
    for requires, message in ((("features.maps", "pixels"), "it requires features.maps"), (("truth",), "it reads no pixels")):
        selector = Cached()
        selector.requires = requires
        with pytest.raises(InputError, match=message):
            check_augmentation(keeping, selector, clips=True)
    with pytest.raises(InputError, match="batch=clip"):
        check_augmentation(keeping, Cached(), clips=False)
    augment = load_augmentation(["test_clip_augmentation:cheats"])
    assert augment is not None
    with pytest.raises(InputError, match="is declared with keeps_sentence, and changed 'left' to 'another'"):
        augment(picture(1, 4, 4), seeded(0))


def test_a_batch_of_clips_of_different_sizes(tmp_path: Path) -> None:
    """Each of its own; the sizes of the batch are those of the pixels, and the still clip alone is rotated."""
    tracks, texts = write_caches(tmp_path, (FeatureSpec("rgb", ("T", 24, 40, 3), "uint8", by_frame=True),))
    source, words = TrackSource([tracks]), TextSource([texts])
    requires = ("pixels", "truth", "overlap")
    samples = [load_video(source, words, v, thresholds={str(tracks): 0.3}, requires=requires) for v in source.video_ids()]
    augment = load_augmentation(["rotate_over_clip", "crop_and_resize", "horizontal_flip_frames"])
    sampler = ClipSampler(ClipSettings(frames=3), seeded(4), requires, augment)
    batch = sampler([(sample, row) for sample in samples for row in (0, 1, 3)])
    assert batch.pixels is not None and batch.truth is not None
    sizes = [tuple(p.shape[1:3]) for p in batch.pixels]
    assert len(set(sizes)) > 3 and batch.sizes == tuple(sizes)
    assert [tuple(t.shape[1:]) for t in batch.truth] == [(3, *size) for size in sizes]
    assert [len(t) for t in batch.truth] == [1, 2, 0] * 3
    clips: list[Clip] = []
    watched = ClipSampler(ClipSettings(), seeded(0), requires, lambda clip, generator: clips.append(clip) or clip)  # type: ignore[func-returns-value]
    watched.make([(samples[0], 0), (samples[0], 1)], [[2, 2, 2], [1, 2, 3]])
    assert [clip.still for clip in clips] == [True, False]
