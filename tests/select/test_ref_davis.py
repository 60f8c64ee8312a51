"""Ref-DAVIS17's scores over a split: the plain code, holes, annotators, both routes, real videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from davis_fixtures import (
    FRAMES,
    NAMED,
    NAMES,
    SIZE,
    annotation,
    real_split,
    right,
    write_cache,
    write_masks,
    write_scores,
    write_split,
)
from PIL import Image
from plain_scores import plain_davis

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import write_mask_png
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TextRecord, TrackCache, write_selections, write_text
from rvos_cache.types import Selection, Words
from rvos_select.evaluation import Scope, annotator_rows
from rvos_select.evaluation.ref_davis import evaluate_pngs, evaluate_selections
from rvos_select.merging.merge import merge
from rvos_select.merging.policy import PolicyOptions


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data")
    write_masks(out / "png")
    return out


@pytest.fixture
def split(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(source, tmp_path / "split")


def from_pngs(split: Path, strict: bool = False, **scope: Any) -> dict[str, Any]:
    return evaluate_pngs("ref-davis17", split / "data", "valid", split / "png", strict=strict, scope=Scope(**scope))


KEYS = {f"a/{a}/{n}" for a in range(4) for n in (1, 2, 3)} | {f"b/{a}/{n}" for a in range(4) for n in (1, 2)}
LEFT = 0.5
"""What an empty proposal scores with b's second object: it is absent in half of the frames."""


def test_truth_as_prediction(source: Path) -> None:
    """All that the expressions name is right; what none names is paired with nothing, as the benchmark does."""
    for strict in (False, True):
        scores = from_pngs(source, strict=strict)
        assert scores["objects"].keys() == KEYS
        assert scores["protocol"] == ("davis-strict" if strict else "davis-unsupervised")
        for key, numbers in scores["objects"].items():
            assert numbers == ({"j": LEFT, "f": LEFT} if key.startswith("b/") and key.endswith("/2") else {"j": 1.0, "f": 1.0})
        mean = pytest.approx({"j": (4 + LEFT) / 5, "f": (4 + LEFT) / 5, "jf": (4 + LEFT) / 5})
        assert {k: scores[k] for k in ("j", "f", "jf")} == mean
        assert scores["annotators"] == {str(a): mean for a in range(4)}
        assert "missing" not in scores
        only = from_pngs(source, strict=strict, videos=["a"])
        assert (only["j"], only["f"], only["jf"]) == (1.0, 1.0, 1.0)
        assert from_pngs(source, strict=strict, limit=1) == only


def test_rows_of_annotators(source: Path, tmp_path: Path) -> None:
    """Each with its own objects, whose mean is the row; a split of one annotator has the one row that there is."""
    scores = from_pngs(source)
    rows = annotator_rows(scores)
    assert list(rows) == [f"annotator {a}" for a in range(4)]
    for a, row in enumerate(rows.values()):
        assert set(row["objects"]) == {key for key in KEYS if key.split("/")[1] == str(a)}
        assert row["j"] == pytest.approx(np.mean([object_row["j"] for object_row in row["objects"].values()]))
    write_split(tmp_path / "data", annotators=1)
    write_masks(tmp_path / "png", annotators=1)
    assert annotator_rows(from_pngs(tmp_path)) == annotator_rows({"jf": 1.0}) == {}


def test_the_table_is_the_plain_code_over_the_split(split: Path) -> None:
    """Worn masks, other for each annotator: the means over objects of both videos, then over annotators."""
    rng = np.random.default_rng(0)
    for path in sorted((split / "png").rglob("*.png")):
        mask = np.asarray(Image.open(path)) > 0
        write_mask_png(path, np.roll(mask, rng.integers(-9, 10, 2), (0, 1)) | (rng.random(SIZE) < 0.01))
    for strict in (False, True):
        scores, means = from_pngs(split, strict=strict), []
        for a in range(4):
            sums = np.zeros(2)
            for video, objects in NAMED.items():
                maps = np.zeros((FRAMES, *SIZE), np.uint8)
                for i in reversed(range(objects)):
                    for t, name in enumerate(NAMES):
                        maps[t][np.asarray(Image.open(split / "png" / video / str(4 * i + a) / f"{name}.png")) > 0] = i + 1
                sums += plain_davis(maps, np.stack([annotation(video, t) for t in range(FRAMES)]), strict)
            means.append(sums / 5)
            assert scores["annotators"][str(a)] == pytest.approx({"j": means[a][0], "f": means[a][1], "jf": means[a].mean()})
        assert (scores["j"], scores["f"]) == pytest.approx(tuple(np.mean(means, axis=0)), abs=1e-9)
        assert scores["jf"] == pytest.approx((scores["j"] + scores["f"]) / 2, abs=1e-12)


def counts_of(scores: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: {part: row["count"] for part, row in of_attribute.items()} for name, of_attribute in scores["slices"].items()}


def test_slices_by_hand(source: Path) -> None:
    """20 objects, of each of four annotators 5. Squares of 144 of 2400 pixels; b has its second, which nothing names, in half of
    the frames."""
    scores = from_pngs(source)
    assert counts_of(scores) == {
        "objects": {"multi": 20},
        "words": {"1-5": 16, "none": 4},
        "size": {"large": 20},
        "frames": {"1-50": 20},
    }
    assert scores["slices"]["words"]["1-5"] == {"j": 1.0, "f": 1.0, "jf": 1.0, "count": 16}
    assert scores["slices"]["words"]["none"] == {"j": LEFT, "f": LEFT, "jf": LEFT, "count": 4}


@pytest.mark.slow
def test_sentences_of_annotators_differ(split: Path, tmp_path: Path) -> None:
    """The second annotator's are long, and a text cache tells that they speak of motion; video b is not in it."""
    listed = split / "data/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(listed.read_text())
    for video, entry in meta["videos"].items():
        for i in range(NAMED[video]):
            entry["expressions"][str(4 * i + 1)]["exp"] = "one two three four five six runs"
    listed.write_text(json.dumps(meta))
    writer = CacheWriter(tmp_path / "t.zarr", Card(kind="text", dataset="ref-davis17", split="valid", producer="x", channels=2))
    expressions = RefDavis17(split / "data", "valid").expressions("a")
    words = [
        Words(np.zeros((1, 2), np.float16), np.zeros((1, 2), np.int32), ("VVZ" if "runs" in e.text else "AJ0",))
        for e in expressions
    ]
    write_text(writer, TextRecord("a", expressions, tuple(words)))
    for processes in (1, 2):
        counts = counts_of(from_pngs(split, texts=(tmp_path / "t.zarr",), processes=processes))
        assert counts["words"] == {"1-5": 12, "6-10": 4, "none": 4}
        assert counts["kind"] == {"motion": 3, "static": 9, "unknown": 8}


def test_exchanged_objects_are_forgiven_by_default_and_not_by_strict(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "data", tmp_path / "data")
    write_masks(tmp_path / "png", shown=lambda video, n: {1: 2, 2: 1}.get(n, n) if video == "a" else n)
    assert from_pngs(tmp_path)["objects"] == from_pngs(source)["objects"]
    strict = from_pngs(tmp_path, strict=True)["objects"]
    assert [strict[f"a/2/{n}"]["j"] for n in (1, 2, 3)] == [0.0, 0.0, 1.0]


def test_empty_predictions(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "data", tmp_path / "data")
    write_masks(tmp_path / "png", shown=lambda video, n: 0)
    scores = from_pngs(tmp_path)
    assert (scores["j"], scores["f"]) == (LEFT / 5, LEFT / 5)


def test_one_annotator(tmp_path: Path) -> None:
    write_split(tmp_path / "data", annotators=1)
    write_masks(tmp_path / "png", annotators=1)
    scores = from_pngs(tmp_path, videos=["a"])
    assert (scores["jf"], list(scores["annotators"])) == (1.0, ["0"])
    assert scores["objects"].keys() == {"a/0/1", "a/0/2", "a/0/3"}


def test_an_absent_annotator_is_refused(split: Path) -> None:
    path = split / "data/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(path.read_text())
    for i in range(3):
        del meta["videos"]["a"]["expressions"][str(4 * i + 3)]
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="expected 4 expressions per object, got 9"):
        from_pngs(split)


def test_a_missing_mask_is_named_or_scored_zero(split: Path) -> None:
    """Its object scores 0 for that annotator, and no other proposal may take it: not the one that is left over in strict."""
    (split / "png/a/6" / f"{NAMES[2]}.png").unlink()
    with pytest.raises(InputError, match=r"a/6/00002\.png: the prediction is missing; .*--allow-missing"):
        from_pngs(split)
    for strict in (False, True):
        scores = from_pngs(split, allow_missing=True, strict=strict)
        assert scores["missing"] == ["a/6"]
        assert [key for key, row in scores["objects"].items() if row["j"] == 0] == ["a/2/2"]
        assert scores["annotators"]["1"]["j"] == (4 + LEFT) / 5
        assert scores["annotators"]["2"]["j"] == pytest.approx((3 + LEFT) / 5)


def test_a_missing_mask_is_no_empty_mask(split: Path) -> None:
    """Where the object is absent an empty mask is right; a missing one scores 0 there too."""
    shutil.rmtree(split / "png/b/0")
    for t in range(1, FRAMES):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(split / f"data/valid/Annotations/b/{NAMES[t]}.png")
    scores = from_pngs(split, allow_missing=True)
    assert [scores["objects"][f"b/0/{n}"]["j"] for n in (1, 2)] == [0.0, 0.75]
    assert scores["missing"] == ["b/0"]


@pytest.mark.parametrize("what", ["annotation", "expression"])
def test_a_video_that_cannot_be_read(split: Path, what: str) -> None:
    """Its objects score 0 where the expressions tell them, one where they do not."""
    listed = split / "data/meta_expressions/valid/meta_expressions.json"
    if what == "annotation":
        (split / "data/valid/Annotations/a/00002.png").write_bytes(b"")
    else:
        listed.write_text(listed.read_text().replace('"1 by 2"', '" "'))
    with pytest.raises(InputError, match="a/00002.png" if what == "annotation" else "expression 6: the text is empty"):
        from_pngs(split)
    scores = from_pngs(split, allow_missing=True)
    objects, missing = (3, [f"a/{i}" for i in range(12)]) if what == "annotation" else (1, ["a"])
    assert scores["missing"] == missing
    assert scores["j"] == pytest.approx((1 + LEFT) / (2 + objects))
    assert counts_of(scores)["size"] == {"large": 8, "unknown": 4 * objects}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "a/0/00001.png").write_bytes(b"x"), r"a/0/00001\.png: not a whole PNG"),
        (lambda p: Image.new("L", (5, 6)).save(p / "a/0/00001.png"), r"a/0/00001\.png: the mask is \(6, 5\)"),
        (lambda p: Image.new("L", SIZE[::-1], 7).save(p / "a/0/00001.png"), r"a/0/00001\.png: a mask holds 0 and 255"),
        (lambda p: shutil.rmtree(p), "png: no such folder of predictions"),
    ],
)
def test_a_damaged_prediction_is_no_hole(split: Path, change: Callable[[Path], object], message: str) -> None:
    change(split / "png")
    with pytest.raises(InputError, match=message) as error:
        from_pngs(split, allow_missing=True)
    assert "\n" not in str(error.value)


def test_other_splits_and_videos_are_refused(source: Path) -> None:
    with pytest.raises(InputError, match="no video zebra"):
        from_pngs(source, videos=["zebra"])
    with pytest.raises(InputError, match="splits of .*: valid"):
        evaluate_pngs("ref-davis17", source / "data", "train", source / "png")


def test_a_split_without_objects(split: Path) -> None:
    for path in (split / "data/valid/Annotations").rglob("00000.png"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"a/00000\.png: .* the largest number in the first frame, 0, not object 1 of"):
        from_pngs(split)


@pytest.mark.slow
def test_processes_change_nothing(source: Path) -> None:
    assert from_pngs(source, processes=2) == from_pngs(source)


# From selections.


@pytest.mark.slow
def test_selections_score_as_their_masks_do(split: Path) -> None:
    """The right halves; nothing overlaps, so that PNGs say the same."""
    cache = write_cache(split / "c.zarr", split / "data")
    selections = write_scores(split / "s.zarr", lambda video, i: right(video, i + NAMED[video]))
    pngs = merge(selections, [cache], split / "halves", PolicyOptions(top1=True))
    for strict in (False, True):
        scores = evaluate_selections(selections, [cache], strict=strict)
        assert scores == evaluate_pngs("ref-davis17", split / "data", "valid", pngs, strict=strict)
        assert scores["objects"]["a/1/2"]["j"] == 0.5
    assert evaluate_selections(selections, [cache], root=split / "data", scope=Scope(processes=2)) == evaluate_selections(
        selections, [cache]
    )


def test_the_larger_score_wins_a_pixel(split: Path) -> None:
    """The third sentence takes everything. Where its score is the least, or equal, the others keep theirs."""
    cache = write_cache(split / "c.zarr", split / "data")
    for score, expected in ((0.5, [1, 1, 1]), (0.6, [1, 1, 1]), (0.7, [0, 0, 1 / 3])):

        def scores(video: str, i: int, score: float = score) -> np.ndarray:
            return np.where(np.arange(7) == 6, score, 0.1) if (video, i) == ("a", 2) else right(video, i)

        selections = write_scores(split / f"{score}.zarr", scores)
        objects = evaluate_selections(selections, [cache], strict=True, scope=Scope(videos=["a"]))["objects"]
        assert [objects[f"a/3/{n}"]["j"] for n in (1, 2, 3)] == pytest.approx(expected)


def test_tracks_above_a_threshold_or_the_best(split: Path) -> None:
    cache = write_cache(split / "c.zarr", split / "data")

    def halves(video: str, i: int) -> np.ndarray:
        out = right(video, i + NAMED[video])
        out[i] = 0.55
        return out

    selections = write_scores(split / "s.zarr", halves)
    for policy, expected in (
        (PolicyOptions(), 0.5),
        (PolicyOptions(0.5), 1.0),
        (PolicyOptions(0.58), 0.5),
        (PolicyOptions(top1=True), 0.5),
        (PolicyOptions(0.9), 0.0),
        (PolicyOptions(0.9, empty="zeros"), 0.0),
        (PolicyOptions(0.9, empty="top1"), 0.5),
        (PolicyOptions(0.5, empty="top1"), 1.0),
    ):
        scores = evaluate_selections(selections, [cache], scope=Scope(videos=["a"]), policy=policy)
        assert scores["j"] == pytest.approx(expected)
    # Without a threshold an answer is never empty.
    with pytest.raises(InputError, match="s.zarr: each expression gets its best track; give --empty together with --threshold"):
        evaluate_selections(selections, [cache], policy=PolicyOptions(empty="zeros"))


def test_holes_of_selections_and_caches(split: Path) -> None:
    whole, part = write_cache(split / "c.zarr", split / "data"), write_cache(split / "p.zarr", split / "data", ["b"])
    whole_selections, part_selections = write_scores(split / "s.zarr", right), write_scores(split / "f.zarr", right, ["b"])
    for selections, cache, message in (
        (part_selections, whole, "no selection of expression a/0"),
        (whole_selections, part, "no video a"),
    ):
        with pytest.raises(InputError, match=f"{message}.*--allow-missing"):
            evaluate_selections(selections, [cache])
        scores = evaluate_selections(selections, [cache], scope=Scope(allow_missing=True))
        assert scores["missing"] == [f"a/{4 * i + a}" for a in range(4) for i in range(3)]
        assert scores["j"] == pytest.approx((1 + LEFT) / 5)
        assert evaluate_selections(selections, [cache], scope=Scope(videos=["b"]))["j"] == pytest.approx((1 + LEFT) / 2)


def test_caches_without_their_dataset_and_of_others(split: Path) -> None:
    """Void pixels and objects that no expression names are in no cache."""
    cache, selections = write_cache(split / "c.zarr", split / "data"), write_scores(split / "s.zarr", right)
    (split / "data").rename(split / "moved")
    with pytest.raises(InputError, match="holds? no void pixels; give --root"):
        evaluate_selections(selections, [cache])
    assert evaluate_selections(selections, [cache], root=split / "moved")["j"] == pytest.approx((4 + LEFT) / 5)
    other = CacheWriter(split / "o.zarr", TrackCache(cache).card.model_copy(update={"dataset": "mevis"})).path
    with pytest.raises(InputError, match="holds mevis valid, not dataset ref-davis17"):
        evaluate_selections(selections, [other])


def test_tracks_of_other_frames_are_refused(split: Path) -> None:
    cache, selections = write_cache(split / "c.zarr", split / "data"), write_scores(split / "s.zarr", right)
    path = split / "data/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["a"]["frames"].pop()
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"video a: extracted from other data than .*: it had 4 frames of \(40, 60\) and has 3"):
        evaluate_selections(selections, [cache], root=split / "data", scope=Scope(allow_missing=True))


# Real videos.


@pytest.mark.slow
def test_real_videos_with_their_own_annotation(real_data: Path, tmp_path: Path) -> None:
    """Of four annotators, where only the first of them is right of its two objects and the others are given the other one."""
    data = RefDavis17(
        real_split(real_data, tmp_path / "data", "meta_expressions_x4.json", ["car-shadow", "scooter-black"]), "valid"
    )
    for video in data.video_ids():
        for expression in data.expressions(video):
            truth, (target,) = data.ground_truth(video), expression.targets or ()
            assert truth is not None
            folder = tmp_path / "png" / video / expression.expression_id
            folder.mkdir(parents=True)
            (k,) = truth.indices([target])
            if data.annotator(video, expression.expression_id):
                k = len(truth.object_ids) - 1 - k
            for t, name in enumerate(data.video(video).frame_names):
                write_mask_png(folder / f"{name}.png", truth.masks.decode(k, t))
    scores = evaluate_pngs("ref-davis17", tmp_path / "data", "valid", tmp_path / "png")
    assert (scores["j"], scores["f"], len(scores["objects"])) == (1.0, 1.0, 12)
    strict = evaluate_pngs("ref-davis17", tmp_path / "data", "valid", tmp_path / "png", strict=True)["annotators"]
    assert strict["0"]["jf"] == 1.0 and all(strict[a]["jf"] < 0.5 for a in "123")


def test_selections_of_other_frames_are_refused(split: Path) -> None:
    cache = write_cache(split / "c.zarr", split / "data")
    writer = CacheWriter(split / "s.zarr", Card(kind="selections", dataset="ref-davis17", split="valid", producer="run"))
    one = Selection("0", np.full(7, 0.9, np.float32), np.ones(7, bool))
    write_selections(writer, SelectionRecord("a", NAMES[:3], SIZE, (one,)))
    with pytest.raises(InputError, match="s.zarr, video a: made of other frames .* it had 3 frames of .* and has 4 of"):
        evaluate_selections(writer.path, [cache], scope=Scope(videos=["a"]))
