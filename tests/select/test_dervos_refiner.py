"""Stage 0 of DeRVOS: what is trained, the losses, resumption, the page, and the DVIS++ folder that replace-refiner writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_dvis
import torch
from safetensors.torch import load_file
from tiny_refiner import TAIS, data, settings_of, source_of, work
from tiny_sam2 import without_gpu
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_all
from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.store import TrackCache
from rvos_cache.trackers.dvis import DvisSettings, DvisTracker
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.tuning import state
from rvos_cache.types import GroundTruth
from rvos_select.contracts.selector_case import SelectorCase
from rvos_select.data.collate import collate as collate_rows
from rvos_select.selectors.dervos import Dervos
from rvos_select.selectors.dervos.beit3 import images
from rvos_select.selectors.dmvs.masks import pair_losses
from rvos_select.tuning import refiner, tune_refiner
from rvos_select.tuning.refiner_images import collate
from rvos_select.tuning.refiner_model import LiveDervos, LiveTracks, match_points
from rvos_select.tuning.refiner_settings import RefinerSettings

pytestmark = pytest.mark.slow  # whole runs; left to test-all

FILES = ("last/trained.safetensors", "last/optimizer.safetensors", "metrics.jsonl")


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Steps are compared to the last bit."""
    with without_gpu():
        yield


def moved(run: Path, settings: RefinerSettings) -> tuple[set[str], set[str]]:
    """Names of the saved tensors that a run has changed, and of the others."""
    before = LiveDervos(settings).parameters
    after = load_file(run / "last/trained.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    return changed, after.keys() - changed


def test_the_refiner_and_tais_move_and_nothing_else() -> None:
    live = LiveDervos(settings_of())
    before = live.digests()
    frozen = [live.head.reid, live.head.tracker, live.segmenter.model, live.beit3]
    values = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in frozen]
    run = refiner.RefinerRun(live.settings, source_of(live.settings), live, work())
    run.before_training()
    run.step(0, [run.clip(*each) for each in run.clips(0)])
    for part, own in zip(frozen, values):
        assert all(torch.equal(tensor, own[name]) for name, tensor in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    after = live.digests()
    assert {name for name in before if before[name] != after[name]} == {"dvis_head.safetensors"}
    changed, same = moved(work() / "run", live.settings)
    assert {name.partition(".")[0] for name in changed} == {"refiner", "tais"}
    # No loss reads the classes of DVIS++; of one frame the mean over time is the frame.
    assert {name for name in same if name.startswith("refiner.")} == {
        f"refiner.{part}.{kind}" for part in ("class_embed", "activation_proj") for kind in ("weight", "bias")
    }


def test_no_time_keeps_the_layers_along_time(tmp_path: Path) -> None:
    settings = settings_of(train_refiner="no_time", steps=1)
    tune_refiner([data()], settings, tmp_path / "run")
    changed, same = moved(tmp_path / "run", settings)
    parts = {"transformer_time_self_attention_layers", "conv_short_aggregate_layers", "conv_norms", "activation_proj"}
    temporal = {name for name in changed | same if name.split(".")[1] in parts and name.startswith("refiner.")}
    assert temporal <= same and {name.split(".")[1] for name in temporal} == parts
    assert any(name.startswith("refiner.transformer_cross_attention_layers.") for name in changed)
    record = json.loads((tmp_path / "run/tune.json").read_text())
    assert record["trained"]["refiner"] == sum(
        tensor.numel()
        for name, tensor in load_file(tmp_path / "run/last/trained.safetensors").items()
        if name.startswith("refiner.") and name not in temporal
    )


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    tune_refiner([data()], settings_of(steps=1), tmp_path / "run")
    tune_refiner([data()], settings_of(steps=2), tmp_path / "run")
    # Threads that read change nothing.
    tune_refiner([data()], settings_of(readers=1), tmp_path / "alone")
    for name in FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (work() / "run" / name).read_bytes(), name
        assert (tmp_path / "run" / name).read_bytes() == (work() / "run" / name).read_bytes(), name


def test_the_record_has_what_a_run_needs() -> None:
    record = json.loads((work() / "run/tune.json").read_text())
    assert record["trains"] == state.REFINER and record["items"] == len(source_of(settings_of())) == 5
    assert record["datasets"] == [{"dataset": "refcoco", "split": "train"}]
    assert record["config"]["map_channels"] == tiny_dvis.CHANNELS and record["config"]["token_channels"] == tiny_dvis.WIDTH
    assert set(record["checkpoint"]) == {"DVIS", "dvis_head.safetensors", "beit3"}
    rows = [json.loads(line) for line in (work() / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "class", "bce", "dice", "matched_iou", "norm", "lr"} <= rows[0].keys()
    assert rows[0]["loss"] == pytest.approx(2 * rows[0]["class"] + 5 * rows[0]["bce"] + 5 * rows[0]["dice"], rel=1e-4)


def test_the_live_tracks_are_those_of_the_tracker() -> None:
    """An untrained refiner on an image gives the tokens and mask logits that stage one stores (in float16 there)."""
    settings = settings_of()
    live, source = LiveDervos(settings), source_of(settings)
    image = source.image(0, torch.Generator().manual_seed(0))
    tracks = live(collate([image], settings, live.device))
    tracker = DvisTracker(DvisSettings(checkpoint=settings.dvis, side=64, pool=4))
    video = data().video(data().video_ids()[0])
    q, spool, pooled = tracker.frame_features(video, square_geometry(video.size, 64), lambda share: None)
    tokens = tracker.generator.tracks(q, lambda share: None).tokens
    expected = next(iter(tracker.mask_logits(tokens, spool)))
    logits = torch.einsum("nc,hwc->nhw", tracks.mask_embed[0], tracks.mask_features[0])
    assert expected.abs().max() > 0.1
    assert torch.allclose(logits, expected, atol=2e-3 * float(expected.abs().max()))
    maps = square_geometry((64, 64), 64).pool(tracks.mask_features, 4)
    assert pooled is not None and torch.allclose(maps, torch.from_numpy(pooled).float(), atol=2e-3)
    assert torch.equal(image.frame, images(torch.tensor(video.read(0))[None], 64, "bicubic")[0])  # type: ignore[arg-type]


def test_the_live_scores_are_those_of_the_selector_on_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every expression of the images: live, and by caches of tokens, maps, words and ids, frames from the dataset."""
    settings = settings_of(batch_size=5, config={**TAIS, "cues": "particles"})
    extract_all(
        "refcoco", work() / "data", splits=["train"], tracker="dvis", encoder="beit3", out=tmp_path,
        overrides={"checkpoint": settings.dvis, "side": 64, "pool": 4}, text_overrides={"checkpoint": settings.beit3.checkpoint},
    )  # fmt: skip
    case = SelectorCase(
        "dervos", settings.config.model_dump(include={*TAIS, "cues"}),
        tracks=tmp_path / "train/dvis.zarr", texts=tmp_path / "train/text-beit3.zarr",
    )  # fmt: skip
    live, source = LiveDervos(settings), source_of(settings)
    model = case.selector
    assert isinstance(model, Dervos) and model.config == live.config
    live.selector.tais.load_state_dict(model.tais.state_dict())
    live.selector.eval()
    rows = {(x.video_id, e.expression_id): (x, row) for x in case.samples for row, e in enumerate(x.expressions)}
    scores, refine, pool = [], live.head.refiner.refine, FrameGeometry.pool
    # Caches hold both in float16.
    monkeypatch.setattr(FrameGeometry, "pool", lambda *given: pool(*given).half().float())
    for n, (_, expression) in enumerate(source.items):
        sample, row = rows[expression.video_id, expression.expression_id]
        query = torch.from_numpy(TrackCache(case.caches[0]).feature(sample.video_id, "query")).long()
        # Stage one drops tracks without a pixel, and TAIS compares the tracks of a frame with each other.
        monkeypatch.setattr(live.head.refiner, "refine", lambda e, raw, query=query: refine(e, raw)[:, :, query].half().float())
        with torch.no_grad():
            own = live(collate([source.image(n, torch.Generator())], settings, live.device)).scores
            expected = model.frame_scores(collate_rows([(sample, row)], model.requires))
        assert len(query) and torch.allclose(own, expected, atol=2e-5), expression
        scores.append(own)
    # The tolerance is far below what tells tracks and expressions apart.
    assert (scores[0] - scores[1]).abs().max() > 0.02 and scores[0].std(1).max() > 0.02


def test_objects_that_are_not_visible_are_no_targets() -> None:
    source = source_of(settings_of())
    masks = np.zeros((3, 1, 40, 60), bool)
    masks[0, 0, :20], masks[2, 0, :, 30:] = True, True
    truth = GroundTruth(("11", "12", "13"), RleMasks.from_dense(masks), np.ones(1, bool))
    source._truth = lambda *video: truth  # type: ignore[assignment]
    number, expression = source.items[0]
    source.items[0] = number, replace(expression, targets=("12", "13", "11"))
    image = source.image(0, torch.Generator())
    assert image.truth.shape == (2, 1, 64, 64) and image.truth.mean((1, 2, 3)).tolist() == [0.5, 0.5]
    source.items = [(number, replace(expression, targets=("12",)))]
    with pytest.raises(InputError, match="none of 100 expressions has a frame that shows its objects"):
        source.image(0, torch.Generator())


def test_each_step_has_its_own_noise(tmp_path: Path) -> None:
    settings = settings_of()
    run = refiner.RefinerRun(settings, source_of(settings), LiveDervos(settings), tmp_path)
    values = []
    for step in (0, 1, 0):
        run.seed_noise(step)
        values.append(torch.rand(()).item())
    assert values[0] == values[2] != values[1]


def centres(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """Points are the centres of all cells of a square map."""
    at = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).flatten(0, 1)
    monkeypatch.setattr(
        "rvos_select.selectors.dmvs.masks.uncertain_points", lambda logits, count: grid.expand(len(logits), -1, -1)
    )
    monkeypatch.setattr("rvos_select.selectors.dmvs.masks.torch.rand", lambda *sizes, device=None: grid[None])


def test_losses_at_all_points_are_torch_s_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    side, settings = 16, settings_of(points=256)
    live = LiveDervos(settings)
    g = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 4, 1, 2, generator=g, requires_grad=True)
    embed = torch.randn(2, 4, 6, generator=g, requires_grad=True)
    features = torch.randn(2, side, side, 6, generator=g)
    truth = tuple((torch.rand(count, 1, side, side, generator=g) > 0.6).float() for count in (2, 1))
    tracks = LiveTracks(scores, embed, features)
    centres(monkeypatch, side)
    losses = live.losses(tracks, truth)

    dense = torch.einsum("bnc,bhwc->bnhw", embed, features)
    classes, bces, dices = [], [], []
    for b, masks in enumerate(truth):
        p = dense[b].sigmoid().flatten(1)
        costs = torch.stack(
            [
                torch.stack([
                    5 * F.binary_cross_entropy_with_logits(dense[b, n], mask[0])
                    + 5 * dice(p[n], mask.flatten())
                    - 2 * scores[b, n, 0].softmax(-1)[0]
                    for mask in masks
                ])
                for n in range(4)
            ]
        )  # fmt: skip
        pairs = min(
            (sum(float(costs[n, a].detach()) for a, n in enumerate(chosen)), chosen)
            for chosen in itertools.permutations(range(4), len(masks))
        )[1]
        labels = torch.tensor([0 if n in pairs else 1 for n in range(4)])
        classes.append(F.cross_entropy(scores[b, :, 0], labels, torch.tensor([1, 0.1])))
        for a, n in enumerate(pairs):
            bces.append(F.binary_cross_entropy_with_logits(dense[b, n], masks[a, 0]))
            dices.append(dice(p[n], masks[a].flatten()))
    for name, expected in (("class", classes), ("bce", bces), ("dice", dices)):
        assert losses[name].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5), name
    total = 2 * torch.stack(classes).mean() + 5 * torch.stack(bces).mean() + 5 * torch.stack(dices).mean()
    own = torch.autograd.grad(losses["loss"], [scores, embed])
    for value, expected_gradient in zip(own, torch.autograd.grad(total, [scores, embed])):
        assert torch.allclose(value, expected_gradient, atol=1e-6)


def dice(p: Tensor, y: Tensor) -> Tensor:
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def test_few_points_are_near_all_points() -> None:
    """12,544 points of a map of 160 x 160 cells: the losses are theirs within 2 %, without the choice of the uncertain ones."""
    g = torch.Generator().manual_seed(6)
    small = torch.randn(1, 1, 10, 10, generator=g) * 4
    logits = F.interpolate(small, (160, 160), mode="bilinear")
    truth = (F.interpolate(torch.randn(1, 1, 8, 8, generator=g), (160, 160), mode="bilinear") > 0).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rvos_select.losses.points.UNCERTAIN", 0.0)
        torch.manual_seed(0)
        bce, own = pair_losses(logits, truth, [0], 12544)
    assert bce.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, truth).item(), rel=0.02)
    assert own.item() == pytest.approx(dice(logits.sigmoid().flatten(), truth.flatten()).item(), rel=0.02)


def test_matching_takes_the_track_of_the_object() -> None:
    """Logits drawn as the objects: object a is track 2 - a."""
    truth = torch.zeros(2, 1, 16, 16)
    truth[0, :, :, :8] = truth[1, :, 3:12, 2:14] = 1
    features = torch.zeros(1, 16, 16, 3)
    features[0, ..., 2], features[0, ..., 1] = 20 * truth[0, 0] - 10, 20 * truth[1, 0] - 10
    tracks = LiveTracks(torch.zeros(1, 3, 1, 2), torch.eye(3)[None], features)
    (match,) = match_points(tracks, (truth,), 4000, settings_of().config)
    assert match.labels.tolist() == [1, 0, 0] and match.tracks.tolist() == [1, 2] and match.objects.tolist() == [1, 0]
    assert match.iou.min() > 0.8


def test_the_loss_falls_on_one_batch(tmp_path: Path) -> None:
    settings = settings_of(max_norm=1e9, config={**TAIS, "dropout": 0.0})
    run = refiner.RefinerRun(settings, source_of(settings), LiveDervos(settings), tmp_path)
    images = [run.clip(*each) for each in run.clips(0)]
    values = [run.step(0, images)["loss"] for _ in range(12)]
    assert values[-1] < 0.85 * values[0]
