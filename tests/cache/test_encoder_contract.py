"""What text caches and selectors assume of every text encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_fixtures import tiny_roberta

from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TextCache, TextRecord, write_text
from rvos_cache.text import TEXT_ENCODERS, TextEncoder, encoder_class
from rvos_cache.types import Expression, Words

TEXTS = [
    "The small dog is running quickly to the left.",
    "x",
    "  two  spaces\tand a tab ",
    "собака идёт налево",
    "這隻鳥 飛走了 🐦",
    "الكلب الأحمر",
    "...",
    "the bird " * 250,
]
# Encoder -> settings that make it work without a download. Every entry of TEXT_ENCODERS needs one.
SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hashed": lambda _: {"channels": 64},
    "roberta": lambda folder: {"checkpoint": str(tiny_roberta(folder, TEXTS)), "batch_size": 3},
}


@pytest.fixture(scope="module", params=sorted(TEXT_ENCODERS))
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TextEncoder]:
    kind = encoder_class(request.param)
    overrides = SETTINGS[request.param](tmp_path_factory.mktemp(request.param))
    return lambda: kind(build(kind.Settings, overrides, request.param))


def encode(encoder: TextEncoder, texts: list[str]) -> list[Words]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a sentence past the model's length is cut, and said so
        return encoder.encode(texts)


@pytest.fixture(scope="module")
def words(make: Callable[[], TextEncoder]) -> list[Words]:
    return encode(make(), TEXTS)


def test_one_vector_span_and_tag_per_token(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    assert len(words) == len(TEXTS)
    for found in words:
        length = len(found.tags)
        assert found.vectors.shape == (length, make().channels) and found.vectors.dtype == np.float16
        assert found.spans.shape == (length, 2) and found.spans.dtype == np.int32
        assert np.isfinite(found.vectors).all() and (found.vectors != 0).any(1).all()


def test_spans_point_into_the_text_in_order(words: list[Words]) -> None:
    for text, found in zip(TEXTS, words):
        real = found.spans[found.spans[:, 1] > found.spans[:, 0]]
        assert len(real) >= 1
        assert (real >= 0).all() and real.max() <= len(text)
        assert (np.diff(real[:, 0]) >= 0).all()
        assert text[real[0, 0]] == text.lstrip()[0]
        # Special tokens, and those of a blank alone, have no characters.
        assert not any(tag for tag, (start, end) in zip(found.tags, found.spans) if end <= start)


def test_every_word_of_a_sentence_has_a_tag(words: list[Words]) -> None:
    tagged = {TEXTS[0][a:b].strip(): tag for (a, b), tag in zip(words[0].spans, words[0].tags) if b > a}
    assert all(tagged.values()), tagged


def test_a_new_encoder_says_the_very_same(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    encoder = make()
    for one, two in zip(words, encode(encoder, TEXTS)):
        assert np.array_equal(one.vectors, two.vectors) and np.array_equal(one.spans, two.spans) and one.tags == two.tags
    assert encoder.weight_hashes() == make().weight_hashes()
    assert encode(encoder, []) == []


def test_company_and_order_change_nothing(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    """Long and short sentences share batches: what pads the short ones is no word and reaches none."""
    for one, two in zip(words, reversed(encode(make(), TEXTS[::-1]))):
        assert one.spans.tolist() == two.spans.tolist()
        assert np.abs(one.vectors.astype(np.float32) - two.vectors.astype(np.float32)).max() < 4e-3


def test_sentences_differ(words: list[Words]) -> None:
    means = np.stack([w.vectors.astype(np.float32).mean(0) for w in words])
    apart = np.abs(means[:, None] - means[None]).max(-1)
    assert (apart[~np.eye(len(means), dtype=bool)] > 1e-3).all()


def test_the_store_gives_them_back(make: Callable[[], TextEncoder], words: list[Words], tmp_path: Path) -> None:
    card = Card(kind="text", dataset="d", split="s", producer="test", channels=make().channels)
    said = tuple(Expression("v", str(i), text, None) for i, text in enumerate(TEXTS))
    write_text(CacheWriter(tmp_path / "t.zarr", card), TextRecord("v", said, tuple(words)))
    read = TextCache(tmp_path / "t.zarr")
    assert read.expressions("v") == said
    for one, two in zip(words, read.words("v")):
        assert np.array_equal(one.vectors, two.vectors) and np.array_equal(one.spans, two.spans) and one.tags == two.tags
