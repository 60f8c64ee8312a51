"""The optimiser of a run: rates over its steps, and which weights decay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_caches import numbers, run, settings

from rvos_cache.errors import InputError
from rvos_cache.store import read_card
from rvos_select.data.cards import CacheCards
from rvos_select.runs.checkpoint import load_selector
from rvos_select.selectors.sola import Sola, SolaConfig
from rvos_select.selectors.ssa import Ssa, SsaConfig
from rvos_select.training.optim import decay_groups
from rvos_select.training.train import make_selector


def rates(path: Path) -> list[float]:
    return [row["lr"] for row in numbers(path)]


def test_schedules(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Three steps an epoch; the recorded rate is that of an epoch's last step."""
    flat = run(caches, tmp_path / "flat", optim={"lr": 1e-3, "schedule": "constant", "warmup": 4})
    assert rates(flat) == pytest.approx([0.75e-3, 1e-3, 1e-3])
    wave = run(caches, tmp_path / "wave", optim={"lr": 1e-3, "schedule": "cosine"})
    assert rates(wave) == pytest.approx([5e-4 * (1 + np.cos(np.pi * step / 9)) for step in (2, 5, 8)])
    # a rate this large never lowers the loss again after some epochs: each time `patience` more than 0 epochs wait
    out = run(caches, tmp_path / "plateau", optim={"lr": 1.0, "patience": 0}, epochs=6)
    losses, expected, rate, lowest = [row["valid/loss"] for row in numbers(out)], [], 1.0, float("inf")
    for loss in losses:
        expected.append(rate)
        rate, lowest = (rate, loss) if loss < lowest else (rate / 2, lowest)
    assert rates(out) == pytest.approx(expected)
    assert expected[-1] < 1.0


def test_the_rate_falls_at_milestones(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """Nine steps; the recorded ones are 2, 5 and 8, at 0.22, 0.56 and 0.89 of them."""
    optim = {"lr": 1e-3, "schedule": "step", "factor": 0.1, "milestones": [0.3, 0.7]}
    assert rates(run(caches, tmp_path / "run", optim=optim)) == pytest.approx([1e-3, 1e-4, 1e-5])
    with pytest.raises(InputError, match="epochs"):
        run(caches, tmp_path / "run", resume=True, optim=optim, epochs=4)


def test_what_decays_of_ssa() -> None:
    """As in detectron2: all but norms and embeddings; a convolution that has a norm decays, its norm does not."""
    ssa = Ssa(SsaConfig(width=32, hidden=8, pixel_hidden=8, fusion_width=8, pixel_layers=1, frame_layers=3, video_layers=1))
    names = {id(p): name for name, p in ssa.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in decay_groups(ssa, 0.1))
    pixel = "pixel_decoder"
    layer = f"{pixel}.transformer.encoder"
    assert decayed >= {f"{pixel}.adapter_1.weight", f"{pixel}.layer_1.weight", f"{pixel}.transformer.level_embed"}
    assert decayed >= {f"{layer}.fusion_layers.0.gamma_v", f"{layer}.layers.0.self_attn.value_proj.bias"}
    assert free >= {f"{pixel}.adapter_1.norm.weight", "frame_decoder.level_embed.weight", "frame_decoder.query_embed.weight"}
    assert free >= {"video.fq_pos.weight", "text_projection.layer_norm.bias", f"{pixel}.input_proj.0.1.weight"}
    assert not decayed & free and decayed | free == set(names.values())


def test_norms_and_embeddings_may_go_without_decay(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    model = Sola(SolaConfig(token_channels=8, word_channels=16, width=8, heads=2))
    decayed, free = (group["params"] for group in decay_groups(model, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in free} >= {"negative_token.weight", "short_motion_encoder.1.bias"}
    assert {names[id(p)] for p in decayed} >= {"short_motion_encoder.0.weight", "short_motion_encoder.0.bias"}
    assert len(decayed) + len(free) == len(names)
    for decay_all in (True, False):
        # With a rate of nothing but decay: 1e-3 x 10 of each value a step, three steps.
        optim = {"lr": 1e-3, "weight_decay": 10.0, "clip": 1e-12, "schedule": "constant", "decay_all": decay_all}
        before = make_selector(settings(optim=optim), CacheCards(*([read_card(path)] for path in caches[:2]))).state_dict()
        after = load_selector(run(caches, tmp_path / str(decay_all), epochs=1, optim=optim)).state_dict()
        shrunk = (after["negative_token.weight"].norm() / before["negative_token.weight"].norm()).item()
        assert shrunk == pytest.approx(0.99**3 if decay_all else 1.0, abs=5e-3)
