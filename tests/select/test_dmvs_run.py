"""DMVS through every step on moving shapes and a tiny VITA, by the names of things alone; SOLA on the same cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dmvs_work import MODULE, VITA, Work
from safetensors.torch import load_file, save_file
from tiny_vita import CHANNELS, mask2former, vita_head

from rvos_cache.contracts.checks import CheckSkipped
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import SelectionCache, TrackCache, read_card
from rvos_cache.trackers.vita.basis import Basis
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.one_object import names_one_object
from rvos_select.evaluation import evaluate_pngs, evaluate_selections
from rvos_select.evaluation.scope import Scope
from rvos_select.merging.merge import merge
from rvos_select.merging.policy import PolicyOptions, resolve_policy
from rvos_select.reporting import report
from rvos_select.runs.checkpoint import load_selector
from rvos_select.selectors.dmvs import Dmvs
from rvos_select.training import train as loop
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

pytestmark = [
    pytest.mark.slow,  # whole runs; left to test-all
    pytest.mark.usefixtures("file_on_cpu"),  # masks are compared to the last pixel, and scores to the last bit
]

SHOWN = {"mask_init": "vita"}
"""A mask head of random weights gives masks that are all empty: the tiny VITA's mask features are nearly one vector."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("dmvs"))


def numbers(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_every_step_runs_and_agrees(work: Work, tmp_path: Path) -> None:
    run = work.train(tmp_path / "run", config=SHOWN)
    rows = numbers(run)
    assert {"train/class", "train/bce", "train/dice", "valid/loss", "valid/jf"} <= rows[-1].keys()
    selections = work.predict(run, tmp_path / "s.zarr")
    selection_cache, caches = SelectionCache(selections), [work.tracks("valid_u")]
    (video,) = selection_cache.video_ids()
    video_selections = selection_cache.selections(video)
    assert selection_cache.card.extra["threshold"] == 0.7 and selection_cache.card.extra["draw_threshold"] == 0.1
    assert any(0 < s.masks.area().sum() < s.masks.area().size * 96 * 160 for s in video_selections)
    for s in video_selections:
        assert s.scores.shape == (MODULE["motion_queries"],)
        assert (s.candidates == (s.scores > 0.1) | (s.scores == s.scores.max())).all()
        assert not s.masks.select(np.flatnonzero(~s.candidates)).area().any()
    # What the best epoch measured is what the selections give: threshold, OR, scores of the same queries.
    best_jf = max(row["valid/jf"] for row in rows)
    assert evaluate_selections(selections, caches)["jf"] == pytest.approx(best_jf, abs=1e-6)
    masks = merge(selections, caches, tmp_path / "masks", PolicyOptions(top1=True))
    best = evaluate_selections(selections, caches, policy=PolicyOptions(top1=True))
    root = work.root / "data"
    assert evaluate_pngs("mevis", root, "valid_u", masks, Scope(videos=[video]))["jf"] == pytest.approx(best["jf"], abs=1e-9)
    info = TrackCache(caches[0]).info(video)
    drawn = read_mask_png(masks / video / video_selections[0].expression_id / f"{info.frame_names[3]}.png", info.size)
    assert (drawn == video_selections[0].masks.decode(int(video_selections[0].scores.argmax()), 3)).all()
    assert report(run, selections, caches, tmp_path / "page", root=root).exists()
    assert evaluate_selections(selections, caches, policy=PolicyOptions(1.0, empty="top1")) == best
    for choice in (PolicyOptions(0.05), PolicyOptions(0.05, empty="top1")):
        with pytest.raises(InputError, match="threshold 0.05, but only masks of scores above 0.1"):
            merge(selections, caches, tmp_path / "low", choice)


@pytest.mark.slow
def test_the_best_track_answers_where_expressions_name_one_object(work: Work, tmp_path: Path) -> None:
    """The selections' card says so, and what is given at the merge overrules it."""
    run = work.train(tmp_path / "run", "selection_only", epochs=1, config={"masks": "frozen"})
    selection_cache = SelectionCache(work.predict(run, tmp_path / "s.zarr", "selection_only"))
    assert selection_cache.card.extra["top1"] is False
    (video,) = selection_cache.video_ids()
    selection = selection_cache.selections(video)[0]
    for dataset, best in (("mevis", False), ("ref-youtube-vos", True), ("refcoco+", True), ("unknown", False)):
        assert names_one_object(dataset) is best
        card = selection_cache.card.model_copy(update={"extra": {**selection_cache.card.extra, "top1": best}})
        selection_cache.card = card
        assert len(resolve_policy(selection_cache)(selection)) == (1 if best else (selection.scores > 0.7).sum())
        assert len(resolve_policy(selection_cache, PolicyOptions(0.0))(selection)) == (selection.scores > 0).sum()
        assert len(resolve_policy(selection_cache, PolicyOptions(top1=True))(selection)) == 1
    assert load_selector(run).top1_of_one
    assert not load_selector(work.train(tmp_path / "sola", selector="sola", batch="video", epochs=1)).top1_of_one


def test_predicted_scores_do_not_depend_on_the_chunks(work: Work, tmp_path: Path) -> None:
    run = work.train(tmp_path / "run", epochs=1, config=SHOWN)
    one = SelectionCache(work.predict(run, tmp_path / "a.zarr"))
    config = json.loads((run / "best/config.json").read_text())
    assert config["chunk"] == 5
    (run / "best/config.json").write_text(json.dumps({**config, "chunk": 7}))
    two = SelectionCache(work.predict(run, tmp_path / "b.zarr"))
    (video,) = one.video_ids()
    for a, b in zip(one.selections(video), two.selections(video)):
        assert np.array_equal(a.scores, b.scores) and a.masks == b.masks and a.masks.area().any()


def test_a_run_that_was_cut_goes_on_to_the_same_numbers(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, step, calls = work.train(tmp_path / "whole"), loop.Run._step, []

    def interrupted(self: loop.Run, *arguments: Any) -> dict[str, float]:
        calls.append(0)
        if len(calls) == self.steps_per_epoch + 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.train(tmp_path / "cut")
    cut = work.train(tmp_path / "cut", resume=True)
    assert numbers(cut) == numbers(whole)
    assert (cut / "last/model.safetensors").read_bytes() == (whole / "last/model.safetensors").read_bytes()


@pytest.mark.parametrize("batch", ["clip", "video"])
def test_frozen_masks_need_no_mask_features_and_no_checkpoint(work: Work, tmp_path: Path, batch: str) -> None:
    tracks = [work.tracks(split, "selection_only") for split in ("train", "valid_u")]
    assert not any(spec["name"] == "f_mask" for spec in read_card(tracks[0]).feature_specs)
    hidden = work.checkpoint.rename(work.root / "elsewhere")
    try:
        run = work.train(tmp_path / "run", "selection_only", batch=batch, config={"masks": "frozen"})
        selection_cache = SelectionCache(work.predict(run, tmp_path / "s.zarr", "selection_only"))
    finally:
        hidden.rename(work.checkpoint)
    (video,) = selection_cache.video_ids()
    assert all(
        s.masks is None and len(s.scores) == TrackCache(tracks[1]).info(video).tracks for s in selection_cache.selections(video)
    )


@pytest.mark.parametrize("scope", ["clip", "video"])
def test_tracks_are_matched_in_the_clip_or_in_the_video(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    counted, match = set(), Dmvs._match_tracks

    def watched(self: Dmvs, batch: Batch, *given: Any) -> Any:
        counted.update(x.inter.shape[2] for x in batch.overlap or ())
        return match(self, batch, *given)

    monkeypatch.setattr(Dmvs, "_match_tracks", watched)
    config = {"masks": "frozen", "match": "iou_multi", "match_scope": scope}
    rows = numbers(work.train(tmp_path / "run", "selection_only", epochs=1, config=config))
    assert np.isfinite(rows[-1]["valid/loss"])
    lengths = {
        cache.info(v).frames for s in ("train", "valid_u") for cache in [TrackCache(work.tracks(s))] for v in cache.video_ids()
    }
    assert 4 not in lengths and counted == (lengths if scope == "video" else {4})


def test_an_expression_that_nothing_answers_may_have_its_best_query(work: Work, tmp_path: Path) -> None:
    selection_cache = SelectionCache(work.predict(work.train(tmp_path / "run", config={"empty": "top1"}), tmp_path / "s.zarr"))
    (video,) = selection_cache.video_ids()
    highest = PolicyOptions(threshold=1.0)
    for selection in selection_cache.selections(video):
        best = resolve_policy(selection_cache, highest)(selection)
        assert best.tolist() == [int(np.where(selection.candidates, selection.scores, -1).argmax())]
        assert not resolve_policy(selection_cache, PolicyOptions(threshold=1.0, empty="zeros"))(selection).size


@pytest.mark.parametrize("rule", ["empty", "one"])
@pytest.mark.parametrize("masks", ["drawn", "frozen"])
def test_an_epoch_is_judged_by_the_rule_that_answers(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, masks: str
) -> None:
    """Nothing is above the threshold, so every answer is the best query, of validation and of the selections alike."""
    monkeypatch.setattr(Dmvs, "threshold", 1.0)
    if rule == "one":
        monkeypatch.setattr("rvos_select.data.one_object.names_one_object", lambda dataset: dataset == "mevis")
    config = {**SHOWN, "masks": masks, **({"empty": "top1"} if rule == "empty" else {}), "mask_init": "random"}
    run = work.train(tmp_path / "run", epochs=1, config=config)
    selections = work.predict(run, tmp_path / "s.zarr")
    ours = evaluate_selections(selections, [work.tracks("valid_u")])["jf"]
    assert ours == pytest.approx(numbers(run)[-1]["valid/jf"], abs=1e-6)
    nothing = evaluate_selections(selections, [work.tracks("valid_u")], policy=PolicyOptions(threshold=1.0, empty="zeros"))["jf"]
    assert ours != nothing


def test_masks_are_drawn_where_the_checkpoint_lies_now(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = work.train(tmp_path / "run")
    before = SelectionCache(work.predict(run, tmp_path / "before.zarr"))
    moved = work.checkpoint.rename(tmp_path / work.checkpoint.name)
    try:
        with pytest.raises(InputError, match="VITA checkpoint .* no such folder, nor one in RVOS_CHECKPOINTS"):
            work.predict(run, tmp_path / "lost.zarr")
        monkeypatch.setenv("RVOS_CHECKPOINTS", str(tmp_path))
        after = SelectionCache(work.predict(run, tmp_path / "after.zarr"))
    finally:
        moved.rename(work.checkpoint)
    (video,) = before.video_ids()
    for a, b in zip(before.selections(video), after.selections(video), strict=True):
        np.testing.assert_array_equal(a.scores, b.scores)
        assert a.masks == b.masks and a.masks is not None


@pytest.mark.parametrize("batch", ["clip", "video"])
def test_sola_trains_on_the_same_cache_by_its_name(work: Work, tmp_path: Path, batch: str) -> None:
    run = work.train(tmp_path / "run", selector="sola", batch=batch)
    assert np.isfinite(numbers(run)[-1]["valid/loss"])
    assert work.predict(run, tmp_path / "s.zarr").exists()


def test_the_mask_head_may_begin_as_vita_s(work: Work, tmp_path: Path) -> None:
    """And what was trained is not overwritten by it."""
    run = work.train(tmp_path / "run", epochs=1, config={"mask_init": "vita"}, optim={"lr": 1e-12})
    weights, theirs = load_selector(run).state_dict(), vita_head().mask_embed.state_dict()
    for ours, name in zip(("0", "2", "4"), ("layers.0", "layers.1", "layers.2")):
        torch.testing.assert_close(weights[f"mask_head.{ours}.weight"], theirs[f"{name}.weight"], atol=1e-6, rtol=0)
    moved = load_file(run / "best/model.safetensors")
    moved["mask_head.0.weight"] += 1
    save_file(moved, run / "best/model.safetensors")
    model = load_selector(run)
    model.bind(CacheCards([read_card(work.tracks("valid_u"))]))
    torch.testing.assert_close(model.state_dict()["mask_head.0.weight"], moved["mask_head.0.weight"])


def test_clips_of_kept_frames_train_and_predict_says_what_is_missing(work: Work, tmp_path: Path) -> None:
    work.tracks("train", "frames", keep_every=3)
    run = tmp_path / "run"
    settings = TrainSettings.model_validate(
        {"batch": "clip", "batch_size": 4, "epochs": 1, "clip": {"frames": 3}, "selector": "dmvs", "config": MODULE}
    )
    valid = ([work.tracks("valid_u")], [work.text("valid_u")])
    train(
        [work.tracks("train", "frames")],
        [work.text("train")],
        valid_tracks=valid[0],
        valid_texts=valid[1],
        settings=settings,
        out=run,
    )
    work.tracks("valid_u", "frames", keep_every=3)
    with pytest.raises(InputError, match="'f_mask' of .* frames, not of frame 1; extract this split with another profile"):
        work.predict(run, tmp_path / "s.zarr", "frames")


@pytest.mark.slow
def test_a_low_rank_cache_whose_basis_is_whole_gives_the_same_masks(work: Work, tmp_path: Path) -> None:
    eye = np.linalg.qr(np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS)))[0].astype(np.float32)
    Basis(eye, eye).save(tmp_path / "basis.safetensors")
    for split in ("train", "valid_u"):
        work.tracks(split, "low_rank", basis=str(tmp_path / "basis.safetensors"))
    run = work.train(tmp_path / "run", "low_rank", epochs=1, config=SHOWN)
    (video,) = TrackCache(work.tracks("valid_u")).video_ids()
    low = SelectionCache(work.predict(run, tmp_path / "low.zarr", "low_rank")).selections(video)
    with pytest.warns(UserWarning, match="tracks with settings.basis = ''"):
        exact = SelectionCache(work.predict(run, tmp_path / "exact.zarr")).selections(video)
    assert any(s.masks.area().any() for s in exact)
    for a, b in zip(exact, low):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
        same = a.masks.dense() == b.masks.dense()
        # Rounded to float16 in two bases, a logit near 0 may turn.
        assert same.mean() > 0.995


def test_caches_that_do_not_fit_are_one_line(work: Work, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    faults = []
    with pytest.raises(InputError, match="holds no mask features; --set config.masks=frozen, or extract") as fault:
        work.train(tmp_path / "a", "selection_only")
    faults.append(fault)
    with pytest.raises(InputError, match="its width is 32, the selector's 64; --set config.width=32") as fault:
        work.train(tmp_path / "b", config={"width": 64})
    faults.append(fault)
    flow = work.root / "train" / "flow.zarr"
    extract("mevis", work.root / "data", "train", "flow", flow, limit=1)
    settings = TrainSettings.model_validate({"selector": "dmvs", "batch": "clip", "config": MODULE})
    with pytest.raises(InputError, match="tracker flow: its card has no checkpoint; DMVS needs tracks of VITA") as fault:
        train([flow], [work.text("train")], settings=settings, out=tmp_path / "c")
    faults.append(fault)
    frozen = settings.model_copy(update={"config": {**MODULE, "masks": "frozen"}})
    with pytest.raises(InputError, match=r"no tracks cache of mevis/train declares the feature 'q_f'") as fault:
        train([flow], [work.text("train")], settings=frozen, out=tmp_path / "d")
    faults.append(fault)
    with pytest.raises(InputError, match="selector dmvs has losses of masks, which only clips hold; --set batch=clip") as fault:
        work.train(tmp_path / "e", batch="single")
    faults.append(fault)
    run = work.train(tmp_path / "run", epochs=1)
    other = work.root / "other"
    mask2former().save_pretrained(other)
    save_file(vita_head(seed=9).official(), other / "vita_head.safetensors", {"format": "pt"})
    kept = work.checkpoint.rename(work.root / "kept")
    other.rename(work.checkpoint)
    try:
        with pytest.raises(InputError, match="vita_head has digest .* bring that checkpoint back") as fault:
            work.predict(run, tmp_path / "s.zarr")
        faults.append(fault)
    finally:
        work.checkpoint.rename(other)
        kept.rename(work.checkpoint)
    assert not any("\n" in str(fault.value) for fault in faults)


@pytest.fixture(scope="module", params=["drawn", "frozen"])
def contract_case(request: pytest.FixtureRequest, work: Work, tmp_path_factory: pytest.TempPathFactory) -> SelectorCase:
    """DMVS on three videos, in both of its ways of working."""
    tracks = tmp_path_factory.mktemp("contract") / "vita.zarr"
    overrides = {"checkpoint": str(work.checkpoint), **VITA, "profile": "exact"}
    extract("mevis", work.root / "data", "train", "vita", tracks, limit=3, overrides=overrides)
    config = {**MODULE, "masks": request.param, "layers": 1, "motion_queries": 20}
    return SelectorCase("dmvs", config, tracks=tracks, texts=work.text("train"))


@pytest.mark.slow
@pytest.mark.parametrize("check", SELECTOR_CHECKS.values(), ids=lambda check: check.__name__)
def test_contract(contract_case: SelectorCase, check: Callable[[SelectorCase], None]) -> None:
    """The same functions that `rvos-select check-selector` runs."""
    with contextlib.suppress(CheckSkipped):
        check(contract_case)
