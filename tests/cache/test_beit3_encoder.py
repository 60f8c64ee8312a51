"""The text encoder `beit3`: BEiT-3's words alone and their ids, in a text cache, and from there in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_beit3 import LONGEST, WIDTH, write_tiny_beit3

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_text
from rvos_cache.settings import build
from rvos_cache.shapes.write import write_shapes
from rvos_cache.store import CacheWriter, TextCache, TextRecord, read_card, verify, write_text
from rvos_cache.text import make_words
from rvos_cache.text.beit3 import Beit3Tokenizer, digest, load, load_tokenizer
from rvos_cache.text.beit3.encoder import Beit3Encoder, Beit3Settings
from rvos_cache.types import Expression, Words
from rvos_select.data.text_cues import word_parts
from rvos_select.data.texts import TextSource

TEXTS = [
    "The small dog  is running quickly",
    "a Cat",
    "the bird is turning around and then it is moving to the left of the tiger",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_beit3(tmp_path_factory.mktemp("beit3") / "BEIT3"))


def encoder(folder: str, **settings: object) -> Beit3Encoder:
    return Beit3Encoder(build(Beit3Settings, {"checkpoint": folder, **settings}, "beit3"))


@pytest.mark.usefixtures("on_cpu")
def test_vectors_are_those_of_the_words_alone(folder: str) -> None:
    model, tokenizer = load(folder), load_tokenizer(folder)
    for text, words in zip(TEXTS, encoder(folder, batch_size=2).encode(TEXTS)):
        ((ids, _),) = tokenizer([" ".join(text.lower().split())])
        assert words.ids is not None and words.ids.dtype == np.int32 and words.ids.tolist() == ids.tolist()
        with torch.no_grad():
            alone = model(None, torch.from_numpy(ids).long()[None], torch.ones(1, len(ids), dtype=torch.bool)).words[0]
        assert words.vectors.shape == (len(ids), WIDTH)
        assert np.abs(words.vectors.astype(np.float32) - alone.numpy()).max() < 4e-3


def test_words_have_ranges_and_tags_in_the_sentence_as_written(folder: str) -> None:
    words = encoder(folder).encode(TEXTS[:1])[0]
    named = {TEXTS[0][a:b]: tag for (a, b), tag in zip(words.spans, words.tags) if b > a}
    assert named["running"].startswith("VV") and named["dog"].startswith("NN") and "The" in named
    assert words.tags[0] == words.tags[-1] == "" and words.spans[[0, -1]].tolist() == [[0, 0], [0, 0]]


def test_case_is_kept_by_raw_alone(folder: str) -> None:
    for normalise, same in (("lower", True), ("plain", True), ("raw", False)):
        one, two = encoder(folder, normalise=normalise).encode(["the dog", "The  Dog"])
        assert np.array_equal(one.ids, two.ids) == same, normalise  # type: ignore[arg-type]


def test_a_long_sentence_is_cut_with_a_warning(folder: str) -> None:
    with pytest.warns(UserWarning, match="cut to 6 tokens: 'the bird is"):
        short = encoder(folder, longest=6).encode(TEXTS)
    assert [len(words.tags) for words in short] == [6, len(short[1].tags), 6]
    whole = encoder(folder).encode(TEXTS)[2]
    assert short[2].ids[:5].tolist() == whole.ids[:5].tolist() and short[2].tags[:5] == whole.tags[:5]  # type: ignore[index]
    with pytest.raises(InputError, match=f"longest {LONGEST + 1}, this BEiT-3 takes at most {LONGEST} tokens"):
        encoder(folder, longest=LONGEST + 1)


def test_the_card_has_the_digest_that_the_frozen_part_has(folder: str, tmp_path: Path) -> None:
    """Whatever side the frozen part is loaded for."""
    root, out = tmp_path / "shapes", tmp_path / "T.zarr"
    write_shapes(root, 2)
    extract_text("mevis", root, "train", "beit3", out, overrides={"checkpoint": folder})
    card = read_card(out)
    assert card.weights["BEIT3"] == digest(load(folder, 96)) and card.settings["checkpoint"] == folder
    assert card.settings["longest"] == 40 and card.channels == WIDTH and list(verify(out)) == []
    cache, tokenizer = TextCache(out), load_tokenizer(folder)
    (video,) = cache.video_ids()
    for expression, words in zip(cache.expressions(video), cache.words(video), strict=True):
        assert words.ids is not None and words.ids.tolist() == tokenizer([expression.text.lower()])[0][0].tolist()


def spoken(count: int, first: int | None = 5) -> Words:
    ids = None if first is None else np.arange(first, first + count)
    return make_words(np.ones((count, 4)), ids=ids)


def text_cache(path: Path, *words: Words) -> Path:
    from rvos_cache.store import Card

    expressions = tuple(Expression("v", str(i), f"dog {i}", None) for i in range(len(words)))
    cache = CacheWriter(path, Card(kind="text", dataset="d", split="s", producer="some", channels=4))
    write_text(cache, TextRecord("v", expressions, words))
    write_text(cache, TextRecord("none", (), ()))
    return path


def test_ids_are_stored_and_read_with_the_words(tmp_path: Path) -> None:
    with_ids = text_cache(tmp_path / "a.zarr", spoken(3), spoken(1, 0), spoken(2, 90))
    cache = TextCache(with_ids)
    assert [w.ids.tolist() for w in cache.words("v") if w.ids is not None] == [[5, 6, 7], [0], [90, 91]]
    assert all(w.ids is not None and w.ids.dtype == np.int32 for w in cache.words("v")) and cache.words("none") == ()
    assert list(verify(with_ids)) == []
    without = TextCache(text_cache(tmp_path / "b.zarr", spoken(3, None), spoken(1, None)))
    assert [w.ids for w in without.words("v")] == [None, None]
    # Ids are part of what a video is.
    other = TextCache(text_cache(tmp_path / "c.zarr", spoken(3), spoken(1, 1), spoken(2, 90)))
    assert cache.content("v") != other.content("v")


def test_a_damaged_file_of_ids_is_never_read(tmp_path: Path) -> None:
    cache = TextCache(text_cache(tmp_path / "a.zarr", spoken(3)))
    chunk = tmp_path / "a.zarr" / "videos" / "v" / "ids" / "c" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[2] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(InputError, match="ids/c/0"):
        cache.words("v")
    assert any("ids/c/0" in fault for fault in verify(tmp_path / "a.zarr"))


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Words\.ids are int32 \(2,\), expected int32 \(3,\)"):
        replace(spoken(3), ids=np.arange(2, dtype=np.int32))
    with pytest.raises(ValueError, match="Words.ids are int64"):
        replace(spoken(3), ids=np.arange(3))
    with pytest.raises(InputError, match=r"3 vectors and ids \(2,\); give one id per word"):
        make_words(np.ones((3, 4)), ids=[1, 2])
    with pytest.raises(ValueError, match="some words have ids and some have none"):
        TextRecord("v", tuple(Expression("v", str(i), "a", None) for i in range(2)), (spoken(1), spoken(1, None)))


def test_a_batch_has_ids_padded_with_zeros() -> None:
    words = [spoken(2, 0), spoken(4, 7)]
    parts = word_parts(words, ["hanta"] * 2, 4, ("word_ids",))
    assert parts.keys() == {"word_ids"} and parts["word_ids"].dtype == torch.int64
    assert parts["word_ids"].tolist() == [[0, 1, 0, 0], [7, 8, 9, 10]]
    assert word_parts(words, ["hanta"] * 2, 4, ("spans",)).keys() == {"spans"}
    with pytest.raises(InputError, match="the words have no ids; give words of an encoder that stores ids"):
        word_parts([spoken(2, None)], ["hanta"], 2, ("word_ids",))


def test_words_without_ids_are_refused_where_they_are_read(tmp_path: Path) -> None:
    source = TextSource([text_cache(tmp_path / "b.zarr", spoken(3, None))])
    assert len(source.words("v")) == 1
    with pytest.raises(InputError, match=r"b\.zarr: words of 'some' without ids; give words of an encoder .*--encoder beit3"):
        source.words("v", with_ids=True)


def test_the_tokenizer_is_that_of_the_model_file(folder: str) -> None:
    from tiny_beit3 import SPM

    for one, two in zip(load_tokenizer(folder)(TEXTS), Beit3Tokenizer.from_spm(SPM)(TEXTS)):
        assert np.array_equal(one[0], two[0])
