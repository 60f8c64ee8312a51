"""Moving shapes: layout, determinism, fractions of the kinds of sentences, and motion verified from the masks only."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from rvos_cache.datasets.mevis import Mevis
from rvos_cache.errors import InputError
from rvos_cache.shapes import make_video, write_shapes
from rvos_cache.shapes.language import PHRASES
from rvos_cache.shapes.paraphrase import PREDICATES, paraphrases


@pytest.fixture(scope="module")
def videos() -> list[Any]:
    return [make_video(7, 0, i) for i in range(40)]


@pytest.mark.slow
def test_same_seed_same_bytes_and_layout(tmp_path: Path) -> None:
    for name, jobs in (("a", 1), ("b", 2)):
        write_shapes(tmp_path / name, 5, 3, jobs=jobs)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    for split, count in (("train", 4), ("valid_u", 1)):
        root = tmp_path / "a" / split
        videos = json.loads((root / "meta_expressions.json").read_text())["videos"]
        masks = json.loads((root / "mask_dict.json").read_text())
        assert len(videos) == count
        for video_id, entry in videos.items():
            assert 24 <= len(entry["frames"]) <= 40
            for name in entry["frames"]:
                assert cv2.imread(str(root / "JPEGImages" / video_id / f"{name}.jpg")).shape == (96, 160, 3)
            for e in entry["expressions"].values():
                assert len(e["anno_id"]) == len(e["obj_id"])
                for a in e["anno_id"]:
                    rows = masks[str(a)]
                    assert len(rows) == len(entry["frames"])
                    assert all(r is None or (r["size"] == [96, 160] and coco.area(r) > 0) for r in rows)
    with pytest.raises(InputError):
        write_shapes(tmp_path / "a", 6, 3)


def test_the_generated_data_are_the_recorded_ones(videos: list[Any]) -> None:
    """Published scores are of these sentences and masks: a change of them must be deliberate."""
    content = hashlib.sha256()
    for _, frames, masks, sentences in videos:
        rows = [[s.text, s.targets, s.kind, s.claim, s.rival] for s in sentences]
        content.update(json.dumps([len(frames), masks.sum((2, 3)).tolist(), rows]).encode())
    assert content.hexdigest()[:16] == "78ef30bc5c271c82"


def test_fractions(videos: list[Any]) -> None:
    texts = [s for _, _, _, sentences in videos for s in sentences]
    assert np.mean([s.kind == "motion" for s in texts]) >= 0.4
    assert np.mean([len(s.targets) > 1 for s in texts]) >= 0.25
    assert 0 < np.mean([not s.targets for s in texts]) < 0.1
    assert all((s.kind == "none") == (not s.targets) for s in texts)


def test_hidden_objects_and_equal_appearance(videos: list[Any]) -> None:
    hidden = []
    for scene, _, masks, _ in videos:
        appearances = [t.appearance for t in scene.things]
        assert 3 <= len(appearances) <= 6
        assert len(set(appearances)) < len(appearances)
        runs = np.lib.stride_tricks.sliding_window_view(~masks.any((2, 3)), 4, axis=1)
        hidden.append(runs.all(-1).any())
        assert (masks.sum(0) <= 1).all()
    assert np.mean(hidden) >= 1 / 3


def test_motion_from_centroids(videos: list[Any]) -> None:
    axes = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    checked = 0
    for _, _, masks, sentences in videos:
        for s in sentences:
            for a in s.targets:
                area = masks[a].sum((1, 2))
                frames = np.flatnonzero(area > 0.3 * np.percentile(area, 80))
                points = np.array([[axis.mean() for axis in np.nonzero(masks[a, t])[::-1]] for t in frames])
                if s.claim in axes:
                    assert (points[-1] - points[0]) @ np.array(axes[s.claim]) > 15, s
                elif s.claim in ("grow", "shrink"):
                    assert (area[frames[-1]] > area[frames[0]]) == (s.claim == "grow"), s
                elif s.claim == "enter":
                    assert not area[:4].any(), s
                elif s.claim == "leave":
                    assert not area[-4:].any(), s
                else:
                    continue
                checked += 1
    assert checked > 60


FUNCTION_WORDS = {
    "a", "after", "all", "an", "and", "are", "as", "at", "before", "by", "do", "for", "from", "in", "into", "is", "it", "like", "of",
    "off", "only", "out", "the", "their", "there", "to", "up", "with",
}  # fmt: skip
"""Articles, pronouns, conjunctions, prepositions and auxiliaries, which both kinds of sentences may have."""


def content_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w'-]+", text.lower())) - FUNCTION_WORDS


def said(videos: list[Any]) -> tuple[list[Any], list[Any]]:
    """The sentences of the videos, and a paraphrase of each, twice."""
    sentences = [s for _, _, _, texts in videos for s in texts]
    rng = np.random.default_rng(0)
    return sentences * 2, [*paraphrases(rng, sentences), *paraphrases(rng, sentences)]


def test_paraphrases_have_other_words_and_another_syntax(videos: list[Any]) -> None:
    """No content word is shared, so no set of content words is; training sentences are noun phrases, paraphrases are not."""
    sentences, others = said(videos)
    vocabulary = {word for s in sentences for word in content_words(s.text)}
    vocabulary |= {word for wordings in PHRASES.values() for pair in wordings for text in pair for word in content_words(text)}
    assert len(vocabulary) > 100
    for s in others:
        assert content_words(s.text) and not content_words(s.text) & vocabulary, s
        assert not s.text.startswith(("the ", "all ", "everything ")) and s.text.split()[0] not in vocabulary, s
    assert all(s.text.startswith(("the ", "all ", "everything ")) for s in sentences)
    for wordings in PREDICATES.values():
        for predicate in wordings:
            assert not any(content_words(text) & vocabulary for text in predicate), predicate


def test_paraphrases_say_what_their_sentences_say(videos: list[Any]) -> None:
    sentences, others = said(videos)
    assert [(s.targets, s.kind, s.claim, s.noun) for s in others] == [(s.targets, s.kind, s.claim, s.noun) for s in sentences]
    assert set(PREDICATES) == set(PHRASES)
    # One text has one meaning: the opposites of a claim differ in it.
    meanings: dict[str, set[tuple[str, str, bool]]] = {}
    for s in others:
        meanings.setdefault(s.text, set()).add((s.claim, s.noun, len(s.targets) > 1))
    assert all(len(meaning) == 1 for meaning in meanings.values())
    assert len(meanings) > 500
    for _, _, _, texts in videos:
        again = paraphrases(np.random.default_rng(1), texts)
        assert len({s.text for s in again}) == len(texts)
    assert np.mean([s.kind == "motion" for s in others]) >= 0.4


def test_the_paraphrases_are_the_recorded_ones(videos: list[Any]) -> None:
    """As with the sentences, a change must be deliberate."""
    texts = [s.text for s in paraphrases(np.random.default_rng(0), [s for _, _, _, texts in videos for s in texts])]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == "b1ded966cd99fa7e"


def test_the_split_of_paraphrases_has_the_videos_and_the_truth_of_the_other(tmp_path: Path) -> None:
    for _ in range(2):
        write_shapes(tmp_path, 6, 3)
    # Without videos of its own, it is extracted when it is asked for.
    assert Mevis.splits(tmp_path) == ["train", "valid_u"]
    plain, other = Mevis(tmp_path, "valid_u"), Mevis(tmp_path, "valid_p")
    assert list(other.check()) == [] and other.has_ground_truth
    assert other.video_ids() == plain.video_ids()
    for video_id in plain.video_ids():
        assert np.array_equal(other.video(video_id).read(3), plain.video(video_id).read(3))
        truth, same = plain.ground_truth(video_id), other.ground_truth(video_id)
        assert truth is not None and same is not None and np.array_equal(truth.masks.dense(), same.masks.dense())
        pairs = list(zip(plain.expressions(video_id), other.expressions(video_id), strict=True))
        assert pairs and all(a.targets == b.targets and a.text != b.text for a, b in pairs)
        assert all(plain.kind(video_id, a.expression_id) == other.kind(video_id, b.expression_id) for a, b in pairs)
