"""The store: records are read as written, open handles notice changed files, selected tracks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_records import SIZE, masks, record, writer

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import (
    SelectionCache,
    SelectionRecord,
    TextCache,
    TextRecord,
    TrackCache,
    content_digest,
    digest,
    leftovers,
    verify,
    write_selections,
    write_text,
    write_tracks,
)
from rvos_cache.store.checksum import with_checksum
from rvos_cache.store.tracks import _is_finite
from rvos_cache.types import Expression, Selection, Words
from rvos_select.data.caches import TrackSource


def same(a: object, b: object) -> bool:
    """Whether two records are equal, arrays by dtype, shape and values."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, RleMasks) or not hasattr(a, "__dict__"):
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        return bool(a == b)
    return type(a) is type(b) and all(same(value, vars(b)[name]) for name, value in vars(a).items())


@pytest.fixture
def cache(tmp_path: Path) -> TrackCache:
    write_tracks(writer(tmp_path / "c.zarr"), record())
    return TrackCache(tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("n", "a", "t", "hidden"),
    [(3, 2, 4, False), (0, 2, 4, False), (3, 0, 4, False), (3, 2, 1, False), (0, 0, 1, False), (3, 2, 4, True)],
)
def test_tracks_are_read_as_written(tmp_path: Path, n: int, a: int, t: int, hidden: bool) -> None:
    path, wrote = tmp_path / "c.zarr", record(n=n, a=a, t=t, hidden=hidden)
    write_tracks(writer(path), wrote)
    cache = TrackCache(path)
    assert list(verify(path)) == [] and same(wrote, cache.read("v")) and same(wrote, cache.read("v"))
    assert cache.tokens("v").flags.writeable
    # The files are plain Zarr: the library reads the same values.
    folder = cache.folder("v")
    for name in folder.array_names():
        stored = zarr.open_array(path / "videos/v" / name, mode="r", zarr_format=3)[...]
        assert same(np.asarray(stored), np.asarray(folder.array(name))), name
    assert "features/map" in folder.array_names()
    for frames in (slice(0, 1), slice(1, 3), slice(None), slice(2, 2), slice(None, None, 2)):
        assert same(cache.feature("v", "map", frames), wrote.tracks.features["map"][frames])
    if hidden:
        with pytest.raises(InputError, match="hides its ground truth"):
            cache.overlap("v")


def test_chunks_of_frames_lie_in_one_folder_and_older_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches written before have a folder for each number of a chunk; their content is the same."""
    write_tracks(writer(tmp_path / "new.zarr"), record())
    create = zarr.Group.create_array

    def nested(self: zarr.Group, name: str, **options: object) -> zarr.Array:
        return create(self, name, **{**options, "chunk_key_encoding": {"name": "default", "separator": "/"}})

    monkeypatch.setattr(zarr.Group, "create_array", nested)
    write_tracks(writer(tmp_path / "old.zarr"), record())
    new, old = (TrackCache(tmp_path / f"{name}.zarr") for name in ("new", "old"))
    folders = [{p.name for p in (tmp_path / f"{name}.zarr/videos/v/features/map").iterdir()} for name in ("new", "old")]
    assert "c.0.0" in folders[0] and "c" not in folders[0] and "c" in folders[1]
    for frames in (slice(None), slice(1, 2)):
        assert same(old.feature("v", "map", frames), new.feature("v", "map", frames))
    assert old.content("v") == new.content("v") and list(verify(tmp_path / "old.zarr")) == []


def frame_by_frame(frames: np.ndarray, path: Path) -> Iterator[np.ndarray]:
    for t, frame in enumerate(frames):
        # Each frame is on the disk before the next one is requested.
        assert len([f for f in path.rglob("features/map/c.*") if f.is_file()]) == t
        yield frame


@pytest.mark.parametrize("frames", [1, 4])
def test_an_iterator_of_frames_gives_the_same_files(tmp_path: Path, frames: int) -> None:
    whole = record(t=frames)
    array = whole.tracks.features["map"]
    write_tracks(writer(tmp_path / "a.zarr"), whole)
    streamed = replace(whole, tracks=replace(whole.tracks, features={"map": frame_by_frame(array, tmp_path / "b.zarr")}))
    write_tracks(writer(tmp_path / "b.zarr"), streamed)
    files = [
        sorted(p for p in (tmp_path / name / "videos/v/features/map").rglob("*") if p.is_file()) for name in ("a.zarr", "b.zarr")
    ]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert list(verify(tmp_path / "b.zarr")) == [] and same(TrackCache(tmp_path / "b.zarr").read("v"), whole)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "is an iterator without a frame"),
        ([np.zeros(3, np.float32), np.zeros(4, np.float32)], r"feature 'map', frame 1, has shape \(4,\), declared \(3\)"),
        ([np.zeros(3, np.float32), np.zeros(3, np.float16)], "feature 'map', frame 1, is float16, declared float32"),
        ([np.zeros(3, np.float32), np.full(3, np.nan, np.float32)], "NaN or infinite"),
    ],
)
def test_frames_of_different_shapes_are_not_published(tmp_path: Path, frames: list[np.ndarray], message: str) -> None:
    whole = record(t=2)
    with pytest.raises((InputError, ValueError), match=message):
        write_tracks(writer(tmp_path / "c.zarr"), replace(whole, tracks=replace(whole.tracks, features={"map": iter(frames)})))
    assert TrackCache(tmp_path / "c.zarr").video_ids() == () and list(leftovers(tmp_path / "c.zarr")) == []


def test_text_is_read_as_written(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "t.zarr"
    expressions = tuple(Expression("v", str(i), "a dog " * (i + 1), None if i else ("0", "1")) for i in range(3))
    words = tuple(
        Words(rng.standard_normal((n, 4)).astype(np.float16), rng.integers(0, 9, (n, 2)).astype(np.int32), ("", "NN", "VB")[:n])
        for n in (1, 3, 2)
    )
    cache_writer = writer(path, "text")
    assert write_text(cache_writer, TextRecord("v", expressions, words)) and write_text(cache_writer, TextRecord("none", (), ()))
    assert not write_text(cache_writer, TextRecord("v", expressions, words))
    cache = TextCache(path)
    assert cache.expressions("v") == expressions and same(cache.words("v"), words)
    assert cache.expressions("none") == () and cache.words("none") == () and list(verify(path)) == []
    with pytest.raises(ValueError, match="encoded"):
        TextRecord("v", expressions, words[:1])


@pytest.mark.parametrize("drawn", [False, True])
def test_selections_are_read_as_written(tmp_path: Path, drawn: bool) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "s.zarr"
    selections = tuple(
        Selection(str(e), rng.random(3).astype(np.float32), rng.random(3) > 0.5, masks(3, 4, e) if drawn else None)
        for e in range(2)
    )
    names = ("a", "b", "c", "d")
    cache_writer = writer(path, "selections")
    write_selections(cache_writer, SelectionRecord("v", names, SIZE, selections))
    write_selections(cache_writer, SelectionRecord("none", names, SIZE, ()))
    cache = SelectionCache(path)
    assert same(cache.selections("v"), selections) and cache.selections("none") == ()
    info = cache.info("v")
    assert (info.frame_names, info.size, info.expression_ids) == (names, SIZE, ("0", "1")) and list(verify(path)) == []


def flip(path: Path, position: int = 5) -> bytes:
    raw = path.read_bytes()
    path.write_bytes(raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :])
    return raw


READS = {
    "tokens/c/0/0/0": lambda c: c.tokens("v"),
    "presence/c/0/0": lambda c: c.presence("v"),
    "mask_rle/c/0": lambda c: c.masks("v", [1]),
    "gt_rle/c/0": lambda c: c.ground_truth("v"),
    "overlap/c/0/0/0": lambda c: c.overlap("v"),
    "features/map/c.2.0": lambda c: c.feature("v", "map", slice(2, 3)),
}


@pytest.mark.parametrize("file", READS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_flipped_or_missing_chunk_is_never_read(cache: TrackCache, file: str, when: str) -> None:
    """Whether or not the handle has read the file before; and the right bytes are read again once they are back."""
    path, read = Path(cache.path) / "videos/v" / file, READS[file]
    if when == "after":
        read(cache)
    raw = flip(path)
    for opened in (cache, TrackCache(cache.path)):
        with pytest.raises(InputError, match=file):
            read(opened)
    path.unlink()
    for opened in (cache, TrackCache(cache.path)):
        with pytest.raises(InputError, match="missing or unreadable"):
            read(opened)
    assert len(list(verify(cache.path))) == 1
    path.write_bytes(raw)
    read(cache)


def test_every_bit_of_a_file_counts_under_an_open_handle(cache: TrackCache) -> None:
    cache.presence("v")
    path = Path(cache.path) / "videos/v/presence/c/0/0"
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="changed since"):
            cache.presence("v")


def test_an_open_handle_does_not_read_a_video_that_was_replaced(cache: TrackCache, tmp_path: Path) -> None:
    cache.tokens("v")
    write_tracks(writer(tmp_path / "other.zarr"), record(seed=9))
    shutil.rmtree(Path(cache.path) / "videos/v")
    (tmp_path / "other.zarr/videos/v").rename(Path(cache.path) / "videos/v")
    for read in (cache.tokens, cache.presence, cache.masks):
        with pytest.raises(InputError, match=r"its bytes"):
            read("v")
    assert same(TrackCache(cache.path).read("v"), record(seed=9))


def test_a_chunk_without_a_digest_is_not_read_as_zeros(cache: TrackCache) -> None:
    folder = cache.folder("v")
    del folder.digests["tokens/c/0/0/0"]
    with pytest.raises(InputError, match="not written"):
        cache.tokens("v")


def test_a_cache_of_the_first_format_is_refused_in_one_line(cache: TrackCache) -> None:
    path = Path(cache.path) / "card.json"
    card = json.loads(path.read_text())
    del card["digest"]
    path.write_bytes(with_checksum({**card, "format_version": 1}))
    for use in (TrackCache, writer, lambda p: InputError(next(iter(verify(p)))), content_digest):
        try:
            message = str(use(cache.path))  # type: ignore[operator]
        except InputError as error:
            message = str(error)
        assert message == f"{cache.path}: format version 1, this program reads 2; extract again into a new path"


def test_the_number_of_files_of_a_video(tmp_path: Path) -> None:
    """Without its features: five arrays of two files each, the attributes and the digests."""
    for name, hidden, files in (("a", False, 12), ("b", True, 8)):
        write_tracks(writer(tmp_path / f"{name}.zarr"), record(hidden=hidden))
        paths = [p for p in (tmp_path / f"{name}.zarr/videos/v").rglob("*") if p.is_file() and "features" not in p.parts]
        assert len(paths) == files


def test_truth_and_counts_agree_on_the_annotated_frames() -> None:
    tracks = record()
    with pytest.raises(ValueError, match="differ in the annotated frames"):
        replace(tracks, overlap=replace(tracks.overlap, annotated=~tracks.overlap.annotated))


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    cache_writer = writer(tmp_path / "c.zarr")
    cache_writer.publish("v", {"a": np.zeros((4, 4), np.float32)}, {})
    folder, layout = TrackCache(tmp_path / "c.zarr").folder("v"), tmp_path / "c.zarr/videos/v/a/zarr.json"
    layout.write_text(layout.read_text().replace("crc32c", "gzip"))
    folder.digests["a/zarr.json"] = digest(layout.read_bytes())
    with pytest.raises(InputError, match="not of this format"):
        folder.array("a")


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 7), max_size=6))
@settings(max_examples=40, deadline=None)
def test_selected_masks_have_their_own_bytes(count: int, frames: int, indices: list[int]) -> None:
    all_masks, selected = masks(count, frames, count), [k % count for k in indices]
    rows = [[all_masks.bytes_at(k, t) for t in range(frames)] for k in selected]
    assert all_masks.select(selected) == RleMasks.from_bytes(rows, frames, SIZE)
    with pytest.raises(IndexError):
        all_masks.select([count])


def test_tracks_read_alone_equal_those_of_the_whole_video(tmp_path: Path) -> None:
    for name, n, seed in (("a", 3, 0), ("b", 0, 1), ("c", 4, 2)):
        write_tracks(writer(tmp_path / f"{name}.zarr"), record(n=n, seed=seed))
    for names in ("a", "b", "ac", "abc", "bac"):
        source = TrackSource([tmp_path / f"{name}.zarr" for name in names])
        whole, rng = source.masks("v"), np.random.default_rng(3)
        for size in range(whole.shape[0] + 1):
            selected = rng.permutation(whole.shape[0])[:size].tolist()
            part = source.masks("v", selected)
            assert part == whole.select(selected) and part.union() == whole.union(selected)
            assert np.array_equal(part.union().dense()[0], whole.dense()[selected].any(0))
        with pytest.raises(IndexError):
            source.masks("v", [whole.shape[0]])


def test_nan_is_refused_in_attributes_and_arrays(tmp_path: Path) -> None:
    bad = record()
    bad.tracks.prompt_box[0, 0] = np.nan
    with pytest.raises(ValueError, match="JSON"):
        write_tracks(writer(tmp_path / "c.zarr"), bad)
    bad.tracks.prompt_box[0, 0] = 0
    bad.tracks.presence[0, 0] = np.inf
    with pytest.raises(InputError, match=r"tracker p: presence is not float16 in \[0, 1\]"):
        write_tracks(writer(tmp_path / "c.zarr"), bad)
    assert TrackCache(tmp_path / "c.zarr").video_ids() == () and list((tmp_path / "c.zarr/.staging").iterdir()) == []


def test_tokens_are_is_finite_exactly_when_numpy_says_so() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [_is_finite(every[i : i + 1]) for i in range(1 << 16)] == np.isfinite(every).tolist()
    assert _is_finite(np.zeros((0, 2, 4), np.float16)) and not _is_finite(np.array([1, np.nan], np.float32))
