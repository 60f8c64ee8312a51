"""Several datasets in one run: how often each is drawn, labels by each cache's threshold, a run on another set's cache."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_caches import TRACKS, numbers, settings, write

from rvos_cache.errors import InputError
from rvos_cache.store import SelectionCache, read_card
from rvos_select.data.caches import TrackSource
from rvos_select.data.epochs import count_steps, epoch_order, items_per_epoch, set_weights, steps
from rvos_select.data.samples import label_thresholds, load_video
from rvos_select.data.sources import LabelSettings, held_out, read_sources
from rvos_select.data.texts import TextSource
from rvos_select.inference.predict import predict
from rvos_select.training import train as loop
from rvos_select.training.train import train


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawn_by_hand() -> None:
    sets = ["a"] * 4 + ["b"] * 5
    twice = Counter(epoch_order(sets, {"a": 2.5, "b": 0.5}, seeded(0)))
    assert {twice[i] for i in range(4)} == {2, 3} and sum(twice[i] for i in range(4)) == 10
    assert sum(twice[i] for i in range(4, 9)) == 3 == len([i for i in range(4, 9) if twice[i] == 1])
    assert [items_per_epoch(n, w) for n, w in ((5, 0.5), (3, 0.1), (0, 3.0), (4, 1.0), (7, 3.0))] == [3, 1, 0, 4, 21]
    assert epoch_order(sets, {"a": 2}, None) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=30),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 4)),
    st.integers(0, 99),
)
def test_every_item_comes_as_often_as_its_weight_says(sets: list[str], weights: dict[str, float], seed: int) -> None:
    counts = Counter(epoch_order(sets, weights, seeded(seed)))
    for name, count in Counter(sets).items():
        times = [counts[i] for i, own in enumerate(sets) if own == name]
        assert sum(times) == max(1, int(count * weights.get(name, 1.0) + 0.5))
        assert max(times) - min(times) <= 1


def test_no_weight_is_the_plain_order_and_a_half_is_another_half_each_time() -> None:
    sets = ["b", "a"] * 10
    assert (
        epoch_order(sets, {}, seeded(3))
        == epoch_order(sets, {"a": 1, "b": 1.0}, seeded(3))
        == torch.randperm(20, generator=seeded(3)).tolist()
    )
    times = Counter(i for seed in range(400) for i in epoch_order(["a"] * 10, {"a": 0.5}, seeded(seed)))
    assert all(150 < times[i] < 250 for i in range(10))


def test_the_weight_of_a_split_goes_before_that_of_its_dataset(tmp_path: Path) -> None:
    cards = [
        read_card(write(tmp_path / d / s, s, ["v"], dataset=d)[0]) for d, s in (("m", "train"), ("m", "fit"), ("y", "train"))
    ]
    weights = set_weights(cards, {"m": 2, "m/fit": 0.5})
    assert weights == {"m/train": 2, "m/fit": 0.5, "y/train": 1}
    with pytest.raises(InputError, match=r"weights: no training cache is of 'z'; there are: m, m/fit, m/train, y, y/train"):
        set_weights(cards, {"z": 2})


@pytest.fixture
def joint(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Two datasets to train on, of four and three videos, and one to validate with."""
    return {
        "one": write(tmp_path / "one", "train", ["v0", "v1", "v2", "v3"], dataset="one"),
        "two": write(tmp_path / "two", "train", ["w0", "w1", "w2"], dataset="two"),
        "valid": write(tmp_path / "one", "valid", ["x0"], dataset="one"),
    }


def run(joint: dict[str, tuple[Path, Path]], out: Path, resume: bool = False, **values: object) -> Path:
    (a, b), (c, d), (e, f) = joint["one"], joint["two"], joint["valid"]
    return train([a, c], [b, d], settings=settings(**values), valid_tracks=[e], valid_texts=[f], out=out, resume=resume)


@pytest.mark.parametrize(("how", "one", "two"), [("video", 8, 2), ("single", 32, 6)])
def test_an_epoch_takes_each_set_as_often_as_it_is_told(
    tmp_path: Path, joint: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, how: str, one: int, two: int
) -> None:
    """Four and three videos of four expressions, weights 2 and a half: 4 * 2 and 3 / 2 rounded up, or 16 * 2 and 12 / 2."""
    step, seen = loop.Run._step, []

    def spied(self: loop.Run, batch: object, name: str, at: int) -> dict[str, float]:
        seen.append(name)
        return step(self, batch, name, at)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Run, "_step", spied)
    out = run(joint, tmp_path / "run", batch=how, weights={"one": 2, "two/train": 0.5})
    epochs = [seen[i : i + one + two] for i in range(0, len(seen), one + two)]
    assert len(seen) == 3 * (one + two)
    for epoch in epochs:
        times = Counter(epoch)
        assert {times[name] for name in times if name[0] == "v"} == {2}
        assert {times[name] for name in times if name[0] == "w"} == {1}
        assert sum(times[name] for name in times if name[0] == "w") == two
    assert len({tuple(epoch) for epoch in epochs}) == 3
    record = json.loads((out / "settings.json").read_text())
    assert record["settings"]["weights"] == {"one": 2, "two/train": 0.5}
    assert record["sets"]["one/train"] == {"weight": 2, "items": one // 2, "drawn": one}
    assert record["sets"]["two/train"]["drawn"] == two
    assert record["missing"] == {"training": {}, "validation": {}}


def test_a_joint_run_resumes_to_the_very_numbers(
    tmp_path: Path, joint: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"one": 1.5, "two": 0.5}
    whole = run(joint, tmp_path / "whole", batch="single", weights=weights)
    step, calls = loop.Run._step, []

    def interrupted(self: loop.Run, *arguments: object) -> dict[str, float]:
        calls.append(0)
        if len(calls) == self.steps_per_epoch + 5:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(joint, tmp_path / "cut", batch="single", weights=weights)
    cut = run(joint, tmp_path / "cut", resume=True, batch="single", weights=weights)
    assert numbers(cut) == numbers(whole)
    assert (cut / "last/model.safetensors").read_bytes() == (whole / "last/model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"weights.two = 0.5, now it is 1.0"):
        run(joint, cut, resume=True, batch="single", weights={"one": 1.5, "two": 1.0})


def test_weights_of_one_are_the_same_run_as_none(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    assert numbers(run(joint, tmp_path / "a")) == numbers(run(joint, tmp_path / "b", weights={"one": 1, "two": 1}))


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(ValueError, match="weights.one"):
        settings(weights={"one": weight})


def test_an_unknown_set_is_one_line(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    for name in ("three", "one/valid"):
        with pytest.raises(InputError, match=f"no training cache is of '{name}'; there are: one, one/train, two, two/train"):
            run(joint, tmp_path / "run", weights={name: 2})
    assert not (tmp_path / "run").exists()


def test_as_many_batches_as_counted(joint: dict[str, tuple[Path, Path]]) -> None:
    tracks, words = (TrackSource([joint["one"][0], joint["two"][0]]), TextSource([joint["one"][1], joint["two"][1]]))
    samples = [load_video(tracks, words, v) for v in tracks.video_ids()]
    assert {s.set_name for s in samples} == {"one/train", "two/train"}
    for how, size, weights in (("video", 1, {}), ("single", 5, {"one/train": 0.3}), ("video", 1, {"two/train": 2.4})):
        all_steps = list(steps(samples, how, size, seeded(0), weights))  # type: ignore[arg-type]
        assert len(all_steps) == count_steps(samples, how, size, weights)  # type: ignore[arg-type]


def test_the_mirror_of_a_held_out_video_is_not_trained_on(tmp_path: Path) -> None:
    """Also where only the mirror has ground-truth tracks, which are never held out themselves."""
    names = [f"v{i}" for i in range(6)]
    caches = write(tmp_path / "a", "train", names, dataset="one")
    true = write(tmp_path / "b", "train-mirror", [f"{n}-mirror" for n in names], dataset="one", only=True)
    given = {"requires": (), "weights": {}, "labels": LabelSettings(), "hold_out": 0.3}
    read = read_sources([caches[0], true[0]], [caches[1], true[1]], (), (), **given)  # type: ignore[arg-type]
    valid, trained = {s.video_id for s in read.valid}, {s.video_id for s in read.train}
    assert valid == set(held_out(names, 0.3)) and 0 < len(valid) < 6
    assert trained == {v for n in names if n not in valid for v in (n, f"{n}-mirror")}


# Sets that name videos alike, and the scores of each.


def test_sets_that_name_videos_alike_train_together(tmp_path: Path) -> None:
    """As RefCOCO and RefCOCO+ do: the tokens, labels and masks are those of each set's own cache."""
    names = [f"v{i}" for i in range(4)]
    one = write(tmp_path / "one", "train", names, dataset="one")
    two = write(tmp_path / "two", "train", names, dataset="two", narrow=True)
    given = {"requires": (), "weights": {}, "labels": LabelSettings(0.7), "hold_out": 0.3}
    read = read_sources([one[0], two[0]], [one[1], two[1]], (), (), **given)  # type: ignore[arg-type]
    valid = set(held_out(names, 0.3))
    assert 0 < len(valid) < 4
    for samples, videos in ((read.valid, valid), (read.train, set(names) - valid)):
        assert {(s.set_name, s.video_id) for s in samples} == {(n, v) for n in ("one/train", "two/train") for v in videos}
    for sample in (*read.train, *read.valid):
        assert sample.target is not None and bool(sample.target.any()) is (sample.set_name == "one/train")


def perfect(**values: object) -> dict[str, object]:
    """A module that learns these caches whole in a few epochs."""
    return {"selector": "mean-cosine", "config": {}, "optim": {"lr": 0.03}, "epochs": 40, "valid_expressions": 0, **values}


def test_each_validated_set_has_its_own_scores(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    """Tracks that are two thirds of their objects: J is 2/3, and 1 where nothing is named; the other set's tracks are whole."""
    narrow = write(tmp_path / "narrow", "valid", ["x0", "x1"], dataset="narrow", narrow=True)
    (a, b), (c, d) = joint["one"], joint["valid"]
    row = numbers(
        train(
            [a],
            [b],
            settings=settings(**perfect()),
            valid_tracks=[c, narrow[0]],
            valid_texts=[d, narrow[1]],
            out=tmp_path / "run",
        )
    )[-1]
    assert row["valid/one/valid/j"] == 1 == row["valid/one/valid/jf"]
    assert row["valid/narrow/valid/j"] == pytest.approx((3 * 2 / 3 + 1) / 4)
    for name in ("j", "f", "jf"):
        mean = (4 * row[f"valid/one/valid/{name}"] + 8 * row[f"valid/narrow/valid/{name}"]) / 12
        assert row[f"valid/{name}"] == pytest.approx(mean)
    alone = numbers(
        train([a], [b], settings=settings(**perfect(epochs=1)), valid_tracks=[c], valid_texts=[d], out=tmp_path / "alone")
    )[-1]
    assert [name for name in alone if name.count("/") > 1] == []


def test_videos_that_are_trained_and_validated_on_are_said(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "train", ["v0", "v1-mirror", "v2"])
    for videos, says in ((["v1", "x"], r"1 videos .* first v1 of tiny/valid, in tiny/train: .*keep each video in one of them"),
                         (["v2-mirror", "v0"], r"2 videos .* first v0 of tiny/valid")):  # fmt: skip
        c, d = write(tmp_path / videos[0], "valid", videos)
        with pytest.warns(UserWarning, match=says) as told:
            train([a], [b], settings=settings(epochs=1), valid_tracks=[c], valid_texts=[d], out=tmp_path / f"run-{videos[0]}")
        assert ["trained on" in str(warning.message) for warning in told].count(True) == 1


def test_no_such_warning_where_none_is_seen(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(joint, tmp_path / "run", epochs=1)
        train([joint["one"][0]], [joint["one"][1]], settings=settings(epochs=1), out=tmp_path / "by-hash")
    assert [str(warning.message) for warning in told if "trained on" in str(warning.message)] == []


def test_a_set_without_words_is_one_line(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    (a, b), (c, _) = joint["one"], joint["two"]
    with pytest.raises(InputError, match=r"two/train/flow.zarr: no text cache of two/train was given; add --text"):
        train([a, c], [b], settings=settings(), out=tmp_path / "run")


def test_words_of_a_whole_split_serve_its_parts(tmp_path: Path) -> None:
    """Ref-YouTube-VOS's fit, with words that were extracted for train."""
    a, _ = write(tmp_path, "fit", ["v0", "v1"])
    _, b = write(tmp_path, "train", ["v0", "v1", "v2"])
    assert train([a], [b], settings=settings(epochs=1), out=tmp_path / "run").exists()


# Labels.


def test_each_cache_has_its_own_threshold(tmp_path: Path) -> None:
    """Tracks of two thirds of their object (IoU 2/3), positive at 0.5, not at 0.7: two caches of a split, one of another."""
    one, text = write(tmp_path / "one", "train", ["v0"], narrow=True)
    two, _ = write(tmp_path / "two", "train", ["v0"], narrow=True, label_iou=0.7)
    three, other = write(tmp_path / "three", "train", ["w0"], narrow=True, label_iou=0.7, dataset="other")
    tracks, words = TrackSource([one, two, three]), TextSource([text, other])
    own = label_thresholds(tracks, None)
    assert [own[str(path)] for path in (one, two, three)] == [0.5, 0.7, 0.7]
    right, wrong = np.eye(4, TRACKS), np.zeros((4, TRACKS))
    joined = load_video(tracks, words, "v0", thresholds=own).target
    assert joined is not None and np.array_equal(joined.numpy(), np.concatenate([right, wrong], axis=1))
    alone = load_video(tracks, words, "w0", thresholds=own).target
    assert alone is not None and not alone.any()
    for limit, expected in ((0.6, right), (0.7, wrong)):
        same = load_video(tracks, words, "w0", thresholds=label_thresholds(tracks, limit)).target
        assert same is not None and np.array_equal(same.numpy(), expected)
    out = train([one, two, three], [text, other], settings=settings(epochs=1), out=tmp_path / "run")
    assert json.loads((out / "settings.json").read_text())["resolved"]["label_iou"] == [0.5, 0.7, 0.7]
    out = train([one, two, three], [text, other], settings=settings(epochs=1, label_iou=0.6), out=tmp_path / "set")
    assert json.loads((out / "settings.json").read_text())["resolved"]["label_iou"] == 0.6


def test_a_cache_without_a_threshold_is_named(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    joint["two"] = write(tmp_path / "none", "train", ["w0"], dataset="two", label_iou=None)
    with pytest.raises(InputError, match="none/train/flow.zarr: its card gives no label threshold; --set label_iou"):
        run(joint, tmp_path / "run")
    assert run(joint, tmp_path / "run", epochs=1, label_iou=0.5).exists()


# A run on the cache of another set.


def test_zero_shot_scores_what_its_own_set_would(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    """The tokens of both sets mean the same, so a module trained on one selects right in the other."""
    (a, b), (c, d), (e, f) = joint["one"], joint["two"], joint["valid"]
    given = settings(selector="mean-cosine", config={}, optim={"lr": 0.03}, epochs=40)
    out = train([a], [b], settings=given, valid_tracks=[e], valid_texts=[f], out=tmp_path / "run")
    selection_cache = SelectionCache(predict(out, [c], [d], tmp_path / "s.zarr"))
    assert (selection_cache.card.dataset, selection_cache.card.split) == ("two", "train")
    for video in ("w0", "w1", "w2"):
        chosen = [(s.scores > selection_cache.card.extra["threshold"]).tolist() for s in selection_cache.selections(video)]
        assert chosen == [*np.eye(3, dtype=bool).tolist(), [False] * 3]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"producer": "sam2"}, r"other/train/flow.zarr: tokens of tracker sam2, .*run was trained with flow; extract them alike"),
        ({"weights": {"m": "beef"}}, r"other/train/flow.zarr: tokens by m of digest beef, .*run was trained with f00d; "),
        (
            {"said_by": {"producer": "roberta"}},
            r"other/train/text-hashed.zarr: words with producer = 'roberta', .*run has 'hashed'; ",
        ),
        (
            {"said_by": {"settings": {"normalise": "lower"}}},
            r"text-hashed.zarr: words with settings.normalise = 'lower', .* None; ",
        ),
    ],
)
def test_what_the_run_has_not_seen_is_one_line(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    a, b = write(tmp_path / "a", "train", ["v0", "v1"], weights={"m": "f00d"})
    out = train([a], [b], settings=settings(epochs=1), out=tmp_path / "run")
    other = write(tmp_path / "other", "train", ["w0"], dataset="other", **{"weights": {}, **fields})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says) as fault:
        predict(out, [other[0]], [other[1]], tmp_path / "s.zarr")
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "s.zarr").exists()


def test_other_widths_are_one_line(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    out = run(joint, tmp_path / "run", epochs=1)
    for tokens, words, says in ((16, 8, "flow.zarr: tokens of 16"), (8, 16, "text-hashed.zarr: words of 16")):
        wide = write(tmp_path / f"w{tokens}", "train", [], dataset="two", channels=tokens, said_by={"channels": words})
        with pytest.raises(
            InputError, match=rf"{says} channels by [a-z]+, .*run was trained with 8 by [a-z]+; extract them alike"
        ):
            predict(out, [wide[0]], [wide[1]], tmp_path / "s.zarr")


@pytest.mark.parametrize(("fields", "says"), [({"channels": 16}, "tokens of 16"), ({"said_by": {"channels": 16}}, "words of 16")])
def test_sets_of_other_widths_do_not_train_together(
    tmp_path: Path, joint: dict[str, tuple[Path, Path]], fields: dict[str, object], says: str
) -> None:
    wide = write(tmp_path / "wide", "train", [], dataset="three", **fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"wide/train/.*: {says} channels, .*one/train/.* has 8"):
        run({**joint, "two": wide}, tmp_path / "run")


def test_tracks_prompted_in_another_way_are_taken_when_the_frozen_model_is_the_same(tmp_path: Path) -> None:
    """SOLA trains on ground-truth and grid tracks, and selects among grid and box tracks; other settings are said."""
    a, b = write(tmp_path / "a", "train", ["v0", "v1"], weights={"m": "f00d"}, settings={"grid": 32})
    out = train([a], [b], settings=settings(epochs=1), out=tmp_path / "run")
    boxes = write(tmp_path / "box", "valid", ["w0"], producer="boxes", weights={"m": "f00d", "detector": "abba"})
    predict(out, [boxes[0]], [boxes[1]], tmp_path / "s.zarr")
    assert SelectionCache(tmp_path / "s.zarr").video_ids() == ("w0",)
    coarse = write(tmp_path / "coarse", "valid", ["w0"], weights={"m": "f00d"}, settings={"grid": 16})
    with pytest.warns(UserWarning, match=r"coarse/valid/flow.zarr: tracks with settings.grid = 16, .*run was trained with 32"):
        predict(out, [coarse[0]], [coarse[1]], tmp_path / "t.zarr")
    assert SelectionCache(tmp_path / "t.zarr").video_ids() == ("w0",)


def test_words_of_two_encoders_do_not_train_together(tmp_path: Path, joint: dict[str, tuple[Path, Path]]) -> None:
    for name in ("two", "valid"):
        split = "valid" if name == "valid" else "train"
        spoilt = write(tmp_path / "x" / name, split, ["w0"], dataset="three", said_by={"settings": {"seed": 1}})
        with pytest.raises(
            InputError, match=rf"x/{name}/{split}/text-hashed.zarr: words with settings.seed = 1, .*one/train/text-hashed.zarr"
        ):
            run({**joint, name: spoilt}, tmp_path / "run", epochs=1)
