"""Steps recorded as CUDA graphs against the same steps computed one by one; skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import numbers, run

from rvos_cache.system.cuda_graphs import Graphs
from rvos_select.training import recorded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
STILL = {"motion_dropout": 0.0, "attention_dropout": 0.0}
SOLA = {"word_channels": 8, "width": 16, "layers": 2, "heads": 2, "negatives": 2}


@pytest.mark.parametrize("batch", [{"batch": "video"}, {"batch": "single", "batch_size": 3}], ids=["video", "single"])
@pytest.mark.parametrize("resident", ["true", "false"])
@pytest.mark.parametrize("selector", ["sola", "mean-cosine"])
def test_a_run_of_recorded_steps_is_the_run(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, selector: str, resident: str, batch: dict[str, Any]
) -> None:
    """Of SOLA at a rate of nearly zero, since some of its gradients are zero but for rounding, which AdamW makes as large as others."""
    config = {**SOLA, **STILL} if selector == "sola" else {"word_channels": 8, "width": 16}
    values = {"selector": selector, "config": config, "precision": "float32", "resident": resident, "epochs": 4, **batch}
    values["optim"] = {"lr": 1e-12 if selector == "sola" else 3e-3}
    plain = run(caches, tmp_path / "plain", cuda_graphs=False, **values)
    captures: list[object] = []
    capture = recorded.Graphs._capture
    monkeypatch.setattr(recorded.Graphs, "_capture", lambda self, compute: (captures.append(1), capture(self, compute))[1])
    replayed = run(caches, tmp_path / "replayed", **values)
    assert captures
    for one, other in zip(numbers(plain), numbers(replayed), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    # A run may go on with the other way.
    run(caches, plain, resume=True, **{**values, "epochs": 5})
    run(caches, replayed, resume=True, cuda_graphs=False, **{**values, "epochs": 5})
    assert numbers(plain)[-1] == pytest.approx(numbers(replayed)[-1], rel=1e-3, abs=1e-5)


def test_random_numbers_after_a_recording_that_failed() -> None:
    """They go on as they would have without it."""
    graphs, x = Graphs(torch.cuda.graph_pool_handle()), torch.ones(64, device="cuda")

    def compute() -> None:
        torch.nn.functional.dropout(x).sum().item()

    graphs.run("a", compute)
    state = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError):
        graphs.run("a", compute)
    numbers_after = torch.nn.functional.dropout(x)
    torch.cuda.set_rng_state(state)
    assert torch.equal(numbers_after, torch.nn.functional.dropout(x))
    Graphs(torch.cuda.graph_pool_handle()).run("b", lambda: None)


def test_dropout_is_drawn_anew_in_each_replay(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    """At a rate of nearly zero the losses of an epoch differ by their random numbers alone, which follow from seed and epoch."""
    values = {"config": {**SOLA, "motion_dropout": 0.5}, "precision": "float32", "optim": {"lr": 1e-12}, "epochs": 6}
    one, other = (numbers(run(caches, tmp_path / name, **values)) for name in ("one", "other"))
    losses = [row["train/loss"] for row in one]
    assert len(set(losses)) == len(losses)
    assert losses == pytest.approx([row["train/loss"] for row in other], rel=1e-5)
