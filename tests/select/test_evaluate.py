"""Scores of whole splits: both routes, holes, the oracle."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chain import EXPRESSIONS, NAMES, write_cache, write_perfect, write_split

from rvos_cache.cli import info
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import decode_mask_png
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackCache, write_text
from rvos_cache.types import Expression, Words
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation import Scope, evaluate_pngs, evaluate_selections
from rvos_select.evaluation import video as video_protocol
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.merge import merge
from rvos_select.merging.policy import PolicyOptions

KEYS = {f"{video}/{e}" for video, expressions in EXPRESSIONS.items() for e in expressions}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, c.zarr, s.zarr and png: all exactly right."""
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data")
    cache = write_cache(out / "c.zarr")
    merge(write_perfect(out / "s.zarr", cache), [cache], out / "png")
    return out


@pytest.fixture
def split(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(source, tmp_path / "split")


def test_truth_as_prediction_scores_one_by_every_route(split: Path) -> None:
    pngs = evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    of_caches = evaluate_selections(split / "s.zarr", [split / "c.zarr"])
    of_dataset = evaluate_selections(split / "s.zarr", [split / "c.zarr"], root=split / "data")
    best = oracle([split / "c.zarr"])
    for scores in (pngs, of_caches, of_dataset, best):
        assert (scores["j"], scores["f"], scores["jf"]) == (1.0, 1.0, 1.0)
        assert scores["expressions"].keys() == KEYS
        assert "missing" not in scores
    assert pngs["kinds"]["motion"]["count"] == 2
    assert of_dataset["kinds"]["static"]["count"] == 2
    assert best["objects"] == {"a/1": 1.0, "a/2": 1.0, "b/3": 1.0}


def test_one_wrong_frame(split: Path) -> None:
    """An empty frame of one expression costs a third of it, and a twelfth of the split."""
    cv2.imwrite(str(split / "png/b/0/00001.png"), np.zeros((24, 32), np.uint8))
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    assert scores["expressions"]["b/0"] == pytest.approx({"j": 2 / 3, "f": 2 / 3})
    assert scores["jf"] == pytest.approx(11 / 12)
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(videos=["a"]))["jf"] == 1.0
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(limit=1))[
        "expressions"
    ].keys() == KEYS - {"b/0"}


def test_a_missing_frame_is_named_or_scored_zero(split: Path) -> None:
    (split / "png/b/0" / f"{NAMES[2]}.png").unlink()
    with pytest.raises(InputError, match=r"b/0/00002\.png"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(allow_missing=True))
    assert scores["missing"] == ["b/0"]
    assert scores["jf"] == 0.75


def test_a_video_without_selections_or_tracks(split: Path) -> None:
    cache = write_cache(split / "part.zarr", videos=("a",))
    selections = write_perfect(split / "part-s.zarr", cache, videos=("a",))
    with pytest.raises(InputError, match="no video b; .*--allow-missing"):
        evaluate_selections(selections, [cache], root=split / "data")
    with pytest.raises(InputError, match="video b"):
        oracle([cache], root=split / "data")
    for scores in (
        evaluate_selections(selections, [cache], root=split / "data", scope=Scope(allow_missing=True)),
        oracle([cache], root=split / "data", allow_missing=True),
    ):
        assert scores["missing"] == ["b/0"]
        assert scores["jf"] == 0.75


def test_the_caches_answer_where_the_dataset_is_gone(split: Path) -> None:
    """The hint in the card leads to the dataset, then to one that lost a video's frames, then to a broken one, then nowhere."""
    cache = write_cache(split / "h.zarr", root=split / "data")
    selections = write_perfect(split / "h-s.zarr", cache)
    assert "kinds" in evaluate_selections(selections, [cache])
    shutil.rmtree(split / "data/valid_u/JPEGImages/b")
    with pytest.raises(InputError, match="JPEGImages/b"):
        evaluate_selections(selections, [cache], root=split / "data")
    lost = evaluate_selections(selections, [cache])
    (split / "data/valid_u/meta_expressions.json").write_text("{")
    broken = evaluate_selections(selections, [cache])
    shutil.rmtree(split / "data")
    for scores in (lost, broken, evaluate_selections(selections, [cache])):
        assert scores["jf"] == 1.0
        assert scores["expressions"].keys() == KEYS


def test_the_oracle_needs_the_cache_alone(split: Path) -> None:
    """The hint in the card leads to the dataset, then to one without a video's frames, to one of which a video cannot be read,
    to nowhere; a root that is given is believed."""
    cache, meta = write_cache(split / "h.zarr", root=split / "data"), split / "data/valid_u/meta_expressions.json"
    assert "kinds" in oracle([cache])
    shutil.rmtree(split / "data/valid_u/JPEGImages/b")
    scores_of_oracle = [oracle([cache])]
    with pytest.raises(InputError, match="JPEGImages/b"):
        oracle([cache], root=split / "data")
    assert oracle([cache], root=split / "data", allow_missing=True)["missing"] == ["b/0"]
    meta.write_text(meta.read_text().replace('"thing 2"', '" "'))
    scores_of_oracle += [oracle([cache]), oracle([cache], allow_missing=True)]
    (split / "data").rename(split / "moved")
    scores_of_oracle.append(oracle([cache]))
    for scores in scores_of_oracle:
        assert scores["jf"] == 1.0 and "missing" not in scores
        assert scores["expressions"].keys() == KEYS
        assert scores["objects"] == {"a/1": 1.0, "a/2": 1.0, "b/3": 1.0}


def test_truth_of_other_frames_is_refused(split: Path) -> None:
    meta, masks = (split / "data/valid_u" / name for name in ("meta_expressions.json", "mask_dict.json"))
    content, runs = json.loads(meta.read_text()), json.loads(masks.read_text())
    content["videos"]["b"]["frames"].pop()
    runs["3"].pop()
    meta.write_text(json.dumps(content))
    masks.write_text(json.dumps(runs))
    with pytest.raises(InputError, match=r"video b: extracted from other data than .*: it had 3 frames of \(24, 32\) and has 2"):
        oracle([split / "c.zarr"], root=split / "data")


@pytest.mark.parametrize("dataset", ["at hand", "gone"])
def test_a_video_that_one_of_the_joined_caches_lacks_is_a_hole(split: Path, dataset: str) -> None:
    """Whether the selections hold it, of the time when both caches did, or not."""
    root = split / "data" if dataset == "at hand" else ""
    one, two = write_cache(split / "1.zarr", root=root), write_cache(split / "2.zarr", root=root, videos=("b",))
    CacheWriter(two, TrackCache(two).card).fail("a", "truncated")
    message = r"2\.zarr: lacks video a that .*1\.zarr has; extract it there too, or give --allow-missing"
    for video_ids in (("b",), ("a", "b")):
        selections = write_perfect(split / f"{len(video_ids)}-s.zarr", one, videos=video_ids, copies=2)
        for caches in ([one, two], [two, one]):
            scored = partial(evaluate_selections, selections, caches)
            for step in (lambda scored=scored, **scope: scored(scope=Scope(**scope)), partial(oracle, caches)):
                with pytest.raises(InputError, match=message):
                    step()
                scores = step(allow_missing=True)
                assert (scores["missing"], scores["jf"]) == (["a/0", "a/1", "a/2"], 0.25)
                assert step(videos=["b"])["jf"] == 1.0


def test_a_failed_video_that_left_the_split_is_no_hole(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither where it was renamed, nor where it was published later; where the dataset is gone, only the latter is known."""
    cache = write_cache(split / "f.zarr", root=split / "data")
    for video in ("a", "old"):
        CacheWriter(cache, TrackCache(cache).card).fail(video, "truncated")
    selections = write_perfect(split / "f-s.zarr", cache)
    other = CacheWriter(split / "o.zarr", TrackCache(cache).card.model_copy(update={"split": "train"})).path
    assert "missing" not in oracle([cache]) and "missing" not in oracle([cache, other])
    assert evaluate_selections(selections, [cache])["jf"] == 1.0

    def card_info() -> dict[str, Any]:
        info.callback(cache, True)  # type: ignore[misc]
        return json.loads(capsys.readouterr().out)

    assert (card_info()["failed"], card_info()["missing"]) == ({}, [])
    shutil.rmtree(split / "data")
    assert (card_info()["failed"], card_info()["missing"]) == ({"old": "truncated"}, None)
    assert oracle([cache], allow_missing=True)["missing"] == ["old"]
    with pytest.raises(InputError, match="video old: it failed in extraction"):
        oracle([cache])


def test_a_failed_video_is_a_hole(split: Path) -> None:
    """Its expressions score 0 each where the dataset knows them, and count as one where nobody does."""
    cache = write_cache(split / "f.zarr", videos=("b",))
    CacheWriter(cache, TrackSource([cache]).card).fail("a", "truncated")
    selections = write_perfect(split / "f-s.zarr", cache, videos=("b",))
    for root in (None, split / "data"):
        with pytest.raises(InputError, match="--allow-missing"):
            evaluate_selections(selections, [cache], root=root)
    unknown = evaluate_selections(selections, [cache], scope=Scope(allow_missing=True))
    known = evaluate_selections(selections, [cache], root=split / "data", scope=Scope(allow_missing=True))
    assert (unknown["missing"], unknown["jf"]) == (["a"], 0.5)
    assert (known["missing"], known["jf"]) == (["a/0", "a/1", "a/2"], 0.25)
    assert evaluate_selections(selections, [cache], scope=Scope(videos=["b"]))["jf"] == 1.0


def test_a_video_that_cannot_be_read_is_a_hole_too(split: Path) -> None:
    path = split / "data/valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace('"thing 2"', '" "'))
    with pytest.raises(InputError, match="expression 2: the text is empty"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(allow_missing=True))
    assert (scores["missing"], scores["jf"]) == (["a/0", "a/1", "a/2"], 0.25)


def test_hidden_answers_are_no_hole(split: Path) -> None:
    (split / "data/valid_u").rename(split / "data/valid")
    (split / "data/valid/mask_dict.json").unlink()
    with pytest.raises(InputError, match="hides its ground truth"):
        evaluate_pngs("mevis", split / "data", "valid", split / "png", scope=Scope(allow_missing=True))


def test_settings_of_the_merge_reach_the_scores(split: Path) -> None:
    everything = evaluate_selections(split / "s.zarr", [split / "c.zarr"], policy=PolicyOptions(0.05))
    nothing = evaluate_selections(split / "s.zarr", [split / "c.zarr"], policy=PolicyOptions(0.95))
    best = evaluate_selections(split / "s.zarr", [split / "c.zarr"], policy=PolicyOptions(top1=True))
    assert nothing["jf"] == 0.25  # only the expression without target
    assert everything["expressions"]["b/0"]["j"] == pytest.approx(7 / 9)
    assert best["expressions"]["a/0"]["j"] == 1.0
    assert best["expressions"]["a/1"]["j"] == pytest.approx(0.5)
    assert best["expressions"]["a/2"]["j"] == 0.0


def test_the_best_track_where_none_is_above(split: Path) -> None:
    """By hand: a/2 names nothing, and its best track is an object's; the other expressions have scores above 0.5."""
    selections, cache = split / "s.zarr", [split / "c.zarr"]
    with_top1 = evaluate_selections(selections, cache, root=split / "data", policy=PolicyOptions(empty="top1"))
    assert {key: row["j"] for key, row in with_top1["expressions"].items()} == {"a/0": 1.0, "a/1": 1.0, "a/2": 0.0, "b/0": 1.0}
    assert (with_top1["n_acc"], with_top1["t_acc"]) == (0, 1)
    masks = merge(selections, cache, split / "best", PolicyOptions(empty="top1"))
    assert with_top1 == evaluate_pngs("mevis", split / "data", "valid_u", masks)
    # No score is above 0.95, so that the best track answers all of them.
    fallback, best = (
        evaluate_selections(selections, cache, policy=options)
        for options in (PolicyOptions(0.95, empty="top1"), PolicyOptions(top1=True))
    )
    assert fallback == best != with_top1
    eager = write_perfect(split / "eager.zarr", cache[0], empty="top1")
    assert evaluate_selections(eager, cache, root=split / "data") == with_top1
    assert evaluate_selections(eager, cache, policy=PolicyOptions(empty="zeros"))["jf"] == 1.0


def test_training_tracks_are_refused(split: Path) -> None:
    cache = write_cache(split / "gt.zarr", training_only=True)
    with pytest.raises(InputError, match="training only"):
        oracle([cache])


def test_other_splits_and_videos_are_refused(split: Path) -> None:
    with pytest.raises(InputError, match="not split train"):
        oracle([split / "c.zarr"], split="train")
    with pytest.raises(InputError, match="no video zebra"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(videos=["zebra"]))
    with pytest.raises(InputError, match="no such folder"):
        evaluate_pngs("mevis", split / "data", "valid_u", split / "nothing")


@pytest.mark.slow
def test_processes_change_nothing(split: Path) -> None:
    one, two = (evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(processes=n)) for n in (1, 2))
    assert one == two


def test_slices_and_no_target(split: Path) -> None:
    """Expression a/2 has no target; of the rest a/1 alone names two objects. Both routes say the same."""
    pngs = evaluate_pngs("mevis", split / "data", "valid_u", split / "png")
    of_selections = evaluate_selections(split / "s.zarr", [split / "c.zarr"], root=split / "data")
    assert pngs == of_selections
    assert (pngs["n_acc"], pngs["t_acc"]) == (1, 1)
    counts = {name: {part: row["count"] for part, row in of_attribute.items()} for name, of_attribute in pngs["slices"].items()}
    # Squares of 56 pixels of 768 are 7 % of the frame.
    assert counts == {
        "kind": {"motion": 2, "static": 2},
        "targets": {"multi": 1, "none": 1, "single": 2},
        "words": {"1-5": 4},
        "size": {"large": 3, "none": 1},
        "frames": {"1-50": 4},
    }
    nothing = evaluate_selections(split / "s.zarr", [split / "c.zarr"], root=split / "data", policy=PolicyOptions(0.95))
    everything = evaluate_selections(split / "s.zarr", [split / "c.zarr"], root=split / "data", policy=PolicyOptions(0.05))
    assert (nothing["n_acc"], nothing["t_acc"]) == (1, 0)
    assert (everything["n_acc"], everything["t_acc"]) == (0, 1)
    assert nothing["slices"]["targets"]["none"]["jf"] == 1 and nothing["slices"]["targets"]["single"]["jf"] == 0
    assert "n_acc" not in evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(videos=["b"]))


def test_a_missing_prediction_is_no_empty_answer(split: Path) -> None:
    shutil.rmtree(split / "png/a/2")
    scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(allow_missing=True))
    assert (scores["n_acc"], scores["t_acc"], scores["missing"]) == (0, 1, ["a/2"])


def test_words_tell_the_kind_where_the_dataset_does_not(split: Path) -> None:
    texts = {"a": ("a small dog", "jumping up quickly", "a dog runs"), "b": ("oh",)}
    tags = {"a": (("AT0", "AJ0", "NN1"), ("VVG", "AVP", "AV0"), ("AT0", "NN1", "VVZ")), "b": (("ITJ",),)}
    card = Card(kind="text", dataset="mevis", split="valid_u", producer="hashed", channels=2)
    writer = CacheWriter(split / "t.zarr", card)
    for video, sentences in texts.items():
        expressions = tuple(Expression(video, e, text, None) for e, text in zip(EXPRESSIONS[video], sentences))
        words = tuple(Words(np.zeros((len(row), 2), np.float16), np.zeros((len(row), 2), np.int32), row) for row in tags[video])
        write_text(writer, TextRecord(video, expressions, words))
    meta = split / "data/valid_u/meta_expressions.json"
    meta.write_text(meta.read_text().replace('"kind"', '"sort"'))
    for texts_given, expected in (((), None), ((split / "t.zarr",), {"static": 1, "motion": 1, "both": 1, "neither": 1})):
        scores = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(texts=texts_given))
        kinds = scores["slices"].get("kind")
        assert (kinds and {part: row["count"] for part, row in kinds.items()}) == expected
        assert "kinds" not in scores


def test_equal_answers_are_worked_out_once(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three expressions of a frame: three truths, one prediction; the numbers are those of one expression at a time."""
    for e in ("1", "2"):
        shutil.rmtree(split / "png/a" / e)
        shutil.copytree(split / "png/a/0", split / "png/a" / e)
    alone = {}
    for e in EXPRESSIONS["a"]:
        meta = json.loads((split / "data/valid_u/meta_expressions.json").read_text())
        meta["videos"]["a"]["expressions"] = {e: meta["videos"]["a"]["expressions"][e]}
        (split / "one/valid_u").mkdir(parents=True, exist_ok=True)
        for name in ("JPEGImages", "mask_dict.json"):
            target = split / "one/valid_u" / name
            if not target.exists():
                target.symlink_to(split / "data/valid_u" / name)
        (split / "one/valid_u/meta_expressions.json").write_text(json.dumps(meta))
        alone |= evaluate_pngs("mevis", split / "one", "valid_u", split / "png", scope=Scope(videos=["a"]))["expressions"]
    read: list[Path] = []

    def counting(path: Path, raw: bytes, size: tuple[int, int]) -> Any:
        read.append(path)
        return decode_mask_png(path, raw, size)

    monkeypatch.setattr(video_protocol, "decode_mask_png", counting)
    together = evaluate_pngs("mevis", split / "data", "valid_u", split / "png", scope=Scope(videos=["a"]))["expressions"]
    assert len(read) == len(NAMES)
    assert together == alone


def test_solas_own_number_is_there_on_request(split: Path) -> None:
    """By selections and by PNGs, beside the benchmark's numbers, which it does not change."""
    selections, cache = split / "s.zarr", split / "c.zarr"
    plain = evaluate_selections(selections, [cache])
    also = Scope(also=("sola",))
    scores = evaluate_selections(selections, [cache], scope=also)
    names = ("j", "f", "jf", "n_acc")
    assert "pooled_f1" not in plain and [scores[name] for name in names] == [plain[name] for name in names]
    # Perfect masks; a/2 has no target and no pixel, which counts 0 there.
    assert [row["pooled_f1"] for row in scores["expressions"].values()] == [1, 1, 0, 1] and scores["pooled_f1"] == 0.75
    merge(selections, [cache], split / "own-png")
    assert evaluate_pngs("mevis", split / "data", "valid_u", split / "own-png", also)["pooled_f1"] == 0.75
    with pytest.raises(InputError, match="no further metric 'dmvs'; there are: sola"):
        Scope(also=("dmvs",))
