"""Text encoders: spans of the words, vectors that do not depend on the batch, tags of published examples."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from text_fixtures import tiny_roberta

from rvos_cache.cli import main
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_text
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, read_card
from rvos_cache.system.counts import counted
from rvos_cache.text.cues import align_tags, cue, particles
from rvos_cache.text.cut import warn_of_cut
from rvos_cache.text.hashed import HashedEncoder, HashedSettings
from rvos_cache.text.normalise import normalise_text, original_spans, plain_word, split_words
from rvos_cache.text.roberta import RobertaEncoder, RobertaSettings
from rvos_cache.types import Words
from rvos_select.data.texts import TextSource, check_same_encoder

SENTENCES = ["The dog dancing quickly to the left.", "這隻鳥 飛走了 🐦", "the bird " * 250, "x"]


def test_hashed_spans_point_at_the_words() -> None:
    for text, words in zip(SENTENCES, HashedEncoder(HashedSettings()).encode(SENTENCES)):
        assert [text[a:b] for a, b in words.spans[1:]] == [w for w, _, _ in split_words(text) if w != "."]
        assert words.spans[0].tolist() == [0, 0]
        assert words.vectors.shape == (len(words.tags), 256)


def test_hashed_is_the_same_in_another_process() -> None:
    code = (
        "from rvos_cache.text.hashed import *; import hashlib;"
        "print(hashlib.sha256(HashedEncoder(HashedSettings()).encode(['a red bird'])[0].vectors.tobytes()).hexdigest())"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert run[0] == run[1]
    assert len(run[0].strip()) == 64


def test_hashed_vectors_are_the_recorded_ones() -> None:
    """Other vectors would be another encoder under the same card."""
    vectors = HashedEncoder(HashedSettings()).encode(["then left"])[0].vectors[:, [0, 1, 2, 190]]
    assert np.allclose(
        vectors, [[2.652, -2.066, -0.647, 2.475], [2.871, 2.488, -0.336, 0.172], [-1.224, -0.466, -0.633, -0.069]], atol=2e-3
    )


def test_hashed_nearness_follows_letters() -> None:
    encoder = HashedEncoder(HashedSettings(pairs=0))
    words = ["moving", "moves", "circle", "circles", "turning", "turns", "square", "squares"]
    vectors = np.stack([encoder.encode([w])[0].vectors[1, :144] for w in words]).astype(float)
    near = vectors @ vectors.T / (vectors**2).sum(1).mean()
    related = [near[i, i + 1] for i in range(0, 8, 2)]
    foreign = [near[i, j] for i in range(8) for j in range(8) if i // 2 != j // 2]
    assert np.mean(related) > np.mean(foreign) + 0.15
    same = encoder.encode(["bird bird"])[0].vectors
    assert np.array_equal(same[1][:144], same[2][:144])
    assert not np.array_equal(same[1], same[2])


def test_hashed_pairs_tell_the_order_of_words() -> None:
    """Both sentences have the same words: only pairs distinguish them, at any position in the sentence."""
    texts = ["that grows and then shrinks", "that shrinks and then grows"]
    sums = {}
    for pairs in (0.0, 0.7):
        one, two = (w.vectors[:, :144].astype(float) for w in HashedEncoder(HashedSettings(pairs=pairs)).encode(texts))
        sums[pairs] = np.linalg.norm(one.sum(0) - two.sum(0)) / np.linalg.norm(one.sum(0))
    assert sums[0.0] < 1e-3 < 0.3 < sums[0.7]
    channels = 4096
    cross = HashedEncoder(HashedSettings(pairs=0.5, channels=channels)).encode(["red bird", "blue bird", "old red bird"])
    a, b, c = (w.vectors[-1, : channels * 3 // 4].astype(float) for w in cross)
    assert np.array_equal(a, c)
    assert a @ b / (a @ a) == pytest.approx(1 / (1 + 0.5**2), abs=0.06)


def test_cues() -> None:
    text = "The small dog is running quickly to the left"
    spans = np.array([(a, b) for _, a, b in split_words(text)], np.int32)
    kinds = dict(zip(text.split(), [cue(tag) for tag in align_tags(text, spans)]))
    assert {w for w, kind in kinds.items() if kind == "motion"} >= {"running", "quickly"}
    assert {w for w, kind in kinds.items() if kind == "static"} >= {"small", "dog"}
    assert kinds["The"] == kinds["is"] == "other"


def test_ing_words_that_hanta_calls_nouns_are_motion() -> None:
    for word in ("dancing", "eating"):
        text = f"the bird {word} there"
        spans = np.array([(a, b) for _, a, b in split_words(text)], np.int32)
        assert cue(align_tags(text, spans)[2]) == "motion"


@pytest.mark.parametrize(
    ("text", "attached"),
    [
        ("the cat playing with a ball", ["with"]),
        ("the person turning around", ["around"]),
        ("the dog walking slowly to the left of the cat", ["to"]),
        ("the bird on the tree", []),
        ("the dog in the back is running", []),
    ],
)
def test_a_preposition_of_a_verb_belongs_to_it(text: str, attached: list[str]) -> None:
    """The first two are the paper's examples of motion words; a preposition after a noun does not belong to the verb."""
    words = split_words(text)
    tags = align_tags(text, np.array([(a, b) for _, a, b in words], np.int32))
    # HanTa may tag "around" as an adverb, which is a motion word anyway.
    marked = [
        word
        for (word, _, _), tag, is_particle in zip(words, tags, particles(tags))
        if is_particle or (cue(tag) == "motion" and word in attached)
    ]
    assert marked == attached
    assert particles(("", "VBG", "RB", "IN", "", "IN", "VBZ", "RP"), "spacy") == [False] * 3 + [True] + [False] * 3 + [True]


def test_tags_of_subwords_and_special_tokens() -> None:
    spans = np.array([(0, 0), (0, 2), (2, 3), (4, 11), (0, 0)], np.int32)
    tags = align_tags("dog quickly", spans)
    assert tags[0] == tags[4] == ""
    # Tokens of blanks only, which touch a word before or after.
    assert align_tags("a  dog ", np.array([(0, 1), (1, 3), (3, 6), (6, 7)], np.int32))[1::2] == ("", "")
    assert tags[1] == tags[2]
    assert cue(tags[1]) == "static"
    assert cue(tags[3]) == "motion"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta(tmp_path_factory.mktemp("roberta"), SENTENCES)


def test_roberta_words_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    encoder = RobertaEncoder(build(RobertaSettings, {"checkpoint": str(checkpoint)}, "test"))
    texts = ["the bird", "The dog dancing quickly to the left."]
    together = encoder.encode(texts)
    for text, words in zip(texts, together):
        alone = encoder.encode([text])[0]
        assert np.abs(words.vectors.astype(float) - alone.vectors.astype(float)).max() < 2e-3
        assert words.spans[0].tolist() == [0, 0]
        assert words.tags[0] == ""
        assert text[words.spans[1][0] : words.spans[-2][1]] == text
    assert encoder.channels == 32
    assert len(next(iter(encoder.weight_hashes().values()))) == 32


def test_roberta_warns_when_it_truncates(checkpoint: Path) -> None:
    encoder = RobertaEncoder(build(RobertaSettings, {"checkpoint": str(checkpoint)}, "test"))
    with pytest.warns(UserWarning, match="cut to 40 tokens"):
        words = encoder.encode([SENTENCES[2]])[0]
    assert len(words.tags) == 40


def test_the_command_warns_in_one_line_per_truncated_sentence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--dataset",
        "store_fixtures:Tiny",
        "--root",
        str(tmp_path / "1"),
        "--split",
        "train",
        "--out",
        str(tmp_path / "t"),
    ]
    options += ["--encoder", "roberta", "--set", f"checkpoint={checkpoint}"]
    monkeypatch.setattr(sys, "argv", ["rvos-cache", "extract-text", *options])
    with pytest.raises(SystemExit) as stop:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if " to go" not in line]
    assert stop.value.code == 0 and len(lines) == 1
    assert lines[0].startswith("warning: cut to 40 tokens: 'собака идёт налево")


def test_sentences_that_were_cut_are_one_warning_of_an_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = HashedEncoder.encode

    def cut(self: HashedEncoder, texts: Sequence[str]) -> list[Words]:
        for text in texts:
            warn_of_cut(4, text, stacklevel=1)
        warnings.warn("of something else", stacklevel=1)
        return encode(self, texts)

    monkeypatch.setattr(HashedEncoder, "encode", cut)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extract_text("store_fixtures:Tiny", tmp_path / "2", "train", "hashed", tmp_path / "t.zarr")
    messages = [str(warning.message) for warning in caught]
    assert set(messages[:-1]) == {"of something else"}
    assert re.fullmatch(r"\d+ different sentences were cut, the first cut to 4 tokens: '.*'\.\.\.", messages[-1])


def test_numbers_of_things() -> None:
    assert [counted(n, "video") for n in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded") as error:
        RobertaEncoder(RobertaSettings(checkpoint=str(tmp_path)))
    assert "\n" not in str(error.value)


ORIGINAL = "  The  BLACK Dog\tturning\u00a0ΟΔΟΣ  İ x \n"


@pytest.mark.parametrize("text", [ORIGINAL, *SENTENCES, "a", "A B", " \u2003 z", ""])
def test_lower_is_the_normalisation_of_the_published_datasets_with_the_origin_of_each_character(text: str) -> None:
    """ReferFormer's, MeViS's and ReferDINO's datasets: `" ".join(exp.lower().split())`."""
    normalised, origins = normalise_text(text, "lower")
    assert normalised == " ".join(text.lower().split())
    assert origins.shape == (len(normalised), 2) and origins.dtype == np.int32
    assert (origins[1:] >= origins[:-1]).all()
    for character, (start, end) in zip(normalised, origins):
        assert end == start + 1
        # The lower case of a capital sigma depends on its position in the word.
        assert text[start].isspace() if character == " " else character.replace("ς", "σ") in text[start].lower()
    raw, raw_origins = normalise_text(text, "raw")
    assert raw == text and raw_origins.tolist() == [[i, i + 1] for i in range(len(text))]


PLAIN = "the dog's tail moving first to the left then back"
SAME = [
    f"{PLAIN}.", f"{PLAIN} !", f"{PLAIN}?!…", f"{PLAIN},", f"  {PLAIN}\t", PLAIN.replace(" ", "  "), PLAIN.upper(),
    PLAIN.capitalize(), f'"{PLAIN}"', f"“{PLAIN}.”", f"«{PLAIN}»", f"'{PLAIN}'", f"({PLAIN})", f"- {PLAIN}",
    PLAIN.replace("'", "’"), PLAIN.replace("'", "ʼ"), PLAIN.replace("'", "´"), PLAIN.replace("left ", "left, "),
    PLAIN.replace("left ", "left; "), f"\ufeff{PLAIN}\u200b", PLAIN.replace("tail", '"tail"'), PLAIN.replace("tail", "ｔａｉｌ"),
]  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_punctuation_case_and_blanks_change_neither_vectors_nor_tags(text: str) -> None:
    expected, words = HashedEncoder(HashedSettings()).encode([PLAIN, text])
    assert np.array_equal(words.vectors, expected.vectors)
    # The comma separates phrases, which may change a tag.
    assert words.tags == expected.tags or "," in text or ";" in text
    for (a, b), (c, d) in zip(words.spans[1:], expected.spans[1:]):
        assert plain_word(text[a:b]) == PLAIN[c:d]
    raw = HashedEncoder(HashedSettings(normalise="raw")).encode([text])[0]
    tags = {plain_word(text[a:b]): tag for (a, b), tag in zip(raw.spans, raw.tags)}
    assert {**tags, "the": ""} == {**tags, **dict(zip(PLAIN.split(), words.tags[1:])), "the": ""}


def test_accents_are_the_same_composed_and_decomposed() -> None:
    one, two = HashedEncoder(HashedSettings()).encode(["a café", "a cafe\u0301"])
    assert np.array_equal(one.vectors, two.vectors) and len(one.tags) == 3
    assert one.spans[2].tolist() == [2, 6] and two.spans[2].tolist() == [2, 7]


def test_words_that_differ_stay_different() -> None:
    """Plain text keeps what is inside a word, symbols and the order."""
    texts = [
        "dog's tail",
        "dogs tail",
        "the right-angled turn",
        "the right angled turn",
        "a 🐦",
        "a 🐤",
        "one two",
        "two one",
        "...",
        "?",
    ]
    words = HashedEncoder(HashedSettings()).encode(texts)
    for i, one in enumerate(words):
        assert all(one.vectors.shape != two.vectors.shape or not np.array_equal(one.vectors, two.vectors) for two in words[:i])


def test_plain_text_and_the_origin_of_each_character() -> None:
    text = " “The DOG’s  Straße”, ﬁne!"
    plain, origins = normalise_text(text, "plain")
    assert plain == "the dog's strasse fine"
    # Where the length of a word changes, its characters have the range of the word.
    assert original_spans(np.array([(0, 3), (4, 9), (10, 12), (18, 22)], np.int32), origins).tolist() == [
        [2, 5], [6, 11], [13, 19], [22, 25]
    ]  # fmt: skip
    assert normalise_text("?!", "plain")[0] == "?!" and normalise_text("", "plain")[0] == ""


def test_words_from_another_normalisation_are_not_mixed(tmp_path: Path) -> None:
    """A cache of the time when punctuation marks were words, and of the tags of that time."""
    extract_text("store_fixtures:Tiny", tmp_path / "1", "train", "hashed", tmp_path / "t.zarr")
    card = read_card(tmp_path / "t.zarr")
    for update, field in (
        ({"settings": {**card.settings, "normalise": "raw"}}, "settings.normalise"),
        ({"weights": {"hanta": "1.2.1, rules 2"}}, "weights.hanta"),
    ):
        other = card.model_copy(update=update)
        with pytest.raises(InputError, match=field):
            check_same_encoder(other, "the run", TextSource([tmp_path / "t.zarr"]))
        with pytest.raises(InputError, match=f"made with {field}"):
            CacheWriter(tmp_path / "t.zarr", other)


def test_hashed_lower_changes_no_vector_and_its_spans_are_of_the_original_text() -> None:
    raw, lower = (HashedEncoder(HashedSettings(normalise=how)).encode([ORIGINAL])[0] for how in ("raw", "lower"))
    assert [ORIGINAL[a:b] for a, b in lower.spans[1:]][:4] == ["The", "BLACK", "Dog", "turning"]
    assert np.array_equal(raw.spans[:5], lower.spans[:5]) and np.array_equal(raw.vectors[:5], lower.vectors[:5])
    plain = HashedEncoder(HashedSettings()).encode(["the black dog turning"])[0]
    assert lower.tags[:5] == plain.tags


def test_roberta_lower_is_the_lowered_sentence(checkpoint: Path) -> None:
    def encoder(**values: object) -> RobertaEncoder:
        return RobertaEncoder(build(RobertaSettings, {"checkpoint": str(checkpoint), **values}, "test"))

    text = " The  Dog dancing Quickly\tto the LEFT. "
    lower = encoder(normalise="lower").encode([text, "x"])[0]
    plain = encoder().encode([" ".join(text.lower().split()), "x"])[0]
    assert np.array_equal(lower.vectors, plain.vectors) and lower.tags == plain.tags
    raw = encoder().encode([text, "x"])[0]
    assert np.array_equal(raw.vectors, encoder(normalise="raw").encode([text, "x"])[0].vectors)
    assert raw.vectors.shape != lower.vectors.shape or not np.array_equal(raw.vectors, lower.vectors)
    assert text[lower.spans[1, 0] : lower.spans[-2, 1]] == text.strip()
    for (a, b), (c, d) in zip(lower.spans[1:-1], plain.spans[1:-1]):
        assert " ".join(text[a:b].lower().split()) == " ".join(text.lower().split())[c:d].strip()


def test_the_card_has_the_normalisation_and_is_bound_to_it(tmp_path: Path) -> None:
    root, out = tmp_path / "1", tmp_path / "t.zarr"
    extract_text("store_fixtures:Tiny", root, "train", "hashed", out, overrides={"normalise": "lower"})
    assert read_card(out).settings["normalise"] == "lower"
    with pytest.raises(InputError, match="normalise"):
        extract_text("store_fixtures:Tiny", root, "train", "hashed", out)
    with pytest.raises(InputError, match="'raw', 'lower' or 'plain'.*'upper'"):
        build(RobertaSettings, {"normalise": "upper"}, "test")
