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

from rvos_cache.datasets import DATASETS, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.mask_png import write_mask_png
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackRecord, write_selections, write_tracks
from rvos_cache.types import Selection, TrackSet
from rvos_select.cli.commands import main
from rvos_select.evaluation import PROTOCOLS, Scope, benchmark_pngs, benchmark_selections
from rvos_select.evaluation.compare import compare
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.policy import PolicyOptions

IMAGES = ("a2d-sentences", "jhmdb-sentences", "refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class Made:
    """A small copy of a dataset; pngs: its truth as masks; c.zarr, s.zarr: its objects as tracks, meant ones scored 0.9."""

    name: str
    root: Path
    split: str
    out: Path

    def by_pngs(self, pngs: Path | None = None, options: dict[str, Any] | None = None, **scope: Any) -> dict[str, Any]:
        return benchmark_pngs(self.name, self.root, self.split, pngs or self.out / "pngs", options or {}, Scope(**scope))

    def by_selections(self, options: dict[str, Any] | None = None, said: str = "s.zarr", **scope: Any) -> dict[str, Any]:
        more = {name: scope.pop(name) for name in ("dataset", "policy") if name in scope}
        caches = [self.out / "c.zarr"]
        return benchmark_selections(self.out / said, caches, options or {}, root=self.root, scope=Scope(**scope), **more)


def write_truth(
    name: str, root: Path, split: str, out: Path, said: str = "s.zarr", reverse: bool = False, shift: int = 0
) -> None:
    """reverse: the tracks that are not meant score 0.9; shift: tracks and PNGs are so many pixels to the right of the truth."""
    data = open_dataset(name, root, split)
    card = Card(kind="tracks", dataset=name, split=split, producer="true", channels=1, root=str(root))
    tracks_into = CacheWriter(out / "c.zarr", card)
    into = CacheWriter(out / said, card.model_copy(update={"kind": "selections", "extra": {"threshold": 0.5}}))
    for video_id in data.video_ids():
        video, truth, expressions = data.video(video_id), data.ground_truth(video_id), data.expressions(video_id)
        assert truth is not None
        (n, t), moved = truth.masks.shape, RleMasks.from_dense(np.roll(truth.masks.dense(), shift, -1))
        found = TrackSet(
            np.zeros((n, t, 1), np.float16), np.ones((n, t), np.float16), moved, np.full(n, -1, np.int32), ("true",) * n,
            np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        write_tracks(tracks_into, TrackRecord(video_id, video.frame_names, video.size, expressions, found, None, None))
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
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    held: dict[str, Made] = {}

    def made(name: str) -> Made:
        if name not in held:
            out = tmp_path_factory.mktemp("made")
            sample = SAMPLES[name](out / "data")
            write_truth(name, sample.root, sample.shown, out)
            held[name] = Made(name, sample.root, sample.shown, out)
        return held[name]

    return made


def test_every_dataset_has_a_protocol() -> None:
    assert PROTOCOLS.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_truth_scores_one(make: Callable[[str], Made], name: str) -> None:
    made = make(name)
    routes = made.by_pngs(), made.by_selections(processes=2 if name in ("mevis", "jhmdb-sentences") else 1)
    for scores in routes:
        assert (scores["dataset"], scores["split"]) == (name, made.split)
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
def test_empty_masks_score_what_is_empty(make: Callable[[str], Made], tmp_path: Path, name: str) -> None:
    """Frames without the objects score 1, all others 0; mAP never finds an empty truth."""
    made, data = make(name), open_dataset(name, make(name).root, make(name).split)
    pngs = Path(shutil.copytree(made.out / "pngs", tmp_path / "pngs"))
    right: dict[str, float] = {}
    for video_id in data.video_ids():
        video, truth = data.video(video_id), data.ground_truth(video_id)
        assert truth is not None
        for expression in data.expressions(video_id):
            mask = truth.masks.union(truth.indices(expression.targets or ()))
            right[expression.key] = float((mask.area()[0][truth.annotated] == 0).mean())
            for frame in video.frame_names:
                write_mask_png(pngs / expression.key / f"{frame}.png", np.zeros(video.size, bool))
    scores = made.by_pngs(pngs)
    if name in IMAGES:
        assert scores["map"] == 0
        assert (scores["mean_iou"], scores["overall_iou"]) == pytest.approx((0, 0), abs=1e-6)
    elif name == "ref-davis17":
        assert (scores["j"], scores["f"]) == (0, 0)
    else:
        assert {k: (v["j"], v["f"]) for k, v in scores["expressions"].items()} == {k: (v, v) for k, v in right.items()}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_missing_png_is_named_or_scored_zero(make: Callable[[str], Made], tmp_path: Path, name: str) -> None:
    made = make(name)
    pngs = Path(shutil.copytree(made.out / "pngs", tmp_path / "pngs"))
    data = open_dataset(name, made.root, made.split)
    video_id = data.video_ids()[0]
    truth = data.ground_truth(video_id)
    assert truth is not None
    frame = data.video(video_id).frame_names[int(np.flatnonzero(truth.annotated)[0])]
    key = data.expressions(video_id)[0].key
    (pngs / key / f"{frame}.png").unlink()
    with pytest.raises(InputError) as error:
        made.by_pngs(pngs)
    assert str(pngs / key / f"{frame}.png") in str(error.value) and "--allow-missing" in str(error.value)
    scores = made.by_pngs(pngs, allow_missing=True)
    (lost,) = scores["missing"]
    count = len(scores["samples"] if name in IMAGES else scores.get("expressions", scores.get("objects")))
    assert scores["mean_iou" if name in IMAGES else "jf"] == pytest.approx(1 - 1 / count)
    assert lost in (scores["samples"] if name in IMAGES else {key})


def test_frames_that_no_benchmark_scores_are_not_needed(make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make("jhmdb-sentences")
    pngs = Path(shutil.copytree(made.out / "pngs", tmp_path / "pngs"))
    scored = {s.t for v in ("jump",) for s in open_dataset(made.name, made.root, "test").samples(v)}  # type: ignore[attr-defined]
    for t, path in enumerate(sorted((pngs / "jump/0").iterdir())):
        if t not in scored:
            path.unlink()
    assert made.by_pngs(pngs)["mean_iou"] == 1


def test_candidates_and_modes_of_images(make: Callable[[str], Made], tmp_path: Path) -> None:
    """The wrong object first: the true one is found behind it by mAP over all, and by nothing else."""
    made = make("a2d-sentences")
    wrong = Made(made.name, made.root, made.split, tmp_path)
    write_truth(made.name, made.root, made.split, tmp_path, reverse=True)
    everything, best = wrong.by_selections(), wrong.by_selections({"map_mode": "top1"})
    # "-a" has two objects and three samples, "b" one object and two samples, which is the best whatever its score.
    assert everything["samples"] == pytest.approx(
        {"v_-a_f_2_i_0": 0, "v_-a_f_5_i_0": 0, "v_-a_f_2_i_2": 0, "v_b_f_2_i_0": 1, "v_b_f_5_i_0": 1}, abs=1e-6
    )
    assert everything["mean_iou"] == best["mean_iou"] == pytest.approx(2 / 5, abs=1e-6)
    assert everything["map"] > best["map"] > 0
    assert (everything["map_mode"], best["map_mode"]) == ("all-queries", "top1")
    assert made.by_pngs(options={"map_mode": "top1"})["map"] == pytest.approx(1)


def test_images_need_the_dataset_and_no_merging(make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make("jhmdb-sentences")
    for choice in (PolicyOptions(0.3), PolicyOptions(top1=True), PolicyOptions(empty="zeros")):
        with pytest.raises(InputError, match="every candidate counts with its score; leave --threshold, --top1 and --empty out"):
            made.by_selections(policy=choice)
    shutil.copytree(made.out, tmp_path / "moved")
    card = tmp_path / "moved/c.zarr/card.json"
    other = Made(made.name, tmp_path / "nowhere", made.split, tmp_path / "moved")
    assert card.exists()
    with pytest.raises(InputError, match="nowhere"):
        other.by_selections()


def test_a_video_that_images_lack(make: Callable[[str], Made], tmp_path: Path) -> None:
    """Without selections its samples score 0; where the film is gone too, overall IoU does not weigh it."""
    made = make("a2d-sentences")
    shutil.copytree(made.out, tmp_path / "copy")
    lacking = Made(made.name, tmp_path / "copy/data", made.split, tmp_path / "copy")
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
def test_the_oracle_is_scored_by_frames_too(make: Callable[[str], Made], tmp_path: Path, name: str) -> None:
    """True tracks are the truth; tracks one pixel beside it score what they score as PNGs."""
    made = make(name)
    beside = Made(name, made.root, made.split, tmp_path)
    write_truth(name, made.root, made.split, tmp_path, shift=1)
    for one in (made, beside):
        scores = oracle([one.out / "c.zarr"], root=one.root)
        assert scores["image"] == one.by_pngs()
    assert 0 < scores["image"]["mean_iou"] < 1


def test_the_oracle_by_frames_has_holes_and_needs_the_dataset(make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make("a2d-sentences")
    cache = shutil.copytree(made.out / "c.zarr", tmp_path / "c.zarr")
    shutil.rmtree(cache / "videos/b")
    scores = oracle([cache], root=made.root, allow_missing=True)
    assert (scores["missing"], scores["image"]["missing"]) == (["b/0"], ["v_b_f_2_i_0", "v_b_f_5_i_0"])
    assert scores["image"]["mean_iou"] == pytest.approx(3 / 5)
    assert "image" not in oracle([make("mevis").out / "c.zarr"], root=make("mevis").root)


def test_options_of_other_protocols_are_refused(make: Callable[[str], Made]) -> None:
    with pytest.raises(InputError, match="--map-mode is no setting of the scores of mevis"):
        make("mevis").by_pngs(options={"map_mode": "top1"})
    with pytest.raises(InputError, match="--strict is no setting of the scores of jhmdb-sentences"):
        make("jhmdb-sentences").by_selections({"strict": True})


@pytest.mark.parametrize("name", ["mevis", "ref-davis17", "a2d-sentences"])
def test_the_commands(
    make: Callable[[str], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The tables fit the protocol, and what --json wrote can be compared."""
    made = make(name)

    def rvos(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rvos-select", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    own = {"mevis": (), "ref-davis17": ("--strict",), "a2d-sentences": ("--map-mode", "top1")}[name]
    where = ("--dataset", name, "--root", made.root, "--split", made.split, *own)
    a = ("--predictions", made.out / "pngs", "--json", tmp_path / "a.json")
    b = ("--selections", made.out / "s.zarr", "--cache", made.out / "c.zarr", "--json", tmp_path / "b.json")
    for given in (a, b):
        said = rvos("evaluate", *where, *given)
        title = {"mevis": "J&F", "ref-davis17": "objects", "a2d-sentences": "P@0.9"}[name]
        assert title in said and "100.0" in said
    if name == "a2d-sentences":
        assert all(title in rvos("oracle", "--cache", made.out / "c.zarr") for title in ("J&F", "mAP"))
    rvos("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert found == compare(tmp_path / "a.json", tmp_path / "b.json")
    assert found["iou" if name == "a2d-sentences" else "jf"]["difference"] == 0
    if name == "ref-davis17":
        assert found["protocol"] == "davis-strict" and "0/1" in next(
            iter(json.loads((tmp_path / "a.json").read_text())["objects"])
        )


def test_caches_of_other_protocols_together(make: Callable[[str], Made]) -> None:
    caches = [make(name).out / "c.zarr" for name in ("mevis", "jhmdb-sentences")]
    with pytest.raises(InputError, match="scored in other ways"):
        benchmark_selections(make("mevis").out / "s.zarr", caches, {})
