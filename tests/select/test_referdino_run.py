"""ReferDINO's second stage on caches of a tiny GroundingDINO: what the tracker wrote is what the selector reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_grounding_dino import tiny_grounding_dino

from rvos_cache.extraction import extract, extract_text
from rvos_cache.media.boxes import corners
from rvos_cache.store import SelectionCache, TrackCache, read_card
from rvos_cache.trackers.referdino.boxes import refined
from rvos_select.cli import cli
from rvos_select.contracts import SelectorCase, run_selector_checks
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import CacheCards
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge
from rvos_select.reporting import report
from rvos_select.runs.checkpoint import load_selector
from rvos_select.selectors.referdino import ReferDino, ReferDinoConfig
from rvos_select.training.train import train

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

CONFIG = {"hidden": 24, "temporal_layers": 1}
SENTENCES = {**EXPRESSIONS, "3": ("the red square and the blue square", [0, 1])}


class Work:
    """A video to train on and one to validate, and their caches."""

    def __init__(self, root: Path) -> None:
        self.upstream = tiny_grounding_dino(root / "tiny")
        self.tracks: dict[str, Path] = {}
        self.texts: dict[str, Path] = {}
        for split, frames in (("train", 5), ("valid_u", 4)):
            write_split(root / "data" / split, {split: (frames, True, SENTENCES)})
            self.tracks[split], self.texts[split] = root / split / "gdino-queries.zarr", root / split / "text-hashed.zarr"
            settings = {"checkpoint": str(self.upstream), "masks": "box", "short_side": 32}
            extract("mevis", root / "data", split, "gdino-queries", self.tracks[split], overrides=settings)
            extract_text("mevis", root / "data", split, "hashed", self.texts[split])
        self.root = root / "data"

    def train(self, out: Path, config: dict[str, Any] | None = None, **values: Any) -> Path:
        clip = {"frames": 3, "within": 0, "neighbours": 3, "reverse": 0.3}
        base = {"batch": "clip", "batch_size": 4, "epochs": 1, "clip": clip, "precision": "float32"}
        return train(
            self.tracks["train"],
            self.texts["train"],
            valid_tracks=self.tracks["valid_u"],
            valid_texts=self.texts["valid_u"],
            selector="referdino",
            config={**CONFIG, **(config or {})},
            out=out,
            **{**base, **values},
        )

    def predict(self, run: Path, out: Path) -> Path:
        return predict(run, self.tracks["valid_u"], self.texts["valid_u"], out)

    def sample(self, model: ReferDino) -> VideoSample:
        tracks, texts = TrackSource([self.tracks["valid_u"]]), TextSource([self.texts["valid_u"]])
        return load_video(tracks, texts, "valid_u", requires=model.requires)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("referdino"))


@torch.inference_mode()
def test_without_layers_scores_and_boxes_are_the_tracker_s(work: Work) -> None:
    """presence and prompt_box are those that the tracker computed from the model itself, in float32."""
    model = ReferDino(ReferDinoConfig(token_channels=64, temporal_layers=0)).eval()
    model.bind(CacheCards([read_card(work.tracks["valid_u"])]))
    sample, stored = work.sample(model), TrackCache(work.tracks["valid_u"])
    batch = collate([(sample, row) for row in range(len(SENTENCES))], model.requires)
    tracked, info = model.track(batch), stored.info("valid_u")
    scores = torch.zeros(sample.tokens.shape[:2])
    boxes = torch.zeros(*sample.tokens.shape[:2], 4)
    reference = tracked.own.of(batch.features["reference"]).transpose(1, 2)
    predicted = refined(model.box(tracked.queries), reference)
    for row in range(len(SENTENCES)):
        own = sample.candidates[row].nonzero()[:, 0]
        scores[own], boxes[own] = tracked.logits[row].sigmoid().T, predicted[row].transpose(0, 1)
    presence = stored.presence("valid_u").astype(np.float32)
    visible = presence > 0
    assert visible.mean() > 0.5
    np.testing.assert_allclose(scores.numpy()[visible], presence[visible], atol=5e-3)
    height, width = info.size
    pixels = corners(boxes) * torch.tensor([width, height, width, height])
    at = pixels[torch.arange(len(pixels)), torch.from_numpy(info.prompt_frame).long()].clamp(min=0)
    at = torch.minimum(at, torch.tensor([width, height, width, height])).numpy()
    shown = info.prompt_box.any(1)
    np.testing.assert_allclose(at[shown], info.prompt_box[shown], atol=0.2)


def test_every_step_runs_and_agrees(work: Work, tmp_path: Path) -> None:
    run = work.train(tmp_path / "run", epochs=2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {"train/cls", "train/l1", "train/giou", "valid/loss", "valid/jf"} <= rows[-1].keys()
    selections = work.predict(run, tmp_path / "s.zarr")
    extra = SelectionCache(selections).card.extra
    assert (extra["threshold"], extra["empty"]) == (0.2, "top1")
    scores = evaluate_selections(selections, [work.tracks["valid_u"]], root=work.root)
    assert scores["jf"] == pytest.approx(max(row["valid/jf"] for row in rows), abs=1e-6)
    # The same weights on the queries that are aligned again: the same tracks, now as parts.
    config = json.loads((run / "best/config.json").read_text("utf-8"))
    masks = merge(selections, [work.tracks["valid_u"]], tmp_path / "masks")
    (run / "best/config.json").write_text(json.dumps({**config, "tracker": "retrack"}))
    again = work.predict(run, tmp_path / "again.zarr")
    for first, second in zip(*(SelectionCache(path).selections("valid_u") for path in (selections, again)), strict=True):
        own = np.flatnonzero(first.candidates)
        np.testing.assert_allclose(second.scores, first.scores[own], atol=1e-6)
        assert first.parts is None and second.parts is not None and (second.parts == own[:, None]).all()
    others = merge(again, [work.tracks["valid_u"]], tmp_path / "again")
    pictures = sorted(path.relative_to(masks) for path in masks.rglob("*.png"))
    assert len(pictures) == 4 * len(SENTENCES)
    assert all((masks / path).read_bytes() == (others / path).read_bytes() for path in pictures)


@pytest.mark.parametrize("selector", ["sola", "mean-cosine"])
def test_another_selector_trains_on_the_same_cache(work: Work, tmp_path: Path, selector: str) -> None:
    """By its name alone; its words are those of the text cache."""
    caches = {"cache": work.tracks["train"], "text": work.texts["train"], "valid-cache": work.tracks["valid_u"]}
    words = [word for name, path in {**caches, "valid-text": work.texts["valid_u"]}.items() for word in (f"--{name}", str(path))]
    words += ["--selector", selector, "--set", "epochs=1", "--set", "batch_size=4", "--out", str(tmp_path / "run")]
    CliRunner().invoke(cli, ["train", *words], catch_exceptions=False)
    scores = evaluate_selections(work.predict(tmp_path / "run", tmp_path / "s.zarr"), [work.tracks["valid_u"]], root=work.root)
    assert len(scores["expressions"]) == len(SENTENCES) and 0 <= scores["jf"] <= oracle([work.tracks["valid_u"]])["jf"] + 1e-6


def test_the_page_of_a_run(work: Work, tmp_path: Path) -> None:
    run = work.train(tmp_path / "run")
    selections, cache = work.predict(run, tmp_path / "s.zarr"), [work.tracks["valid_u"]]
    page = report(run, selections, cache, tmp_path / "report", root=work.root).read_text("utf-8")
    assert "ReferDINO" in page or "referdino" in page
    assert f"{100 * evaluate_selections(selections, cache, root=work.root)['jf']:.1f}" in page


def test_the_box_head_of_a_run_starts_as_the_upstream_s(work: Work, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = load_selector(work.train(tmp_path / "run", optim={"lr": 1e-12, "schedule": "constant"}))
    stored = load_file(work.upstream / "model.safetensors")
    prefixes = ("bbox_embed.", "model.decoder.bbox_embed.")
    for name, value in model.box.state_dict().items():
        copies = [stored[other] for other in stored if other.startswith(prefixes) and other.endswith(name)]
        assert copies
        torch.testing.assert_close(value, copies[-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "config", [{"target_mode": "multi_positive"}, {"tracker": "retrack"}], ids=lambda c: next(iter(c.values()))
)
def test_a_step_in_parts_is_the_same_step(work: Work, tmp_path: Path, config: dict[str, Any]) -> None:
    """The losses of micro-batches are divided by the number of boxes of the step."""
    whole, parts = (work.train(tmp_path / str(size), config, micro_batch=size, optim={"lr": 1e-3}) for size in (0, 1))
    weights = [load_selector(run).state_dict() for run in (whole, parts)]
    for name, value in weights[0].items():
        # AdamW divides a gradient by its size, so rounding moves a weight whose gradient is almost 0 by as much as the rate.
        assert (weights[1][name] - value).abs().mean() < 1e-4, name
    losses = [json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[0])["train/loss"] for run in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_contract_on_the_tracker_s_cache(work: Work) -> None:
    case = SelectorCase("referdino", CONFIG, tracks=work.tracks["train"], texts=work.texts["train"])
    results = list(run_selector_checks(case))
    assert [result for result in results if result.status == "FAILED"] == []
    assert sum(result.status == "ok" for result in results) > 10
