"""The mask codec: encoding and decoding give back the bytes that pycocotools writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numcodecs import Zstd

from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.store.mask_codec import decode_masks, encode_masks


def read(*arguments: Any) -> RleMasks:
    return RleMasks.from_runs(decode_masks(*arguments))


DENSE = arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))


@given(DENSE, st.lists(st.integers(0, 3), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_masks_are_decoded_as_encoded(dense: np.ndarray, indices: list[int]) -> None:
    masks = RleMasks.from_dense(dense)
    raw, selected = encode_masks(masks), [k % len(dense) for k in indices]
    assert read(raw, masks.shape, masks.size) == masks
    assert read(raw, masks.shape, masks.size, selected) == masks.select(selected)
    with pytest.raises(IndexError):
        read(raw, masks.shape, masks.size, [len(dense)])


@pytest.mark.parametrize("counts", [
    [0, 12], [12], [12, 0], [0, 12, 0], [3, 0, 0, 4, 5], [0, 0, 0, 12], [1] * 12, [5, 0, 7], [11, 1], [0, 1, 11], [4, 4, 4],
])  # fmt: skip
def test_runs_of_other_encoders_are_kept(counts: list[int]) -> None:
    """Empty runs at the start, inside and at the end stay as they are."""
    raw = from_coco({"size": [4, 3], "counts": counts}, (4, 3), "x")
    masks = RleMasks.from_bytes([[raw, raw], [raw, raw]], 2, (4, 3))
    assert read(encode_masks(masks), (2, 2), (4, 3)) == masks


def test_the_bytes_of_a_mask_encoded_by_hand() -> None:
    """Rows 1 and 2 of columns 0 and 1, row 0 to 2 of column 2, in 4 x 4 pixels."""
    dense = np.zeros((1, 1, 4, 4), bool)
    dense[0, 0, 1:3, :2] = dense[0, 0, :3, 2] = True
    columns, low = [2, 2, 2, 0, 0], [2, 4, 0, 0, 1, 0]
    raw = encode_masks(RleMasks.from_dense(dense))
    assert raw[:4].tolist() == [len(raw) - 4, 0, 0, 0]
    assert list(Zstd().decode(raw[4:])) == [6, 0, 0, 0, 1, 0, 0, 0, *columns, *low, *[0] * 6]


def test_tall_wide_and_busy_frames() -> None:
    rng = np.random.default_rng(0)
    for size in ((700, 3), (3, 700), (1, 1000), (1000, 1), (600, 40)):
        dense = rng.random((2, 2, *size)) > 0.5
        dense[1, 0] = np.arange(size[0])[:, None] % 2
        dense[1, 1] = size[0] > 5
        masks = RleMasks.from_dense(dense)
        assert read(encode_masks(masks), masks.shape, masks.size) == masks
    none = RleMasks.empty(0, 3, (4, 5))
    assert read(encode_masks(none), (0, 3), (4, 5)) == none and read(encode_masks(masks), masks.shape, masks.size, []).shape == (
        0,
        2,
    )


def test_real_tracks_take_a_third_less_than_compressed_runs(real_data: Path) -> None:
    """OSVOS's tracks of blackswan: bytes equal, and less than 0.65 of what zstd makes of COCO's run-length bytes."""
    mask_dict = json.loads((real_data / "davis17-osvos-tracks/valid_u/mask_dict.json").read_text())
    meta = json.loads((real_data / "davis17-osvos-tracks/valid_u/meta_expressions.json").read_text())["videos"]["blackswan"]
    rows = [mask_dict[str(a)] for a in sorted({a for e in meta["expressions"].values() for a in e["anno_id"]})]
    size = tuple(next(r for r in rows[0] if r)["size"])
    masks = RleMasks.from_bytes([[from_coco(r, size, "real") for r in row] for row in rows], len(rows[0]), size)
    raw = encode_masks(masks)
    assert read(raw, masks.shape, masks.size) == masks
    assert len(raw) < 0.65 * len(Zstd(3).encode(masks.rle.tobytes()))


def test_bytes_that_do_not_fit_are_refused() -> None:
    masks = RleMasks.from_dense(np.random.default_rng(0).random((2, 2, 8, 9)) > 0.5)
    raw = encode_masks(masks)
    for damaged in (raw[:-1], raw[:7], raw[:0], np.append(raw, raw[:1])):
        with pytest.raises(ValueError, match="bytes are not 2 masks"):
            decode_masks(damaged, masks.shape, masks.size)
    one = encode_masks(masks.select([0]))
    body = bytearray(Zstd().decode(one[4:]))

    def compress(changed: bytes) -> np.ndarray:
        part = Zstd(3).encode(changed)
        return np.frombuffer(np.array([len(part)], "<u4").tobytes() + part, np.uint8)

    assert read(compress(bytes(body)), (1, 2), masks.size) == masks.select([0])
    for changed in (body[:-1], body[:6], body[:8] + b"\x03" + body[9:]):
        with pytest.raises(ValueError, match="bytes are not a mask of 2 frames and 9 columns"):
            decode_masks(compress(bytes(changed)), (1, 2), masks.size)
    body[12] += 1
    with pytest.raises(ValueError, match="transitions in the columns"):
        decode_masks(compress(bytes(body)), (1, 2), masks.size)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_masks(np.concatenate([one[:4], one[4:][::-1]]), (1, 2), masks.size)
    with pytest.raises(ValueError, match="do not fill"):
        encode_masks(RleMasks(masks.rle, masks.offsets, masks.shape, (8, 10)))
    with pytest.raises(ValueError, match="32768 rows"):
        encode_masks(RleMasks.empty(1, 1, (32768, 1)))
