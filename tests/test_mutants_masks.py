"""Masks, counts and frames where mutants survived: sizes that differ, one pixel, parts that do not fit, odd sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.frames import VideoWriter, frame_files
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.overlap import count_overlap, iou, precision, recall
from rvos_cache.types import GroundTruth, Overlap


def truth(frames: int, size: tuple[int, int]) -> GroundTruth:
    return GroundTruth(("a",), RleMasks.empty(1, frames, size), np.ones(frames, bool))


@pytest.mark.parametrize(("frames", "size"), [(4, (6, 8)), (3, (8, 6)), (3, (6, 9))])
def test_counts_of_other_frames_or_sizes_are_refused(frames: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="ground truth"):
        count_overlap(RleMasks.empty(2, frames, size), truth(3, (6, 8)))


def test_a_track_of_one_pixel_that_is_the_object_has_ratios_of_one() -> None:
    one = np.ones((1, 1, 1), np.int32)
    overlap = Overlap(one, one[0], one[0], np.ones(1, bool))
    assert iou(overlap).tolist() == precision(overlap).tolist() == recall(overlap).tolist() == [[[1.0]]]
    half = Overlap(one, 2 * one[0], 4 * one[0], np.ones(1, bool))
    assert (iou(half).item(), precision(half).item(), recall(half).item()) == (1 / 5, 1 / 2, 1 / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rle, offsets: (rle.astype(np.int64), offsets), "rle must be uint8"),
        (lambda rle, offsets: (rle[None], offsets), "rle must be uint8"),
        (lambda rle, offsets: (rle, offsets.astype(np.int32)), "offsets must be int64"),
        (lambda rle, offsets: (rle, offsets[:-1]), "offsets must be int64"),
        (lambda rle, offsets: (rle, offsets + 1), "increase from 0"),
        (lambda rle, offsets: (rle[:-1], offsets), "increase from 0"),
        (lambda rle, offsets: (rle, np.array([0, offsets[1], offsets[1], *offsets[3:]])), "increase from 0"),
        (lambda rle, offsets: (rle, offsets[[0, 2, 1, 3, 4]]), "increase from 0"),
    ],
)
def test_masks_whose_parts_do_not_fit_are_refused(change: Callable[..., tuple[np.ndarray, np.ndarray]], message: str) -> None:
    dense = np.random.default_rng(0).random((2, 2, 5, 7)) > 0.5
    masks = RleMasks.from_dense(dense)
    assert RleMasks(masks.rle, masks.offsets, (2, 2), (5, 7)) == masks
    with pytest.raises(ValueError, match=message):
        RleMasks(*change(masks.rle, masks.offsets), (2, 2), (5, 7))


def test_masks_are_equal_only_with_the_same_shape_size_and_pixels() -> None:
    dense = np.zeros((1, 2, 4, 6), bool)
    dense[0, 0, 1, 2] = True
    masks, other = RleMasks.from_dense(dense), dense.copy()
    # The other pixel in another column: run-length bytes of the same length.
    other[0, 0] = False
    other[0, 0, 1, 3] = True
    assert masks == RleMasks.from_dense(dense)
    assert len(RleMasks.from_dense(other).rle) == len(masks.rle) and masks != RleMasks.from_dense(other)
    # The same bytes read as another number of masks, or of another size.
    assert masks != RleMasks(masks.rle, masks.offsets, (2, 1), (4, 6))
    assert masks != RleMasks(masks.rle, masks.offsets, (1, 2), (6, 4))
    assert masks != "masks"


def test_no_masks_and_no_frames_have_areas_and_boxes_of_their_shape() -> None:
    for count, frames in ((0, 3), (2, 0), (0, 0)):
        masks = RleMasks.empty(count, frames, (4, 6))
        assert masks.area().shape == (count, frames) and masks.area().dtype == np.int32
        assert masks.boxes().shape == (count, frames, 4)


def test_frames_are_in_natural_order_with_words_before_numbers(tmp_path: Path) -> None:
    for name in ("10", "2", "0", "frame10", "frame9", "a"):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    assert list(frame_files(tmp_path)) == ["a", "frame9", "frame10", "0", "2", "10"]


@pytest.mark.parametrize(
    ("values", "legal"), [((0, 255), True), ((0, 1), True), ((1, 255), False), ((0, 2), False), ((0, 128), False)]
)
def test_mask_pngs_hold_0_and_255_or_0_and_1(tmp_path: Path, values: tuple[int, int], legal: bool) -> None:
    pixels = np.full((3, 4), values[0], np.uint8)
    pixels[1, 2] = values[1]
    Image.fromarray(pixels).save(tmp_path / "m.png")
    if legal:
        assert np.argwhere(read_mask_png(tmp_path / "m.png", (3, 4))).tolist() == [[1, 2]]
        return
    with pytest.raises(InputError, match="holds 0 and 255"):
        read_mask_png(tmp_path / "m.png", (3, 4))


def test_a_film_of_odd_sides_repeats_its_last_row_and_column(tmp_path: Path) -> None:
    frame = np.zeros((41, 63, 3), np.uint8)
    frame[:, :32], frame[:20, 32:], frame[20:, 32:] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    with VideoWriter(tmp_path / "film.mp4", 5, (41, 63)) as writer:
        for _ in range(3):
            writer.write(frame)
    with av.open(str(tmp_path / "film.mp4")) as container:
        decoded = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(decoded) == 3 and decoded[0].shape == (42, 64, 3)
    expected = np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(int)
    # Colours are stored at half the resolution: away from the two edges they are those that were written.
    flat = np.ones((42, 64), bool)
    flat[:, 29:35] = flat[17:23] = False
    assert np.abs(decoded[0].astype(int) - expected)[flat].max() < 20


@pytest.mark.parametrize("exists", [False, True])
def test_a_film_that_breaks_off_is_not_published(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "film.mp4"
    if exists:
        path.write_bytes(b"the film before")

    def break_off() -> None:
        with VideoWriter(path, 5, (8, 8)) as writer:
            writer.write(np.zeros((8, 8, 3), np.uint8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"] * exists
    assert not exists or path.read_bytes() == b"the film before"
