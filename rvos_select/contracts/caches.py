"""Small caches of random tracks and words, with any features and measurements, for contract tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, write_text, write_tracks
from rvos_cache.types import VIDEO, Expression, FeatureSpec, GroundTruth, TrackSet, Words
from rvos_select.data.caches import TrackSource
from rvos_select.data.texts import TextSource

SIZE, OBJECTS = (12, 16), 2
VIDEOS: Mapping[str, tuple[int, int]] = {"a": (7, 5), "b": (12, 3), "c": (9, 4)}
"""Video -> frames T and tracks N."""
SENTENCES = (("the dog running to the left", "0"), ("two cats", "0 1"), ("the black cat that sits down", "1"), ("no bird", ""))
"""Sentence and the objects it names."""
TOKEN_CHANNELS, WORD_CHANNELS = 16, 64
LETTER_SIZE = 3
"""Size of every letter that a feature declares beside N, T, E and A, plus its position in the alphabet of the features."""


def parse_spec(text: str) -> FeatureSpec:
    """`name:dims[:dtype]`, as "maps:T,N,8:float32". Raises InputError for another form."""
    name, _, rest = text.partition(":")
    dims, _, dtype = rest.partition(":")
    if not name or not dims:
        raise InputError(f"feature {text!r}: expected NAME:DIMS[:DTYPE], as maps:T,N,8:float32")
    try:
        return FeatureSpec(name, tuple(int(d) if d.isdigit() else d for d in dims.split(",")), np.dtype(dtype or "float16").name)
    except TypeError as error:
        raise InputError(f"feature {text!r}: no dtype {dtype!r}; give one of NumPy, as float16") from error


def write_caches(
    folder: Path, features: Sequence[FeatureSpec] = (), measurements: Sequence[FeatureSpec] = ()
) -> tuple[Path, Path]:
    """A tracks cache and a text cache of three random videos with ground truth, E = 4 expressions each; their paths.

    The last track of each video is a candidate of one expression alone; the last frame of each is not annotated.
    """
    card = Card(
        kind="tracks",
        dataset="contract",
        split="train",
        producer="contract",
        channels=TOKEN_CHANNELS,
        label_iou=0.3,
        feature_specs=[_as_card(spec) for spec in features],
        measurement_specs=[_as_card(spec) for spec in measurements],
    )
    tracks = CacheWriter(folder / "tracks.zarr", card)
    words = {"kind": "text", "channels": WORD_CHANNELS, "feature_specs": [], "measurement_specs": [], "label_iou": None}
    text = CacheWriter(folder / "text.zarr", card.model_copy(update=words))
    letters = sorted(
        {d for s in (*features, *measurements) for d in s.dims if isinstance(d, str) and d not in ("N", "T", "E", "A")}
    )
    for number, (video_id, (frames, count)) in enumerate(VIDEOS.items()):
        rng = np.random.default_rng(number)
        expressions = tuple(Expression(video_id, str(i), text, tuple(ids.split())) for i, (text, ids) in enumerate(SENTENCES))
        sizes = {"N": count, "T": frames, "E": len(expressions), "A": OBJECTS}
        sizes |= {letter: LETTER_SIZE + i + number for i, letter in enumerate(letters)}
        truth, masks = _scene(rng, frames, count)
        prompt = np.full(count, VIDEO, np.int32)
        prompt[-1] = 1
        track_set = TrackSet.from_masks(
            rng.normal(size=(count, frames, TOKEN_CHANNELS)),
            masks,
            prompt=prompt,
            features={s.name: _random(rng, s, sizes) for s in features},
        )
        record = TrackRecord(
            video_id, tuple(f"{t:05d}" for t in range(frames)), SIZE, expressions, track_set, truth, count_overlap(masks, truth),
            {s.name: _random(rng, s, sizes) for s in measurements},
        )  # fmt: skip
        write_tracks(tracks, record)
        write_text(text, TextRecord(video_id, expressions, tuple(_words(rng, e.text) for e in expressions)))
    return folder / "tracks.zarr", folder / "text.zarr"


def copy_videos(tracks: Path, texts: Path, folder: Path, count: int = 3) -> tuple[Path, Path]:
    """The `count` shortest videos of a tracks cache with expressions and a track, and their words, as caches of their own.

    Of a cache whose tracker finds no tracks, those with expressions.
    Raises InputError when there is none.
    """
    source, words = TrackSource([tracks]), TextSource([texts])
    infos = [source.info(v) for v in source.video_ids() if v in words.videos]
    # A cache whose tracker finds no tracks has frames or features for selectors that predict masks.
    with_tracks = [i for i in infos if i.tracks or not source.channels]
    usable = sorted((i for i in with_tracks if words.expressions(i.video_id)), key=lambda i: (i.frames, i.video_id))
    if not usable:
        raise InputError(f"{tracks}: no video with a track and words in {texts}; give caches of one split")
    out = CacheWriter(folder / "tracks.zarr", source.card), CacheWriter(folder / "text.zarr", words.card)
    for info in usable[:count]:
        record = source.caches[0].read(info.video_id)
        write_tracks(out[0], replace(record, tracks=replace(record.tracks)))
        write_text(out[1], TextRecord(info.video_id, words.expressions(info.video_id), words.words(info.video_id)))
    return folder / "tracks.zarr", folder / "text.zarr"


def _as_card(spec: FeatureSpec) -> dict[str, Any]:
    return {**asdict(spec), "dims": list(spec.dims)}


def _scene(rng: np.random.Generator, frames: int, count: int) -> tuple[GroundTruth, RleMasks]:
    """Objects on the two halves of the frame; tracks that cover parts of them, the first two well."""
    dense = np.zeros((OBJECTS, frames, *SIZE), bool)
    dense[0, :, 2:9, 1:7], dense[1, :, 3:10, 9:15] = True, True
    noise = rng.random((count, frames, *SIZE))
    masks = np.stack([dense[n % OBJECTS] & (noise[n] < (0.9 if n < OBJECTS else 0.3)) for n in range(count)])
    annotated = np.arange(frames) < max(1, frames - 1)
    return GroundTruth(("0", "1"), RleMasks.from_dense(dense), annotated), RleMasks.from_dense(masks)


def _random(rng: np.random.Generator, spec: FeatureSpec, sizes: Mapping[str, int]) -> NDArray[Any]:
    shape = tuple(d if isinstance(d, int) else sizes[d] for d in spec.dims)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    return (rng.random(shape) < 0.5) if dtype.kind == "b" else rng.normal(size=shape).astype(dtype)


def _words(rng: np.random.Generator, text: str) -> Words:
    """A vector and an id per word, with tags of nouns and, for words in "ing", of verbs."""
    starts, spans = 0, []
    for word in text.split():
        begin = text.index(word, starts)
        starts = begin + len(word)
        spans.append((begin, starts))
    tags = tuple("VVG" if word.endswith("ing") else "NN1" for word in text.split())
    ids = np.array([len(word) for word in text.split()], np.int32)
    return Words(rng.normal(size=(len(spans), WORD_CHANNELS)).astype(np.float16), np.array(spans, np.int32), tags, ids)
