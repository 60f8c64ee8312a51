"""A metric of one's own, one class and one entry of METRICS, is in all results: evaluate, slices, oracle, compare, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import davis_fixtures as davis
import numpy as np
import pytest
from chain import SIZE, WEIGHTS, write_cache, write_perfect, write_run, write_split
from click.testing import CliRunner

from rvos_cache.media.mask_png import write_mask_png
from rvos_select.cli import cli
from rvos_select.evaluation.ref_davis import evaluate_selections as evaluate_davis
from rvos_select.merging.merge import merge
from rvos_select.metrics import METRICS
from rvos_select.metrics.detections import Detections
from rvos_select.metrics.image_level import ImageScores
from rvos_select.metrics.metric import Field, FrameMetric, SampleMetric
from rvos_select.metrics.silhouette import Silhouette
from rvos_select.reporting import report


class AreaRatio(FrameMetric):
    """Pixels of the smaller of prediction and truth over those of the larger."""

    fields = item_fields = (Field("area_ratio", "AR"),)

    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float]:
        smaller, larger = sorted((prediction.area, truth.area))
        return (smaller / larger if larger else 1.0,)


class DetectionRate(SampleMetric[float]):
    """The share of samples with a mask."""

    fields = (Field("detection_rate", "DR"),)

    def item(self, sample: Detections) -> float:
        return float(len(sample.scores) > 0)

    def missing(self, truth: int | None) -> float:
        return 0.0

    def combine(self, items: Mapping[str, float]) -> dict[str, Any]:
        return {"detection_rate": sum(items.values()) / len(items)}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data, c.zarr, s.zarr and png; in png the masks of b/0 are empty."""
    monkeypatch.setitem(METRICS, "video", (*METRICS["video"], AreaRatio()))
    monkeypatch.setitem(METRICS, "davis", (*METRICS["davis"], AreaRatio()))
    monkeypatch.setitem(METRICS, "image", (*METRICS["image"], DetectionRate()))
    monkeypatch.setenv("COLUMNS", "160")
    write_split(tmp_path / "data")
    cache = write_cache(tmp_path / "c.zarr", root=tmp_path / "data")
    merge(write_perfect(tmp_path / "s.zarr", cache, weights=WEIGHTS), [cache], tmp_path / "png")
    for path in (tmp_path / "png/b/0").iterdir():
        write_mask_png(path, np.zeros(SIZE, bool))
    return tmp_path


def rvos(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_metric_of_videos(work: Path) -> None:
    dataset = ("--dataset", "mevis", "--root", work / "data", "--split", "valid_u")
    printed = rvos("evaluate", *dataset, "--predictions", work / "png", "--json", work / "a.json")
    assert printed.count("AR") == 2 and "75.0" in printed
    scores = json.loads((work / "a.json").read_text())
    assert scores["area_ratio"] == scores["jf"] == 0.75
    assert {key: row["area_ratio"] for key, row in scores["expressions"].items()} == {"a/0": 1, "a/1": 1, "a/2": 1, "b/0": 0}
    assert scores["kinds"]["motion"]["area_ratio"] == 0.5 and scores["slices"]["size"]["none"]["area_ratio"] == 1
    rvos("evaluate", "--selections", work / "s.zarr", "--cache", work / "c.zarr", "--json", work / "b.json")
    compared = rvos("compare", work / "a.json", work / "b.json", "--json", work / "c.json")
    assert "AR" in compared and json.loads((work / "c.json").read_text())["area_ratio"]["difference"] == 0.25
    assert "AR" in rvos("oracle", "--cache", work / "c.zarr", "--json", work / "o.json")
    assert json.loads((work / "o.json").read_text())["area_ratio"] == 1


def test_in_the_report(work: Path) -> None:
    page = report(write_run(work / "run"), work / "s.zarr", [work / "c.zarr"], work / "page").read_text("utf-8")
    assert "<th>J&amp;F</th><th>J</th><th>F</th><th>N-acc</th><th>T-acc</th><th>AR</th><th>J&amp;F motion</th>" in page
    assert page.count("<td>100.0</td>" * 8) == 1 and page.count(f"{'<td>100.0</td>' * 3}<td>–</td><td>–</td><td>100.0</td>") == 1


def test_a_metric_of_objects(work: Path, tmp_path: Path) -> None:
    """Predictions are assigned by J and F alone."""
    davis.write_split(tmp_path / "davis")
    cache = davis.write_cache(tmp_path / "d.zarr", tmp_path / "davis")
    scores = evaluate_davis(davis.write_scores(tmp_path / "ds.zarr", davis.right), [cache])
    assert list(scores["annotators"]["0"]) == ["j", "f", "area_ratio", "jf"]
    assert scores["area_ratio"] == scores["j"] == pytest.approx((4 + 0.5) / 5)
    assert scores["objects"]["b/0/2"] == {"j": 0.5, "f": 0.5, "area_ratio": 0.5}
    assert scores["slices"]["words"]["none"]["area_ratio"] == 0.5


def test_a_metric_of_samples(work: Path) -> None:
    scores = ImageScores()
    one = np.ones(1, np.int64)
    scores.add("a", Detections(one.astype(float), one, one, 1))
    scores.add("b", Detections(np.zeros(0), one[:0], one[:0], 1))
    scores.add_missing("c", 5)
    assert scores.table()["detection_rate"] == 1 / 3
