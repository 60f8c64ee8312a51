"""Tokens of BEiT-3: SentencePiece's (tests/golden/make_beit3.py), and where they are in the sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_beit3 import tokens
from tiny_beit3 import SPM, TOKENS, write_spm

from rvos_cache.errors import InputError
from rvos_cache.text.beit3 import Beit3Tokenizer
from rvos_cache.text.beit3.tokenizer import END, PAD, START, UNKNOWN


@pytest.fixture(scope="module")
def tokenizer() -> Beit3Tokenizer:
    return Beit3Tokenizer.from_spm(SPM)


def test_ids_are_those_of_sentencepiece(tokenizer: Beit3Tokenizer) -> None:
    """In sentences that are empty, have odd blanks, ligatures, other scripts, unknown characters, names of special tokens."""
    recorded = tokens()
    assert len(recorded) > 200 and sum(UNKNOWN in ids for _, ids in recorded) > 20
    for (text, expected), (ids, _) in zip(recorded, tokenizer([text for text, _ in recorded], longest=1000)):
        assert ids.tolist() == [START, *expected, END], text
        assert ids.dtype == np.int32


def test_ids_are_numbered_like_xlm_r(tokenizer: Beit3Tokenizer) -> None:
    """`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, piece i is i + 1, `<mask>` is the last one."""
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto.FromString(SPM.read_bytes())
    assert len(tokenizer) == len(model.pieces) + 2 == TOKENS
    assert (START, PAD, END, UNKNOWN) == (0, 1, 2, 3)
    # A piece alone is one token, unless a split of it is more probable.
    alone = {p.piece: i + 1 for i, p in enumerate(model.pieces) if p.piece.startswith("▁") and p.piece[1:].isalpha()}
    got = tokenizer([piece[1:] for piece in alone])
    kept = [ids.tolist() == [START, number, END] for number, (ids, _) in zip(alone.values(), got)]
    assert np.mean(kept) > 0.9 and len(alone) > 80


def test_a_long_sentence_keeps_its_first_pieces_and_both_ends(tokenizer: Beit3Tokenizer) -> None:
    text = "the dog running " * 30
    ((ids, spans),) = tokenizer([text])
    ((short, short_spans),) = tokenizer([text], longest=5)
    assert len(ids) == len(spans) == 40 and len(short) == 5
    assert short.tolist() == [*ids[:4], END] and short_spans[:4].tolist() == spans[:4].tolist()
    assert short_spans[4].tolist() == [0, 0]
    with pytest.raises(ValueError, match="longest 2"):
        tokenizer([text], longest=2)


def test_spans_point_at_the_characters_of_the_sentence(tokenizer: Beit3Tokenizer) -> None:
    text = "The  dogs' ﬁsh 鳥, é"
    ((ids, spans),) = tokenizer([text])
    assert spans.dtype == np.int32 and spans[[0, -1]].tolist() == [[0, 0], [0, 0]]
    real = spans[1:-1]
    # Every character that is no blank belongs to a token, and no token to two words.
    covered = {i for a, b in real for i in range(a, b)}
    assert covered == {i for i, character in enumerate(text) if character != " "}
    assert not any(" " in text[a:b] for a, b in real)
    assert (np.diff(real[:, 0]) >= 0).all() and len(ids) == len(spans)
    ((_, spans),) = tokenizer(["the dog moving"])
    assert [("the dog moving")[a:b] for a, b in spans[1:-1]] == ["the", "dog", "moving"]


def test_no_word_has_two_special_tokens(tokenizer: Beit3Tokenizer) -> None:
    for text in ("", "   "):
        ((ids, spans),) = tokenizer([text])
        assert ids.tolist() == [START, END] and spans.tolist() == [[0, 0], [0, 0]]


def test_the_saved_tokenizer_is_the_same(tokenizer: Beit3Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Beit3Tokenizer.load(tmp_path / "tokenizer.json")
    texts = [text for text, _ in tokens()]
    assert len(loaded) == len(tokenizer)
    for one, two in zip(tokenizer(texts), loaded(texts)):
        assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def change(path: Path, step: Callable[[Any], object]) -> Path:
    """The tiny model file after `step`."""
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto.FromString(write_spm(path).read_bytes())
    step(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda m: setattr(m.trainer_spec, "model_type", 2), "a unigram model whose first pieces"),
        (lambda m: setattr(m.pieces[0], "piece", "<pad>"), r"first pieces are <unk>, <s>, </s> is expected, it has \['<pad>'"),
        (lambda m: setattr(m.pieces[7], "type", 4), "is neither text nor a control symbol"),
        (lambda m: setattr(m.normalizer_spec, "add_dummy_prefix", False), "its blanks are not those"),
        (lambda m: m.ClearField("pieces"), r"it has \[\]"),
    ],
)
def test_a_model_of_another_kind_is_one_line(step: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        Beit3Tokenizer.from_spm(change(tmp_path / "m.spm", step))
    assert "give beit3.spm" in str(error.value) and "\n" not in str(error.value)


def test_a_control_symbol_is_no_text(tmp_path: Path) -> None:
    """SentencePiece never returns one for a sentence."""
    number, text = next((i, ids) for i, ids in ((ids[0], text) for text, ids in tokens() if text == "dog"))
    assert Beit3Tokenizer.from_spm(SPM)([text])[0][0][1] == number
    changed = Beit3Tokenizer.from_spm(change(tmp_path / "m.spm", lambda m: setattr(m.pieces[number - 1], "type", 3)))
    assert number not in changed([text])[0][0] and len(changed) == TOKENS


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.spm").write_bytes(b"\xff\xfe no message")
    (tmp_path / "t.json").write_text("{}")
    for load, name, message in (
        (Beit3Tokenizer.from_spm, "m.spm", "not a model of SentencePiece"),
        (Beit3Tokenizer.from_spm, "none.spm", "no such file; give beit3.spm"),
        (Beit3Tokenizer.load, "t.json", "cannot be read as a tokenizer"),
        (Beit3Tokenizer.load, "none.json", "no such file; convert again"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)


def test_another_tokenizer_is_refused(tokenizer: Beit3Tokenizer, tmp_path: Path) -> None:
    """XLM-R's own has the same numbering, and takes "<s>" in a sentence for a special token."""
    tokenizer.save(tmp_path / "tokenizer.json")
    own = (tmp_path / "tokenizer.json").read_text("utf-8").replace('"<s> "', '"<s>"')
    (tmp_path / "tokenizer.json").write_text(own, "utf-8")
    with pytest.raises(InputError, match="not a tokenizer of BEiT-3"):
        Beit3Tokenizer.load(tmp_path / "tokenizer.json")
