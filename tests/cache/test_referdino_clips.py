"""Clips of tune-referdino: which frames, how they are augmented, and how they are padded to a batch."""

from __future__ import annotations

import colorsys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_grounding_dino import tiny_bert_tokenizer
from tiny_tuning import make_settings, shapes

from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.boxes import last_pixel_boxes
from rvos_cache.trackers.referdino.frame_maps import resized_size
from rvos_cache.tuning.augment import (
    BEFORE_CROP,
    CROP,
    TuneClip,
    augment,
    change_colour,
    distort,
    flip,
    random_crop,
    resize,
)  # fmt: skip
from rvos_cache.tuning.clips import ClipSource, clip_frames, collate


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_clip(size: tuple[int, int] = (60, 80), frames: int = 3, sentence: str = "the dog on the left") -> TuneClip:
    """A rectangle of 20 x 30 pixels that moves to the right, hidden in the last frame."""
    masks = torch.zeros(frames, *size, dtype=torch.bool)
    for t in range(frames - 1):
        masks[t, 10:30, 5 + 3 * t : 35 + 3 * t] = True
    pixels = torch.randint(0, 256, (frames, *size, 3), generator=rng(), dtype=torch.uint8)
    return TuneClip(pixels, masks, last_pixel_boxes(masks), sentence, "video a, expression 0")


@pytest.mark.parametrize("length", [1, 3, 6, 9, 40])
def test_frames_of_a_clip(length: int) -> None:
    settings = make_settings(frames=6, reverse=0.0)
    for seed in range(40):
        anchor = seed % length
        frames = clip_frames(length, anchor, settings, rng(seed))
        assert frames == sorted(frames)
        assert len(frames) == 6
        assert anchor in frames
        near = [t for t in frames if 0 < abs(t - anchor) <= 3]
        before = min(anchor, 1)
        after = min(length - 1 - anchor, 1)
        assert len([t for t in near if t < anchor]) >= before
        assert len([t for t in near if t > anchor]) >= after
        if length >= 40:
            # The neighbours are the only frames near the anchor, but that the later one may come again.
            first, last = max(t for t in frames if t < anchor or t == 0), min(t for t in frames if t > anchor or t == length - 1)
            assert not [t for t in frames if first < t < last and t != anchor]
            assert len(set(frames)) >= 4


def test_videos_that_are_shorter_than_a_clip_are_told() -> None:
    lengths = [len(shapes().video(video_id)) for video_id in shapes().video_ids()]
    message = (
        f"{len(lengths)} of {len(lengths)} videos are shorter than frames=1000, the longest has {max(lengths)}; clips of those"
    )
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="shorter than frames=1000") as caught:
        ClipSource(shapes(), make_settings(frames=1000))
    assert len(caught) == 1 and message in str(caught[0].message)
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ClipSource(shapes(), make_settings(frames=min(lengths)))
    assert source.items


def test_clips_run_backwards_in_three_of_ten() -> None:
    settings = make_settings(frames=3)
    clips = [clip_frames(30, 15, settings, rng(seed)) for seed in range(1000)]
    assert 250 < sum(clip == sorted(clip, reverse=True) for clip in clips) < 350
    assert clip_frames(30, 15, make_settings(frames=1), rng()) == [15]


def test_items_are_expressions_and_anchors() -> None:
    source = ClipSource(shapes(), make_settings(anchor_every=16))
    video = shapes().video(shapes().video_ids()[0])
    assert len(video) == 28
    with_target = [e for e in shapes().expressions(video.video_id) if e.targets]
    own = [item for item in source.items if item.expression.video_id == video.video_id]
    assert [(i.expression, i.anchor) for i in own] == [(e, t) for e in with_target for t in (0, 16)]


def test_a_data_set_that_lists_its_frames_has_an_item_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    video_id = shapes().video_ids()[0]
    expression = next(e for e in shapes().expressions(video_id) if e.targets)
    samples = (Sample(video_id, expression.expression_id, 7, "i"), Sample(video_id, "unknown", 3, "j"))
    monkeypatch.setattr(shapes(), "samples", lambda name: samples, raising=False)
    source = ClipSource(shapes(), make_settings(frames=1))
    assert [(i.expression, i.anchor) for i in source.items] == [(expression, 7)]


def test_the_target_is_the_union_of_the_objects() -> None:
    settings = make_settings(short_side=96)
    source = ClipSource(shapes(), settings)
    number = next(i for i, item in enumerate(source.items) if len(item.expression.targets or ()) > 1)
    expression = source.items[number].expression
    truth = shapes().ground_truth(expression.video_id)
    assert truth is not None
    # Of the size of the video, so that nothing is resized.
    clip = source.clip(number, rng())
    union = truth.masks.dense(truth.indices(expression.targets or ())).any(0)
    video = shapes().video(expression.video_id)
    for pixels, mask, box in zip(clip.pixels.numpy(), clip.masks.numpy(), clip.boxes):
        t = next(t for t in range(len(video)) if np.array_equal(video.read(t), pixels))
        assert np.array_equal(mask, union[t])
        y, x = np.nonzero(mask)
        if len(y):
            assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]


def test_a_split_to_train_on_has_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes(), "expressions", lambda name: (), raising=False)
    with pytest.raises(InputError, match="no expression has a target"):
        ClipSource(shapes(), make_settings())
    monkeypatch.setattr(type(shapes()), "has_ground_truth", False)
    with pytest.raises(InputError, match="has no ground truth to train on"):
        ClipSource(shapes(), make_settings())


def test_a_clip_without_the_object_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ClipSource(shapes(), make_settings())
    sample, items = ClipSource._sample, []

    def hidden(self: ClipSource, item: Any, generator: torch.Generator) -> TuneClip | None:
        items.append(item)
        clip = sample(self, item, generator)
        assert clip is not None
        return replace(clip, boxes=0 * clip.boxes) if len(items) < 3 else clip

    monkeypatch.setattr(ClipSource, "_sample", hidden)
    assert source.clip(0, rng()).valid.any()
    assert len(items) == 3
    monkeypatch.setattr(ClipSource, "_sample", lambda *unused: None)
    with pytest.raises(InputError, match="none of 100 clips shows an object"):
        source.clip(0, rng())


def test_a_flip_is_its_own_inverse() -> None:
    clip = make_clip()
    flipped = flip(clip)
    assert flipped.sentence == "the dog on the right"
    assert torch.equal(flipped.masks, clip.masks.flip(2))
    # x1 is the index of the last pixel in the released code, so that a flipped box is one pixel further right.
    expected = last_pixel_boxes(flipped.masks) + torch.tensor([1, 0, 1, 0]) * flipped.valid[:, None]
    assert torch.equal(flipped.boxes, expected)
    again = flip(flipped)
    assert torch.equal(again.pixels, clip.pixels)
    assert torch.equal(again.boxes, clip.boxes)
    assert flip(make_clip(sentence="the bright leftmost car")).sentence == "the bright rightmost car"


def test_sizes_are_detrs() -> None:
    assert resized_size((720, 1280), 512, 640) == (360, 640)
    assert resized_size((720, 1280), 288, 640) == (288, 512)
    assert resized_size((1280, 721), 360, None) == (639, 360)
    clip = resize(make_clip((60, 80)), 30, None)
    assert clip.size == (30, 40)
    assert torch.allclose(clip.boxes[0], torch.tensor([5, 10, 34, 29]) / 2)


def test_crops_are_windows() -> None:
    clip = resize(make_clip((60, 80)), 420, None)
    for seed in range(20):
        crop = random_crop(clip, rng(seed))
        assert all(min(CROP[0], side) <= length <= CROP[1] for length, side in zip(crop.size, clip.size))
        own = last_pixel_boxes(crop.masks)
        # Within a scaled pixel of the box of the cropped mask.
        both = crop.valid & crop.masks.flatten(1).any(1)
        assert both[:2].any()
        assert (crop.boxes - own)[both].abs().max() < 2 * 420 / 60
        assert not crop.boxes[-1].any()


def test_objects_outside_of_a_crop_are_not_valid() -> None:
    clip = make_clip()
    outside = replace(clip, boxes=torch.tensor([[4.0, 3, 4, 9], [0, 0, 5, 0], [2, 2, 7, 8]])).checked()
    assert outside.valid.tolist() == [False, False, True]
    assert not outside.boxes[:2].any()


@pytest.mark.parametrize("kind", ["video", "image", "none"])
def test_augmentation_keeps_frames_masks_and_boxes_together(kind: str) -> None:
    clip = make_clip((360, 480))
    short, flips = set(), 0
    for seed in range(8):
        out = augment(clip, kind, 100, rng(seed))
        assert out.pixels.shape[1:3] == out.masks.shape[1:3]
        assert out.pixels.dtype == torch.uint8
        assert max(out.size) <= (800 if kind == "image" else 640)
        short.add(min(out.size))
        flips += "right" in out.sentence
        again = augment(clip, kind, 100, rng(seed))
        assert torch.equal(out.pixels, again.pixels)
        assert torch.equal(out.boxes, again.boxes)
    assert short == {100} if kind == "none" else len(short) > 3
    assert (flips == 0) is (kind == "none")
    assert BEFORE_CROP == (400, 500, 600)


def test_colours_change_as_in_hsv() -> None:
    colours = torch.tensor([[200.0, 40, 90], [10, 240, 30], [128, 128, 128], [0, 0, 255], [255, 255, 0]])
    changed = change_colour(colours, 0.6, 14.0)
    for before, after in zip(colours.tolist(), changed.tolist()):
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in before))
        expected = colorsys.hsv_to_rgb((h + 14 / 360) % 1, s * 0.6, v)
        assert [c / 255 for c in after] == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(change_colour(colours, 1.0, 0.0), colours, atol=1e-3)


def test_each_frame_has_colours_of_its_own() -> None:
    frame = torch.randint(40, 200, (8, 9, 3), generator=rng(), dtype=torch.uint8)
    generator = rng(1)
    frames = [distort(frame, generator) for _ in range(20)]
    assert len({f.numpy().tobytes() for f in frames}) > 15
    assert all(f.dtype == torch.uint8 and f.shape == frame.shape for f in frames)


def test_a_batch_is_padded_to_multiples_of_32() -> None:
    tokenizer = tiny_bert_tokenizer()
    clips = [make_clip((60, 80)), make_clip((33, 100), sentence="A dog.")]
    batch = collate(clips, tokenizer, 32)
    assert batch.images.shape == (6, 3, 64, 128)
    assert batch.real.shape == (6, 64, 128)
    assert batch.real[:3].sum() == 3 * 60 * 80
    assert batch.real[3:, :33, :100].all()
    assert batch.truth.real.sum() == 60 * 80 + 33 * 100
    assert not batch.images.masked_select(~batch.real[:, None]).any()
    assert batch.truth.masks[:, :, :33, :80].sum() > 0
    # Shares of the frame without its padding.
    assert torch.allclose(batch.truth.boxes[0, 0], torch.tensor([19.5 / 80, 19.5 / 60, 29 / 80, 19 / 60]))
    assert batch.truth.valid.tolist() == [[True, True, False]] * 2
    assert batch.words.sum(1).tolist() == [9, 5]
    assert tokenizer.decode(batch.ids[1], skip_special_tokens=True) == "a dog."
    assert batch.names == ("video a, expression 0",) * 2


def test_pixels_are_normalised(tmp_path: Path) -> None:
    clip = replace(make_clip((32, 32)), pixels=torch.full((3, 32, 32, 3), 255, dtype=torch.uint8))
    images = collate([clip], tiny_bert_tokenizer(), 32).images
    assert images[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], abs=1e-5)
