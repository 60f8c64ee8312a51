"""`Selection.parts`: what a selection accepts, masks put together from those of several tracks, and how the store keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, Card, SelectionCache, SelectionRecord, content_digest, digest, verify, write_selections
from rvos_cache.store.checksum import with_checksum
from rvos_cache.types import Selection

SIZE, NAMES = (6, 7), ("a", "b", "c", "d")


def selection(parts: np.ndarray | None, scores: list[float] | None = None, expression: str = "0", **more: object) -> Selection:
    q = 3 if parts is None else len(parts)
    values = np.array([0.5] * q if scores is None else scores, np.float32)
    return Selection(expression, values, np.ones(len(values), bool), parts=parts, **more)  # type: ignore[arg-type]


def write(path: Path, selections: tuple[Selection, ...]) -> SelectionCache:
    card = Card(kind="selections", dataset="d", split="s", producer="p")
    write_selections(CacheWriter(path, card), SelectionRecord("v", NAMES, SIZE, selections))
    return SelectionCache(path)


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        (np.zeros((2, 4), np.int64), {}, r"parts are int64 \(2, 4\), expected int32 \(2, T\)"),
        (np.zeros((2, 4), np.float32), {}, r"parts are float32 \(2, 4\)"),
        (np.zeros(2, np.int32), {}, r"parts are int32 \(2,\)"),
        (np.zeros((2, 4), np.int32), {"scores": [0.5] * 3}, r"parts are int32 \(2, 4\), expected int32 \(3, T\)"),
        (np.array([[0, -2]], np.int32), {}, "parts has -2, expected -1 or a track"),
        (np.zeros((2, 4), np.int32), {"masks": RleMasks.empty(2, 4, SIZE)}, "has masks and parts"),
        (None, {"masks": RleMasks.empty(2, 4, SIZE)}, "2 masks, expected 3"),
    ],
)
def test_what_is_no_selection(parts: np.ndarray | None, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection(parts, **more)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 5), st.integers(1, 4))
def test_gathered_masks_are_those_of_the_tracks(seed: int, tracks: int, queries: int, frames: int) -> None:
    """Also more queries than tracks, no track, no query, empty and full masks. Runs are copied, so they are COCO's own."""
    rng = np.random.default_rng(seed)
    dense = rng.random((tracks, frames, *SIZE)) > rng.choice([0.0, 0.4, 1.0], (tracks, frames, 1, 1))
    masks = RleMasks.from_dense(dense) if tracks else RleMasks.empty(0, frames, SIZE)
    parts = rng.integers(-1, tracks, (queries, frames)).astype(np.int32)
    padded = np.concatenate([dense, np.zeros((1, frames, *SIZE), bool)])
    expected = padded[parts, np.arange(frames)]
    gathered = masks.gather(parts)
    assert gathered.shape == (queries, frames) and gathered.size == SIZE
    assert queries == 0 or gathered == RleMasks.from_dense(expected)
    union = masks.union_by_frame([tuple(sorted({*column} - {-1})) for column in parts.T.tolist()])
    assert union == RleMasks.from_dense(expected.any(0)[None])
    identity = np.repeat(np.arange(tracks)[:, None], frames, 1)
    assert masks.gather(identity) == masks


def test_gathering_refuses_masks_and_frames_that_are_not_there() -> None:
    masks = RleMasks.from_dense(np.ones((2, 3, *SIZE), bool))
    for parts, error in (
        (np.full((1, 3), 2), IndexError),
        (np.full((1, 3), -2), IndexError),
        (np.zeros((1, 2), int), ValueError),
    ):
        with pytest.raises(error):
            masks.gather(parts)
    with pytest.raises(ValueError, match="indices of 2 frames, the masks have 3"):
        masks.union_by_frame([(0,), (1,)])
    assert coco.area(masks.gather(np.array([[-1, 1, -1]])).at(0, 1)) == SIZE[0] * SIZE[1]


@pytest.mark.parametrize("parts", [
    np.zeros((2, 3, 4), np.int32),
    np.full((1, 1, 4), -1, np.int32),
    np.arange(24, dtype=np.int32).reshape(2, 3, 4) - 1,
    np.zeros((2, 0, 4), np.int32),
])  # fmt: skip
def test_parts_are_read_as_written(tmp_path: Path, parts: np.ndarray) -> None:
    """Zeros, one expression, no query. The selections of a video all have parts, or none has."""
    written = tuple(selection(own, expression=str(e)) for e, own in enumerate(parts))
    cache = write(tmp_path / "s.zarr", written)
    read = cache.selections("v")
    assert [s.expression_id for s in read] == [s.expression_id for s in written]
    for a, b in zip(read, written, strict=True):
        assert a.parts is not None and a.parts.dtype == np.int32 and np.array_equal(a.parts, b.parts)  # type: ignore[arg-type]
        assert np.array_equal(a.scores, b.scores) and a.masks is None
    assert not cache.scores_tracks("v") and list(verify(tmp_path / "s.zarr")) == []


def test_parts_are_part_of_the_content(tmp_path: Path) -> None:
    first = np.zeros((3, 4), np.int32)
    other = first.copy()
    other[2, 3] = -1
    digests = [
        write(tmp_path / f"{i}.zarr", (selection(p),)).content("v") for i, p in enumerate((first, first.copy(), other, None))
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_selections_without_parts_are_stored_as_before(tmp_path: Path) -> None:
    """The digest is that of the code before there were parts, so runs of both continue with each other's selections."""
    scores, allowed = np.array([0.5, 0.25, 1], np.float32), np.array([True, False, True])
    selections = tuple(Selection(str(e), scores * np.float32((e + 1) / 2), allowed) for e in range(2))
    card = Card(kind="selections", dataset="d", split="s", producer="p")
    write_selections(CacheWriter(tmp_path / "s.zarr", card), SelectionRecord("v", ("a", "b", "c"), SIZE, selections))
    assert content_digest(tmp_path / "s.zarr") == "0ea1d7e5d5e847964e5bbca734a4f0a5"
    cache = SelectionCache(tmp_path / "s.zarr")
    assert [s.parts for s in cache.selections("v")] == [None, None] and cache.scores_tracks("v")


def test_records_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="video v, expression 0: parts of 3 frames, expected 4"):
        SelectionRecord("v", NAMES, SIZE, (selection(np.zeros((2, 3), np.int32)),))
    mixed = (selection(np.zeros((3, 4), np.int32)), selection(None, expression="1"))
    with pytest.raises(ValueError, match="either all selections of a video have parts or none has"):
        write(tmp_path / "s.zarr", mixed)


def test_verify_finds_changed_parts(tmp_path: Path) -> None:
    """A changed byte; and parts that no selector gives, in a file whose checksums are right."""
    write(tmp_path / "s.zarr", (selection(np.arange(12, dtype=np.int32).reshape(3, 4)),))
    video = tmp_path / "s.zarr/videos/v"
    chunk = video / "parts/c/0/0/0"
    raw = chunk.read_bytes()
    chunk.write_bytes(raw[:8] + bytes([raw[8] ^ 1]) + raw[9:])
    (fault,) = verify(tmp_path / "s.zarr")
    assert "videos/v/parts/c/0/0/0: its bytes do not match their digest" in fault
    with pytest.raises(InputError, match="parts/c/0/0/0: its bytes do not match"):
        SelectionCache(tmp_path / "s.zarr").selections("v")
    body = np.frombuffer(raw[:-4], "<i4").copy()
    body[5] = -7
    changed = body.tobytes() + google_crc32c.value(body.tobytes()).to_bytes(4, "little")
    chunk.write_bytes(changed)
    files = json.loads((video / "digests.json").read_bytes())["files"]
    (video / "digests.json").write_bytes(with_checksum({"files": {**files, "parts/c/0/0/0": digest(changed)}}))
    (fault,) = verify(tmp_path / "s.zarr")
    assert fault.endswith("video v: Selection of expression 0: parts has -7, expected -1 or a track")
