"""Words of the text encoder `clip`: spans in the sentence as written, vectors that do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_fixtures import Tiny
from tiny_clip import PROJECTION, golden, write_hub_clip, write_tiny_clip

from rvos_cache.clip import cleaning
from rvos_cache.clip.cleaning import clean_text
from rvos_cache.clip.towers import encode_texts, load_tokenizer
from rvos_cache.errors import InputError, warn_once
from rvos_cache.extraction import extract_text
from rvos_cache.store import TextCache, read_card
from rvos_cache.text import open_encoder
from rvos_cache.text.clip import ClipEncoder, ClipSettings, cleaned_origins

pytestmark = pytest.mark.usefixtures("file_on_cpu")
SENTENCES = bytes(golden()["input.sentences"].tolist()).decode().split("\0\0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "CLIP")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return ClipEncoder(ClipSettings(checkpoint=str(folder)))


@pytest.fixture(autouse=True)
def _without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    monkeypatch.setattr(cleaning, "_ftfy", lambda: None)


def test_the_last_word_is_the_sentence_vector(encoder: ClipEncoder) -> None:
    expected, lengths = encode_texts(encoder.model, encoder.tokenizer, SENTENCES[:8])
    for words, vectors, length in zip(encoder.encode(SENTENCES[:8]), expected.numpy(), lengths):
        assert words.vectors.dtype == np.float16 and words.vectors.shape == (length, PROJECTION)
        assert np.array_equal(words.vectors, vectors[:length].astype(np.float16))
        assert words.spans[[0, -1]].tolist() == [[0, 0], [0, 0]] and words.tags[0] == words.tags[-1] == ""
    assert encoder.channels == PROJECTION


@pytest.mark.filterwarnings("ignore:cut to 77 tokens")
def test_the_batch_changes_nothing(folder: Path, encoder: ClipEncoder) -> None:
    three = ClipEncoder(ClipSettings(checkpoint=str(folder), batch_size=3))
    for text, one, two in zip(SENTENCES, encoder.encode(SENTENCES), three.encode(SENTENCES)):
        (alone,) = encoder.encode([text])
        assert one.spans.tolist() == two.spans.tolist() == alone.spans.tolist() and one.tags == alone.tags
        for other in (two, alone):
            assert np.abs(one.vectors.astype(float) - other.vectors.astype(float)).max() < 4e-3


@pytest.mark.filterwarnings("ignore:cut to 77 tokens")
def test_the_spans_of_a_sentence_are_its_words(encoder: ClipEncoder) -> None:
    text = "The RED   square\tdoesn't run &amp; jump"
    words = encoder.encode([text])[0]
    assert "".join(text[a:b] for a, b in merged(words.spans)) == "TheREDsquaredoesn'trun&amp;jump"
    tagged = {text[a:b]: tag for (a, b), tag in zip(words.spans, words.tags)}
    assert tagged["&amp;"] != "" and all(tag for span, tag in tagged.items() if span)
    for other in SENTENCES:
        spans = encoder.encode([other])[0].spans[1:-1]
        assert (np.diff(spans[:, 0]) >= 0).all() and (spans[:, 1] > spans[:, 0]).all()
        assert spans.size == 0 or spans.max() <= len(other)
        if len(spans) < 75:
            # No character of a word is left out.
            covered = np.zeros(len(other), bool)
            for start, end in spans:
                covered[start:end] = True
            assert all(covered[i] or c.isspace() for i, c in enumerate(other)), other


def merged(spans: np.ndarray) -> list[tuple[int, int]]:
    """Spans without repetitions: tokens of one character share its span."""
    return [span for span in dict.fromkeys(map(tuple, spans.tolist())) if span[1] > span[0]]


@pytest.mark.parametrize("text", SENTENCES)
def test_every_cleaned_character_has_its_origin(text: str) -> None:
    cleaned, origins = clean_text(text), cleaned_origins(text)
    assert origins.shape == (len(cleaned), 2) and origins.dtype == np.int32
    for character, (start, end) in zip(cleaned, origins):
        source = text[start:end]
        assert source.isspace() if character == " " and "&" not in source else source
        if end == start + 1 and source.isascii() and source.isalnum():
            assert source.lower() == character


def test_a_repaired_character_has_the_origin_of_what_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ftfy:
        @staticmethod
        def fix_text(text: str) -> str:
            return text.replace("’", "'").replace("Ã©", "é")

    monkeypatch.setattr(cleaning, "_ftfy", lambda: Ftfy)
    text = "  the man’s  CAFÃ© &amp; bar"
    cleaned, origins = clean_text(text), cleaned_origins(text)
    assert cleaned == "the man's café & bar"
    spans = {cleaned[i]: text[slice(*origins[i])] for i in range(len(cleaned)) if cleaned[i] in "'é&b"}
    assert spans == {"'": "’", "é": "Ã©", "&": "&amp;", "b": "b"}


def test_a_long_sentence_is_cut_with_a_warning(encoder: ClipEncoder) -> None:
    with pytest.warns(UserWarning, match="cut to 77 tokens: 'dog dog"):
        (words,) = encoder.encode(["dog " * 100])
    assert len(words.tags) == 77 and words.spans[-1].tolist() == [0, 0] and words.tags[-1] == ""
    (whole,) = encoder.encode(["a"])
    assert len(whole.tags) == 3


def test_characters_that_ftfy_may_repair_give_one_warning(encoder: ClipEncoder) -> None:
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="ftfy is not installed") as caught:
        encoder.encode(["the man’s dog", "the woman’s dog", "plain"])
    assert len(caught) == 1


def test_an_empty_sentence_is_two_tokens(encoder: ClipEncoder) -> None:
    (words,) = encoder.encode(["  "])
    assert words.vectors.shape == (2, PROJECTION) and words.tags == ("", "")


def test_a_hub_folder_is_read(folder: Path, tmp_path: Path) -> None:
    hub = write_hub_clip(tmp_path / "hub", load_tokenizer(str(folder)))
    encoder = open_encoder("clip", ClipSettings(checkpoint=str(hub)))
    (words,) = encoder.encode(["a red square"])
    assert words.vectors.shape[1] == encoder.channels == 12
    assert encoder.weight_hashes().keys() == {"hub/text", "hanta"}


def test_a_checkpoint_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CLIP checkpoint") as caught:
        ClipEncoder(ClipSettings(checkpoint=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:cut to 77 tokens")
def test_the_cache_has_the_words(folder: Path, encoder: ClipEncoder, tmp_path: Path) -> None:
    out = tmp_path / "t.zarr"
    extract_text("store_fixtures:Tiny", tmp_path / "2", "train", "clip", out, overrides={"checkpoint": str(folder)})
    assert read_card(out).channels == PROJECTION and "CLIP/text" in read_card(out).weights
    dataset = Tiny(tmp_path / "2", "train")
    video_id = next(iter(dataset.video_ids()))
    texts = [expression.text for expression in dataset.expressions(video_id)]
    for one, two in zip(TextCache(out).words(video_id), encoder.encode(texts)):
        assert np.array_equal(one.vectors, two.vectors) and one.spans.tolist() == two.spans.tolist()
