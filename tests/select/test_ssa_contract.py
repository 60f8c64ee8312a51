"""Both forms of SSA under the contract of selectors, and a live module that learns eight sentences by heart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_ssa
import torch
from numpy.typing import NDArray

from rvos_cache.contracts.checks import run_check
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.collate import Row
from rvos_select.data.video import InferenceVideo
from rvos_select.exchange.import_ssa import sizes
from rvos_select.selectors.ssa import Ssa, SsaConfig


@pytest.fixture(scope="module", params=["live", "cached"])
def case(request: pytest.FixtureRequest) -> SelectorCase:
    tiny, live = tiny_ssa.tiny(), request.param == "live"
    config = {**tiny_ssa.LIVE, "clip": tiny.clip} if live else tiny_ssa.CACHED
    tracks = tiny.frames["train"] if live else tiny_ssa.pooled()["train"]
    return SelectorCase("ssa", config, tracks=tracks, texts=tiny.texts["train"])


@pytest.mark.slow
@pytest.mark.parametrize("check", SELECTOR_CHECKS.values(), ids=lambda check: check.__name__)
def test_contract_of_ssa(case: SelectorCase, check: Callable[[SelectorCase], None]) -> None:
    """The same functions that `rvos-select check-selector` runs."""
    result = run_check(check.__name__, check, case)
    assert result.status != "FAILED", result.message


def mean_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The mean over frames of the IoU of masks (T, H, W); 1 where both are empty."""
    shared, union = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return float(np.where(union == 0, 1.0, shared / np.maximum(union, 1)).mean())


def scores(module: Ssa, row: Row) -> tuple[float, float]:
    """IoU of what an expression selects, and of its best queries: for each object that of the largest IoU."""
    sample, number = row
    (scored,) = module.infer(InferenceVideo(sample, (number,), tuple(module.requires), torch.device("cpu")))
    assert scored.draw is not None and sample.truth is not None and sample.objects is not None
    marked = torch.ones_like(scored.logits, dtype=torch.bool)
    masks = torch.cat(list(scored.draw(marked)), 1).numpy()
    objects = [np.stack([sample.truth.masks.decode(k, t) for t in range(masks.shape[1])]) for k in sample.objects[number]]
    best = [max(range(len(masks)), key=lambda q: mean_iou(masks[q], truth)) for truth in objects]
    selected = (scored.logits[0] > 0).numpy()
    target = np.any(objects, axis=0)
    return mean_iou(masks[selected].any(0), target), mean_iou(masks[best].any(0), target)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_expressions_are_learnt_by_heart() -> None:
    """The live form selects what its own masks allow: the acceptance of overfitting."""
    torch.manual_seed(0)
    config = {"width": 64, "hidden": 128, "pixel_hidden": 128, "fusion_width": 64, "pixel_layers": 2, "queries": 5, "points": 512}
    module = tiny_ssa.live(**config, handed_on=1, short_side=96, clip_drop_path=0.0).train()
    rows = tiny_ssa.rows(tiny_ssa.tiny().frames["train"], module)
    assert len(rows) == 8
    sampler = ClipSampler(ClipSettings(frames=3, within=0), torch.Generator().manual_seed(0), (*module.requires, "overlap"))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    steps = 100
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20, 1.05 - step / steps)
        optimizer.zero_grad()
        module.loss(sampler(rows))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()
    with torch.inference_mode():
        selected, allowed = np.mean([scores(module, row) for row in rows], 0)
    assert allowed > 0.6 and selected > 0.95 * allowed


@pytest.mark.parametrize(
    "switches",
    [{}, {"fusion": False}, {"adapters": False}, {"frame_layers": 2, "handed_on": 2}],
    ids=lambda switches: str(switches),
)
def test_sizes_of_a_checkpoint_are_those_of_its_tensors(switches: dict[str, Any]) -> None:
    small = {"width": 32, "hidden": 8, "pixel_hidden": 12, "fusion_width": 16, "pixel_layers": 2, "frame_layers": 4}
    config = SsaConfig(**{**small, "video_layers": 3, "queries": 5, "word_channels": 7, **switches})
    module = Ssa(config)
    read = SsaConfig(**sizes(module.official()))
    ignored = {"fusion_width"} if not config.fusion else set()
    assert read.model_dump(exclude=ignored) == config.model_dump(exclude=ignored)
    Ssa(read).load_official(module.official())
