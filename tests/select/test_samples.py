"""Parts of a batch that tell which words are cues: by the tags of whichever tagger made them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, read_card, write_text, write_tracks
from rvos_cache.types import Expression, TrackSet, Words
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource

SIZE, FRAMES = (4, 6), 3
CUES = ("motion_words", "static_words", "spans")
# "the dog is running": the verb that moves is VV in C5 and VB in Penn, where "is" is one too.
TAGS = {"hanta": ("", "AT0", "NN1", "VBZ", "VVG"), "spacy": ("", "DT", "NN", "VBZ", "VBG")}
MOTION = {"hanta": [0, 0, 0, 0, 1], "spacy": [0, 0, 0, 1, 1]}
SPANS = [[0, 0], [0, 3], [4, 7], [8, 10], [11, 18]]


def write(folder: Path, tagger: str, settings: dict[str, object]) -> tuple[Path, Path]:
    """Tracks and words of one video, named as the tagger, of a dataset of its own."""
    shared = {"dataset": tagger, "split": "train"}
    tracks = CacheWriter(folder / f"{tagger}.zarr", Card(kind="tracks", producer="x", channels=2, **shared))  # type: ignore[arg-type]
    words = CacheWriter(
        folder / f"{tagger}-text.zarr",
        Card(kind="text", producer="hashed", channels=2, settings=settings, **shared),  # type: ignore[arg-type]
    )
    expressions = (Expression(tagger, "0", "the dog is running", None),)
    track_set = TrackSet(
        np.zeros((1, FRAMES, 2), np.float16), np.ones((1, FRAMES), np.float16), RleMasks.empty(1, FRAMES, SIZE),
        np.full(1, -1, np.int32), ("grid",), np.zeros(1, np.int32), np.zeros((1, 4), np.float32),
    )  # fmt: skip
    names = tuple(f"{t:05d}" for t in range(FRAMES))
    write_tracks(tracks, TrackRecord(tagger, names, SIZE, expressions, track_set, None, None))
    tags = TAGS.get(tagger, TAGS["hanta"])
    spoken = Words(np.ones((len(tags), 2), np.float16), np.array(SPANS, np.int32), tags)
    write_text(words, TextRecord(tagger, expressions, (spoken,)))
    return tracks.path, words.path


def loaded(folder: Path, tagger: str, settings: dict[str, object], requires: tuple[str, ...] = CUES) -> VideoSample:
    tracks, words = write(folder, tagger, settings)
    return load_video(TrackSource([tracks]), TextSource([words]), tagger, requires=requires)


def test_ids_come_with_the_words_in_each_kind_of_batch(tmp_path: Path) -> None:
    requires = ("word_ids",)
    (tmp_path / "a").mkdir()
    tracks, words = write(tmp_path / "a", "hanta", {})
    numbered = TextSource([words]).words("hanta")[0]
    card = read_card(words)
    cache = CacheWriter(tmp_path / "b.zarr", card)
    expressions = TextSource([words]).expressions("hanta")
    write_text(cache, TextRecord("hanta", expressions, (replace(numbered, ids=np.arange(5, dtype=np.int32) * 1000),)))
    sample = load_video(TrackSource([tracks]), TextSource([cache.path]), "hanta", requires=requires)
    for batch in (collate([(sample, 0)], requires), collate([(sample, 0)] * 2, requires, frames=[[0, 2], [1, 1]])):
        assert batch.word_ids is not None and batch.word_ids.dtype == torch.int64
        assert batch.word_ids.tolist() == [[0, 1000, 2000, 3000, 4000]] * len(batch)
    assert collate([(sample, 0)]).word_ids is None
    with pytest.raises(InputError, match=r"hanta-text\.zarr: words of 'hashed' without ids"):
        load_video(TrackSource([tracks]), TextSource([words]), "hanta", requires=requires)
    with pytest.raises(ValueError, match="word_ids"):
        replace(batch, word_ids=batch.word_ids[:, 1:])


def cues_of(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    assert batch.motion_words is not None and batch.static_words is not None
    return batch.motion_words[row].int().tolist(), batch.static_words[row].int().tolist()


def test_prepositions_of_a_verb_are_a_part_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "is" is a verb that moves in Penn alone."""
    monkeypatch.setattr(
        sys.modules[__name__], "TAGS", {"hanta": ("", "NN1", "VVG", "PRP", "PRP"), "spacy": ("", "NN", "IN", "VBZ", "IN")}
    )
    for tagger, wanted in (("hanta", [0, 0, 0, 1, 1]), ("spacy", [0, 0, 0, 0, 1])):
        sample = loaded(tmp_path, tagger, {"tagger": tagger}, ("particle_words",))
        marks = collate([(sample, 0)], ("particle_words",)).particle_words
        assert marks is not None and marks.int().tolist() == [wanted]
        assert collate([(sample, 0)]).particle_words is None


def test_cues_are_those_of_the_words_own_tagger(tmp_path: Path) -> None:
    """In each kind of batch; two sets of one run may have been tagged by two."""
    both = [loaded(tmp_path, tagger, {"tagger": tagger}) for tagger in TAGS]
    for sample in both:
        batch = collate([(sample, 0)], CUES)
        assert cues_of(batch, 0) == (MOTION[sample.video_id], [0, 0, 1, 0, 0])
        assert batch.spans is not None and batch.spans[0].tolist() == SPANS
    picked = [(sample, 0) for sample in both]
    for batch in (collate(picked, CUES), collate(picked, CUES, frames=[[0, 2], [1, 1]])):
        assert [cues_of(batch, i)[0] for i in range(2)] == [MOTION[sample.video_id] for sample in both]


def test_an_encoder_that_names_no_tagger_has_the_default_one(tmp_path: Path) -> None:
    sample = loaded(tmp_path, "hanta", {})
    assert cues_of(collate([(sample, 0)], CUES), 0)[0] == MOTION["hanta"]


def test_tags_without_a_known_meaning_are_refused_where_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stanza-text\.zarr: tags of 'stanza', cues are known of hanta, spacy"):
        loaded(tmp_path / "a", "stanza", {"tagger": "stanza"})
    batch = collate([(loaded(tmp_path / "b", "stanza", {"tagger": "stanza"}, ("spans",)), 0)], ("spans",))
    assert batch.motion_words is None and batch.spans is not None
