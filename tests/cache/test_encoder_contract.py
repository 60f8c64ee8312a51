"""What text caches and selectors require of every text encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_fixtures import tiny_roberta
from tiny_beit3 import write_tiny_beit3
from tiny_clip import write_tiny_clip

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_text
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TextCache, TextRecord, write_text
from rvos_cache.text import TEXT_ENCODERS, TextEncoder, encoder_class, make_words
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
# Encoder -> settings with which it needs no download. Every entry of TEXT_ENCODERS needs one.
SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "beit3": lambda folder: {"checkpoint": str(write_tiny_beit3(folder / "BEIT3")), "batch_size": 3},
    "clip": lambda folder: {"checkpoint": str(write_tiny_clip(folder / "CLIP")), "batch_size": 3},
    "hashed": lambda _: {"channels": 64},
    "minilm": lambda folder: {"checkpoint": str(tiny_roberta(folder, TEXTS))},
    "roberta": lambda folder: {"checkpoint": str(tiny_roberta(folder, TEXTS)), "batch_size": 3},
}


@pytest.fixture(scope="module", params=sorted(TEXT_ENCODERS))
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TextEncoder]:
    kind = encoder_class(request.param)
    overrides = SETTINGS[request.param](tmp_path_factory.mktemp(request.param))
    return lambda: kind(build(kind.Settings, overrides, request.param))


def encode(encoder: TextEncoder, texts: list[str]) -> list[Words]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a truncated sentence, of characters that ftfy repairs
        return encoder.encode(texts)


@pytest.fixture(scope="module")
def words(make: Callable[[], TextEncoder]) -> list[Words]:
    return encode(make(), TEXTS)


def test_one_vector_span_and_tag_per_token(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    assert len(words) == len(TEXTS)
    for one in words:
        length = len(one.tags)
        assert one.vectors.shape == (length, make().channels) and one.vectors.dtype == np.float16
        assert one.spans.shape == (length, 2) and one.spans.dtype == np.int32
        assert np.isfinite(one.vectors).all() and (one.vectors != 0).any(1).all()


def test_spans_point_into_the_text_in_order(words: list[Words]) -> None:
    for text, one in zip(TEXTS, words):
        real = one.spans[one.spans[:, 1] > one.spans[:, 0]]
        assert len(real) >= 1
        assert (real >= 0).all() and real.max() <= len(text)
        assert (np.diff(real[:, 0]) >= 0).all()
        assert text[real[0, 0]] == text.lstrip()[0]
        # Special tokens, and tokens of a blank only, have no characters.
        assert not any(tag for tag, (start, end) in zip(one.tags, one.spans) if end <= start)


def test_every_word_of_a_sentence_has_a_tag(words: list[Words]) -> None:
    tagged = {TEXTS[0][a:b].strip(): tag for (a, b), tag in zip(words[0].spans, words[0].tags) if b > a}
    assert all(tagged.values()), tagged


def test_a_new_encoder_gives_the_same_words(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    encoder = make()
    for one, two in zip(words, encode(encoder, TEXTS)):
        assert np.array_equal(one.vectors, two.vectors) and np.array_equal(one.spans, two.spans) and one.tags == two.tags
    assert encoder.weight_hashes() == make().weight_hashes()
    assert encode(encoder, []) == []


def test_batch_and_order_change_nothing(make: Callable[[], TextEncoder], words: list[Words]) -> None:
    """Long and short sentences share batches; padding is no word and does not change one."""
    for one, two in zip(words, reversed(encode(make(), TEXTS[::-1]))):
        assert one.spans.tolist() == two.spans.tolist()
        assert np.abs(one.vectors.astype(np.float32) - two.vectors.astype(np.float32)).max() < 4e-3


def test_sentences_differ(words: list[Words]) -> None:
    means = np.stack([w.vectors.astype(np.float32).mean(0) for w in words])
    apart = np.abs(means[:, None] - means[None]).max(-1)
    assert (apart[~np.eye(len(means), dtype=bool)] > 1e-3).all()


def test_the_store_returns_them_unchanged(make: Callable[[], TextEncoder], words: list[Words], tmp_path: Path) -> None:
    card = Card(kind="text", dataset="d", split="s", producer="test", channels=make().channels)
    expressions = tuple(Expression("v", str(i), text, None) for i, text in enumerate(TEXTS))
    write_text(CacheWriter(tmp_path / "t.zarr", card), TextRecord("v", expressions, tuple(words)))
    read = TextCache(tmp_path / "t.zarr")
    assert read.expressions("v") == expressions
    for one, two in zip(words, read.words("v")):
        assert np.array_equal(one.vectors, two.vectors) and np.array_equal(one.spans, two.spans) and one.tags == two.tags


class Letters(TextEncoder):
    """A user's encoder, with nothing but what is required."""

    channels = 26

    def encode(self, texts: Sequence[str]) -> list[Words]:
        return [make_words([[word.count(chr(97 + i)) for i in range(26)] for word in text.split()]) for text in texts]


class NoChannels(TextEncoder):
    def encode(self, texts: Sequence[str]) -> list[Words]:
        return [make_words(np.ones((1, 3))) for _ in texts]


class NoEncode(TextEncoder):
    channels = 3


class Alone:
    """No subclass of TextEncoder."""


HERE = "test_encoder_contract"


def extract(name: str, out: Path) -> TextCache:
    report = extract_text("store_fixtures:Tiny", out.parent / "2", "train", f"{HERE}:{name}", out)
    assert not report.failed, report.failed
    return TextCache(out)


def test_channels_and_encode_are_an_encoder(tmp_path: Path) -> None:
    cache = extract("Letters", tmp_path / "t.zarr")
    assert (cache.card.channels, cache.card.settings, cache.card.weights) == (26, {}, {})
    words = cache.words("v00")[1]
    assert words.vectors.dtype == np.float16 and words.vectors.sum(1).tolist() == [len("nothing")]
    assert words.spans.tolist() == [[0, 0]] and words.tags == ("",)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("NoChannels", "NoChannels: has no channels; set it"),
        ("NoEncode", "has no encode; write def encode"),
        ("Alone", "is not a subclass of rvos_cache.TextEncoder"),
        ("Missing", "cannot be imported"),
    ],
)
def test_a_class_that_is_no_encoder_is_one_line(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        extract(name, tmp_path / "t.zarr")
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encode", "problem"),
    [
        (lambda self, texts: [], "Letters: expected words of 2 sentences, got 0"),
        (
            lambda self, texts: [make_words(np.ones((2, 25))) for _ in texts],
            r"vectors \(L, 26\), got \(2, 25\) for 'two",
        ),
        (lambda self, texts: [np.ones((2, 26)) for _ in texts], "expected Words, got ndarray for 'two words'"),
    ],
)
def test_words_that_break_the_contract_are_one_line(encode: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Letters, "encode", encode)
    with pytest.raises(InputError, match=problem):
        Letters(Letters.Settings()).encode_checked(["two words", "one"])


def test_make_words_takes_arrays_tensors_and_lists() -> None:
    for vectors in ([[1, 2, 3], [4, 5, 6]], np.arange(1, 7).reshape(2, 3), torch.arange(1.0, 7).view(2, 3)):
        words = make_words(vectors)
        assert words.vectors.dtype == np.float16 and words.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
        assert words.spans.dtype == np.int32
    tagged = make_words(np.ones((2, 3)), spans=[(0, 3), (4, 7)], tags=["AT0", "NN1"])
    assert tagged.spans.tolist() == [[0, 3], [4, 7]] and tagged.tags == ("AT0", "NN1")


@pytest.mark.parametrize(
    ("vectors", "rest", "problem"),
    [
        ([], {}, r"expected vectors \(L, D\).*got \(0,\)"),
        (np.ones(3), {}, r"got \(3,\)"),
        ([[1e5]], {}, "not finite as float16"),
        ([[np.nan]], {}, "not finite as float16"),
        (np.ones((2, 3)), {"tags": ["NN1"]}, r"2 vectors, spans \(2, 2\) and 1 tags"),
        (np.ones((2, 3)), {"spans": [(0, 1)]}, r"2 vectors, spans \(1, 2\) and 2 tags"),
    ],
)
def test_make_words_names_what_is_wrong(vectors: Any, rest: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        make_words(vectors, **rest)
