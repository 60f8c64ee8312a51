"""Every dataset by the protocol of its benchmark: the truth, nothing, and holes as predictions, as PNGs and as selections."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "cache"))

from test_dataset_contract import SAMPLES

from rvos_cache.datasets import DATASETS, Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import write_mask_png
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackRecord, write_selections, write_tracks
from rvos_cache.types import Expression, Selection, TrackSet, Video
from rvos_select.cli import main
from rvos_select.evaluation import PROTOCOLS, Scope, benchmark_pngs, benchmark_selections, protocol_of
from rvos_select.evaluation.compare import compare
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.policy import PolicyOptions

IMAGES = ("a2d-sentences", "jhmdb-sentences", "refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class DatasetCopy:
    """A small copy of a dataset; pngs: its truth as masks; c.zarr, s.zarr: its objects as tracks, meant ones scored 0.9."""

    name: str
    root: Path
    split: str
    out: Path

    def by_pngs(self, pngs: Path | None = None, options: dict[str, Any] | None = None, **scope: Any) -> dict[str, Any]:
        return benchmark_pngs(self.name, self.root, self.split, pngs or self.out / "pngs", options or {}, Scope(**scope))

    def by_selections(self, options: dict[str, Any] | None = None, selections: str = "s.zarr", **scope: Any) -> dict[str, Any]:
        more = {name: scope.pop(name) for name in ("dataset", "policy") if name in scope}
        caches = [self.out / "c.zarr"]
        return benchmark_selections(self.out / selections, caches, options or {}, root=self.root, scope=Scope(**scope), **more)


def write_truth(
    name: str, root: Path, split: str, out: Path, selections: str = "s.zarr", reverse: bool = False, shift: int = 0
) -> None:
    """reverse: the tracks that are not meant score 0.9; shift: tracks and PNGs are so many pixels to the right of the truth."""
    data = open_dataset(name, root, split)
    card = Card(kind="tracks", dataset=name, split=split, producer="true", channels=1, root=str(root))
    tracks_into = CacheWriter(out / "c.zarr", card)
    into = CacheWriter(out / selections, card.model_copy(update={"kind": "selections", "extra": {"threshold": 0.5}}))
    for video_id in data.video_ids():
        video, truth, expressions = data.video(video_id), data.ground_truth(video_id), data.expressions(video_id)
        assert truth is not None
        (n, t), moved = truth.masks.shape, RleMasks.from_dense(np.roll(truth.masks.dense(), shift, -1))
        track_set = TrackSet(
            np.zeros((n, t, 1), np.float16), np.ones((n, t), np.float16), moved, np.full(n, -1, np.int32), ("true",) * n,
            np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        write_tracks(tracks_into, TrackRecord(video_id, video.frame_names, video.size, expressions, track_set, None, None))
        answers = []
        for expression in expressions:
            meant = np.isin(truth.object_ids, expression.targets or ())
            answers.append(
                Selection(expression.expression_id, np.where(meant ^ reverse, 0.9, 0.1).astype(np.float32), meant | True)
            )
            mask = moved.union(truth.indices(expression.targets or ()))
            (out / "pngs" / expression.key).mkdir(parents=True, exist_ok=True)
            for i, frame in enumerate(video.frame_names):
                write_mask_png(out / "pngs" / expression.key / f"{frame}.png", mask.decode(0, i))
        write_selections(into, SelectionRecord(video_id, video.frame_names, video.size, tuple(answers)))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DatasetCopy]:
    copies: dict[str, DatasetCopy] = {}

    def copy(name: str) -> DatasetCopy:
        if name not in copies:
            out = tmp_path_factory.mktemp("made")
            sample = SAMPLES[name](out / "data")
            write_truth(name, sample.root, sample.shown, out)
            copies[name] = DatasetCopy(name, sample.root, sample.shown, out)
        return copies[name]

    return copy


def test_every_dataset_has_the_protocol_of_its_benchmark() -> None:
    protocols = {name: protocol_of(name).name for name in DATASETS}
    assert protocols == {name: "image" if name in IMAGES else "davis" if name == "ref-davis17" else "video" for name in DATASETS}


class Mine(Dataset):
    """A dataset of one's own."""

    protocol = "image"

    def video_ids(self) -> tuple[str, ...]:
        return ()

    def video(self, video_id: str) -> Video:
        raise KeyError(video_id)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        return ()


class Wrong(Mine):
    """One with a protocol that does not exist."""

    protocol = "audio"  # type: ignore[assignment]


def test_a_dataset_of_ones_own_names_its_protocol() -> None:
    assert protocol_of("test_evaluate_benchmarks:Mine") is PROTOCOLS["image"]
    assert (
        protocol_of("test_evaluate_benchmarks:make")
        is protocol_of("unknown")
        is protocol_of("no.such:Module")
        is PROTOCOLS["video"]
    )
    with pytest.raises(InputError, match="unknown protocol 'audio'; there are: video, davis, image"):
        protocol_of("test_evaluate_benchmarks:Wrong")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_truth_scores_one(make: Callable[[str], DatasetCopy], name: str) -> None:
    copy = make(name)
    routes = copy.by_pngs(), copy.by_selections(processes=2 if name in ("mevis", "jhmdb-sentences") else 1)
    for scores in routes:
        assert (scores["dataset"], scores["split"]) == (name, copy.split)
        assert "missing" not in scores
        if name in IMAGES:
            assert scores["protocol"] == "image"
            assert scores["map"] == pytest.approx(1)
            assert {scores["overall_iou"], scores["mean_iou"], *scores["precision"].values()} == {1.0}
            assert sum(row["count"] for row in scores["expressions"].values()) == len(scores["samples"]) > 0
        else:
            assert (scores["j"], scores["f"], scores["jf"]) == (1.0, 1.0, 1.0)
            assert {scores.get("n_acc", 1.0), scores.get("t_acc", 1.0)} == {1.0}
    shared = routes[0].keys() & routes[1].keys() - {"map"}
    assert {k: routes[0][k] for k in shared} == {k: routes[1][k] for k in shared}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_empty_masks_score_what_is_empty(make: Callable[[str], DatasetCopy], tmp_path: Path, name: str) -> None:
    """Frames without the objects score 1, all others 0; mAP never finds an empty truth."""
    copy, data = make(name), open_dataset(name, make(name).root, make(name).split)
    pngs = Path(shutil.copytree(copy.out / "pngs", tmp_path / "pngs"))
    right: dict[str, float] = {}
    for video_id in data.video_ids():
        video, truth = data.video(video_id), data.ground_truth(video_id)
        assert truth is not None
        for expression in data.expressions(video_id):
            mask = truth.masks.union(truth.indices(expression.targets or ()))
            right[expression.key] = float((mask.area()[0][truth.annotated] == 0).mean())
            for frame in video.frame_names:
                write_mask_png(pngs / expression.key / f"{frame}.png", np.zeros(video.size, bool))
    scores = copy.by_pngs(pngs)
    if name in IMAGES:
        assert scores["map"] == 0
        assert (scores["mean_iou"], scores["overall_iou"]) == pytest.approx((0, 0), abs=1e-6)
    elif name == "ref-davis17":
        assert (scores["j"], scores["f"]) == (0, 0)
    else:
        assert {k: (v["j"], v["f"]) for k, v in scores["expressions"].items()} == {k: (v, v) for k, v in right.items()}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_missing_png_is_named_or_scored_zero(make: Callable[[str], DatasetCopy], tmp_path: Path, name: str) -> None:
    copy = make(name)
    pngs = Path(shutil.copytree(copy.out / "pngs", tmp_path / "pngs"))
    data = open_dataset(name, copy.root, copy.split)
    video_id = data.video_ids()[0]
    truth = data.ground_truth(video_id)
    assert truth is not None
    frame = data.video(video_id).frame_names[int(np.flatnonzero(truth.annotated)[0])]
    key = data.expressions(video_id)[0].key
    (pngs / key / f"{frame}.png").unlink()
    with pytest.raises(InputError) as error:
        copy.by_pngs(pngs)
    assert str(pngs / key / f"{frame}.png") in str(error.value) and "--allow-missing" in str(error.value)
    scores = copy.by_pngs(pngs, allow_missing=True)
    (lost,) = scores["missing"]
    count = len(scores["samples"] if name in IMAGES else scores.get("expressions", scores.get("objects")))
    assert scores["mean_iou" if name in IMAGES else "jf"] == pytest.approx(1 - 1 / count)
    assert lost in (scores["samples"] if name in IMAGES else {key})


def test_frames_that_no_benchmark_scores_are_not_needed(make: Callable[[str], DatasetCopy], tmp_path: Path) -> None:
    copy = make("jhmdb-sentences")
    pngs = Path(shutil.copytree(copy.out / "pngs", tmp_path / "pngs"))
    scored = {s.t for v in ("jump",) for s in open_dataset(copy.name, copy.root, "test").samples(v)}  # type: ignore[attr-defined]
    for t, path in enumerate(sorted((pngs / "jump/0").iterdir())):
        if t not in scored:
            path.unlink()
    assert copy.by_pngs(pngs)["mean_iou"] == 1


def test_candidates_and_modes_of_images(make: Callable[[str], DatasetCopy], tmp_path: Path) -> None:
    """The wrong object first: the true one is found behind it by mAP over all, and by nothing else."""
    copy = make("a2d-sentences")
    wrong = DatasetCopy(copy.name, copy.root, copy.split, tmp_path)
    write_truth(copy.name, copy.root, copy.split, tmp_path, reverse=True)
    everything, best = wrong.by_selections(), wrong.by_selections({"map_mode": "top1"})
    # "-a" has two objects and three samples, "b" one object and two samples, which is the best whatever its score.
    assert everything["samples"] == pytest.approx(
        {"v_-a_f_2_i_0": 0, "v_-a_f_5_i_0": 0, "v_-a_f_2_i_2": 0, "v_b_f_2_i_0": 1, "v_b_f_5_i_0": 1}, abs=1e-6
    )
    assert everything["mean_iou"] == best["mean_iou"] == pytest.approx(2 / 5, abs=1e-6)
    assert everything["map"] > best["map"] > 0
    assert (everything["map_mode"], best["map_mode"]) == ("all-queries", "top1")
    assert copy.by_pngs(options={"map_mode": "top1"})["map"] == pytest.approx(1)


def test_images_need_the_dataset_and_no_merging(make: Callable[[str], DatasetCopy], tmp_path: Path) -> None:
    copy = make("jhmdb-sentences")
    for policy in (PolicyOptions(0.3), PolicyOptions(top1=True), PolicyOptions(empty="zeros")):
        with pytest.raises(InputError, match="every candidate counts with its score; leave --threshold, --top1 and --empty out"):
            copy.by_selections(policy=policy)
    shutil.copytree(copy.out, tmp_path / "moved")
    card = tmp_path / "moved/c.zarr/card.json"
    other = DatasetCopy(copy.name, tmp_path / "nowhere", copy.split, tmp_path / "moved")
    assert card.exists()
    with pytest.raises(InputError, match="nowhere"):
        other.by_selections()


def test_a_video_that_images_lack(make: Callable[[str], DatasetCopy], tmp_path: Path) -> None:
    """Without selections its samples score 0; where the film is gone too, overall IoU does not weigh it."""
    copy = make("a2d-sentences")
    shutil.copytree(copy.out, tmp_path / "copy")
    lacking = DatasetCopy(copy.name, tmp_path / "copy/data", copy.split, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/s.zarr/videos/b")
    with pytest.raises(InputError, match="no selection of expression b/0"):
        lacking.by_selections()
    scores = lacking.by_selections(allow_missing=True)
    assert scores["missing"] == ["v_b_f_2_i_0", "v_b_f_5_i_0"]
    assert (scores["mean_iou"], scores["overall_iou"]) == pytest.approx((3 / 5, 3 / 5))
    (lacking.root / "Release/clips320H/b.mp4").unlink()
    with pytest.raises(InputError, match="b.mp4"):
        lacking.by_selections()
    scores = lacking.by_selections(allow_missing=True)
    assert len(scores["missing"]) == 2 and scores["slices"]["size"]["unknown"]["count"] == 2
    assert (scores["mean_iou"], scores["overall_iou"]) == pytest.approx((3 / 5, 1))


@pytest.mark.parametrize("name", IMAGES)
def test_the_oracle_is_scored_by_frames_too(make: Callable[[str], DatasetCopy], tmp_path: Path, name: str) -> None:
    """True tracks are the truth; tracks one pixel beside it score what they score as PNGs."""
    copy = make(name)
    beside = DatasetCopy(name, copy.root, copy.split, tmp_path)
    write_truth(name, copy.root, copy.split, tmp_path, shift=1)
    for one in (copy, beside):
        scores = oracle([one.out / "c.zarr"], root=one.root)
        expected = one.by_pngs()
        assert scores["against"] == expected.pop("against")
        assert scores["image"] == expected
    assert 0 < scores["image"]["mean_iou"] < 1


def test_the_oracle_by_frames_has_holes_and_needs_the_dataset(make: Callable[[str], DatasetCopy], tmp_path: Path) -> None:
    copy = make("a2d-sentences")
    cache = shutil.copytree(copy.out / "c.zarr", tmp_path / "c.zarr")
    shutil.rmtree(cache / "videos/b")
    scores = oracle([cache], root=copy.root, allow_missing=True)
    assert (scores["missing"], scores["image"]["missing"]) == (["b/0"], ["v_b_f_2_i_0", "v_b_f_5_i_0"])
    assert scores["image"]["mean_iou"] == pytest.approx(3 / 5)
    assert "image" not in oracle([make("mevis").out / "c.zarr"], root=make("mevis").root)


def test_options_of_other_protocols_are_refused(make: Callable[[str], DatasetCopy]) -> None:
    with pytest.raises(InputError, match="--map-mode is no option of the protocol of mevis"):
        make("mevis").by_pngs(options={"map_mode": "top1"})
    with pytest.raises(InputError, match="--strict is no option of the protocol of jhmdb-sentences"):
        make("jhmdb-sentences").by_selections({"strict": True})


@pytest.mark.parametrize("name", ["mevis", "ref-davis17", "a2d-sentences"])
def test_the_commands(
    make: Callable[[str], DatasetCopy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The tables fit the protocol, and what --json wrote can be compared."""
    copy = make(name)

    def rvos(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rvos-select", *map(str, words)])
        # Tables are not cut at the width of a terminal.
        monkeypatch.setenv("COLUMNS", "40")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        return captured.out

    options = {"mevis": (), "ref-davis17": ("--strict",), "a2d-sentences": ("--map-mode", "top1")}[name]
    where = ("--dataset", name, "--root", copy.root, "--split", copy.split, *options)
    a = ("--predictions", copy.out / "pngs", "--json", tmp_path / "a.json")
    b = ("--selections", copy.out / "s.zarr", "--cache", copy.out / "c.zarr", "--json", tmp_path / "b.json")
    for words in (a, b):
        printed = rvos("evaluate", *where, *words)
        title = {"mevis": "J&F", "ref-davis17": "objects", "a2d-sentences": "P@0.9 ┃ samples"}[name]
        assert title in printed and "100.0" in printed and "prediction" in printed
    if name == "a2d-sentences":
        printed = rvos("oracle", "--cache", copy.out / "c.zarr")
        assert printed.index("mAP") < printed.index("by mean IoU. A prediction ") < printed.index("┃ J&F")
        assert f"the ground truth of {name} {copy.split} in" in printed
    rvos("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "c.json")
    compared = json.loads((tmp_path / "c.json").read_text())
    assert compared == compare(tmp_path / "a.json", tmp_path / "b.json")
    assert compared["iou" if name == "a2d-sentences" else "jf"]["difference"] == 0
    if name == "ref-davis17":
        assert compared["protocol"] == "davis-strict" and "0/1" in next(
            iter(json.loads((tmp_path / "a.json").read_text())["objects"])
        )


def test_caches_of_other_protocols_together(make: Callable[[str], DatasetCopy]) -> None:
    caches = [make(name).out / "c.zarr" for name in ("mevis", "jhmdb-sentences")]
    with pytest.raises(InputError, match="which have different protocols"):
        benchmark_selections(make("mevis").out / "s.zarr", caches, {})
