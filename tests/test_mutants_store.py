"""The cache format where mutants survived: parts that do not fit, layouts of others, order, records of failures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import (
    CacheWriter,
    Card,
    SelectionRecord,
    TextCache,
    TextRecord,
    TrackCache,
    TrackRecord,
    content_digest,
    verify,
    write_selections,
    write_text,
    write_tracks,
)
from rvos_cache.store.checksum import digest, with_checksum
from rvos_cache.store.reader import Layout
from rvos_cache.types import Expression, GroundTruth, Selection, TrackSet, Words

SIZE, FRAMES = (6, 9), 3


def record(video_id: str = "v", tracks: int = 2) -> TrackRecord:
    masks = RleMasks.from_dense(np.random.default_rng(0).random((tracks, FRAMES, *SIZE)) > 0.5)
    track_set = TrackSet(
        np.arange(tracks * FRAMES * 4, dtype=np.float16).reshape(tracks, FRAMES, 4), np.ones((tracks, FRAMES), np.float16), masks,
        np.full(tracks, -1, np.int32), ("grid",) * tracks, np.zeros(tracks, np.int32), np.zeros((tracks, 4), np.float32),
    )  # fmt: skip
    truth = GroundTruth(("a",), masks.select([0]), np.array([True, False, True]))
    expressions = (Expression(video_id, "0", "a dog", ("a",)),)
    return TrackRecord(video_id, ("0", "1", "2"), SIZE, expressions, track_set, truth, count_overlap(masks, truth))


def cache_at(path: Path) -> CacheWriter:
    return CacheWriter(path, Card(kind="tracks", dataset="d", split="s", producer="p", channels=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground_truth": None}, "come together"),
        ({"overlap": None}, "come together"),
        ({"frame_names": ("0", "1")}, "video 2"),
        ({"size": (9, 6)}, r"\(9, 6\)"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(record(), **changes)


def test_a_record_whose_counts_are_of_other_annotated_frames_is_refused() -> None:
    whole = record()
    assert whole.overlap is not None
    with pytest.raises(ValueError, match="annotated"):
        replace(whole, overlap=replace(whole.overlap, annotated=np.ones(FRAMES, bool)))


def test_the_tags_of_a_text_cache_are_stored_in_one_order(tmp_path: Path) -> None:
    """The order of a Python set of texts differs from process to process, and with it the digest of the cache."""
    tags = [f"T{i}" for i in range(20, 0, -1)]
    words = Words(np.zeros((20, 4), np.float16), np.tile(np.arange(2, dtype=np.int32), (20, 1)), tuple(tags))
    writer = CacheWriter(tmp_path / "t.zarr", Card(kind="text", dataset="d", split="s", producer="p", channels=4))
    write_text(writer, TextRecord("v", (Expression("v", "0", "x", ()),), (words,)))
    cache = TextCache(tmp_path / "t.zarr")
    assert cache.folder("v").attributes["tag_names"] == sorted(tags)
    assert cache.words("v")[0].tags == tuple(tags)


STORED: dict[str, Any] = {
    "shape": [2, 3],
    "data_type": "float16",
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "chunk_grid": {"configuration": {"chunk_shape": [2, 3]}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "bytes"}, {"name": "zstd"}]},
        {"codecs": [{"name": "bytes"}]},
        {"codecs": []},
        {"shape": []},
        {"chunk_grid": {"configuration": {"chunk_shape": [2, 1]}}},
        {"chunk_grid": {"configuration": {"chunk_shape": [3, 3]}}},
        {"data_type": "nothing"},
        {"shape": None},
        {"chunk_key_encoding": {"configuration": {"separator": "-"}}},
    ],
)
def test_a_layout_of_another_format_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="of this format|not this format"):
        Layout.from_metadata({**STORED, **changes}, "a/zarr.json")


@pytest.mark.parametrize(("separator", "file"), [("/", "c/1/0"), (".", "c.1.0")])
def test_chunks_have_the_names_of_their_separator(separator: str, file: str) -> None:
    grid = {"configuration": {"chunk_shape": [1, 3]}}
    encoding = {"name": "default", "configuration": {"separator": separator}}
    layout = Layout.from_metadata({**STORED, "chunk_grid": grid, "chunk_key_encoding": encoding}, "a/zarr.json")
    assert layout.chunk_files()[1] == file


@pytest.mark.parametrize(("chunk", "by_frame"), [([2, 3], False), ([1, 3], True)])
def test_a_layout_is_one_chunk_or_one_per_frame(chunk: list[int], by_frame: bool) -> None:
    layout = Layout.from_metadata({**STORED, "chunk_grid": {"configuration": {"chunk_shape": chunk}}}, "a/zarr.json")
    assert (layout.shape, layout.dtype, layout.by_frame) == ((2, 3), np.dtype("<f2"), by_frame)


def replace_file(video: Path, name: str, raw: bytes) -> None:
    """Other bytes for a file of a video, with the digest that belongs to them."""
    (video / name).write_bytes(raw)
    files = json.loads((video / "digests.json").read_bytes())["files"]
    (video / "digests.json").write_bytes(with_checksum({"files": {**files, name: digest(raw)}}))


@pytest.mark.parametrize("damage", ["short", "long", "crc32c"])
def test_a_chunk_that_its_writer_wrote_wrong_is_one_line(tmp_path: Path, damage: str) -> None:
    write_tracks(cache_at(tmp_path / "c.zarr"), record())
    video, chunk = tmp_path / "c.zarr/videos/v", "tokens/c/0/0/0"
    body = (video / chunk).read_bytes()[:-4]
    body = {"short": body[:-2], "long": body + b"\0\0", "crc32c": body}[damage]
    crc = google_crc32c.value(body) + (damage == "crc32c")
    replace_file(video, chunk, body + crc.to_bytes(4, "little"))
    with pytest.raises(InputError, match=f"{chunk}: cannot be decoded"):
        TrackCache(tmp_path / "c.zarr").tokens("v")
    assert len(list(verify(tmp_path / "c.zarr"))) == 1


def test_tokens_with_infinite_values_are_refused_when_read(tmp_path: Path) -> None:
    write_tracks(cache_at(tmp_path / "c.zarr"), record())
    video, chunk = tmp_path / "c.zarr/videos/v", "tokens/c/0/0/0"
    whole = np.frombuffer((video / chunk).read_bytes()[:-4], "<f2")
    for value in (np.inf, -np.inf, np.nan):
        values = whole.copy()
        values[5] = value
        body = values.tobytes()
        replace_file(video, chunk, body + google_crc32c.value(body).to_bytes(4, "little"))
        with pytest.raises(InputError, match="NaN or infinite"):
            TrackCache(tmp_path / "c.zarr").tokens("v")
    largest = np.full_like(whole, 65504)
    body = (-largest).tobytes()
    replace_file(video, chunk, body + google_crc32c.value(body).to_bytes(4, "little"))
    np.testing.assert_array_equal(TrackCache(tmp_path / "c.zarr").tokens("v").ravel(), -largest)


def test_failures_are_the_last_error_of_each_video_that_is_not_there(tmp_path: Path) -> None:
    writer = cache_at(tmp_path / "c.zarr")
    for video_id, error in (("a", "first"), ("b", "of b"), ("a", "second\n  line"), ("v", "of v")):
        writer.fail(video_id, error)
    cache = TrackCache(tmp_path / "c.zarr")
    assert cache.failures() == {"a": "second line", "b": "of b", "v": "of v"}
    write_tracks(writer, record())
    assert cache.failures() == {"a": "second line", "b": "of b"}
    path = tmp_path / "c.zarr/failures.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # The same JSON in other bytes, another error under the old digest, and a torn line.
    for changed in (lines[1].replace(b'": "', b'":  "', 1), lines[1].replace(b"of b", b"of c"), lines[1][:-9] + b"\n"):
        path.write_bytes(lines[0] + changed + lines[2])
        with pytest.raises(InputError, match=r"failures\.jsonl, line 2: not a failure record"):
            cache.failures()


def test_verify_reads_the_words_and_selections_of_files_whose_digests_are_right(tmp_path: Path) -> None:
    words = Words(np.ones((2, 4), np.float16), np.zeros((2, 2), np.int32), ("A", "B"))
    selection = Selection("0", np.array([0.5, 0.25], np.float32), np.ones(2, bool))
    text = CacheWriter(tmp_path / "t.zarr", Card(kind="text", dataset="d", split="s", producer="p", channels=4))
    write_text(text, TextRecord("v", (Expression("v", "0", "x", ()),), (words,)))
    chosen = CacheWriter(tmp_path / "s.zarr", Card(kind="selections", dataset="d", split="s", producer="run"))
    write_selections(chosen, SelectionRecord("v", ("0",), SIZE, (selection,)))
    for name, chunk in (("t.zarr", "words/c/0/0"), ("s.zarr", "scores/c/0/0")):
        assert list(verify(tmp_path / name)) == []
        video = tmp_path / name / "videos/v"
        body = (video / chunk).read_bytes()[:-8]
        replace_file(video, chunk, body + google_crc32c.value(body).to_bytes(4, "little"))
        (fault,) = verify(tmp_path / name)
        assert f"{chunk}: cannot be decoded" in fault


def test_verify_names_foreign_files_in_order(tmp_path: Path) -> None:
    write_tracks(cache_at(tmp_path / "c.zarr"), record())
    for i in range(12):
        (tmp_path / f"c.zarr/videos/v/x{i:02d}").write_text("")
    assert [Path(fault.partition(":")[0]).name for fault in verify(tmp_path / "c.zarr")] == [f"x{i:02d}" for i in range(12)]


def test_the_content_digest_of_a_record_never_changes(tmp_path: Path) -> None:
    """Caches, selections and runs are bound to each other by it."""
    write_tracks(cache_at(tmp_path / "c.zarr"), record())
    assert content_digest(tmp_path / "c.zarr") == "77f86431b65a16edbc94f8deae5ecaca"
    assert TrackCache(tmp_path / "c.zarr").content("v") == "77f86431b65a16edbc94f8deae5ecaca"
    changed = record()
    tokens = changed.tracks.tokens.copy()
    tokens[1, 2, 3] += 1
    write_tracks(cache_at(tmp_path / "other.zarr"), replace(changed, tracks=replace(changed.tracks, tokens=tokens)))
    assert content_digest(tmp_path / "other.zarr") != "77f86431b65a16edbc94f8deae5ecaca"


def test_verify_names_every_damaged_file_of_a_video(tmp_path: Path) -> None:
    """Reading a video stops at the first."""
    write_tracks(cache_at(tmp_path / "c.zarr"), record())
    damaged = ["presence/c/0/0", "tokens/c/0/0/0", "tokens/zarr.json"]
    for name in damaged:
        path = tmp_path / "c.zarr/videos/v" / name
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    faults = list(verify(tmp_path / "c.zarr"))
    assert len(faults) == 3
    assert all(any(f"videos/v/{name}: its bytes do not match their digest" in fault for fault in faults) for name in damaged)
