"""Training steps of SOLA: single expressions against all expressions of a video in one batch.

Run: OMP_NUM_THREADS=1 python tests/bench/sola_grouped.py [--repeats 3]
Writes one JSON line for each module: times are medians in seconds for all expressions of one video, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rvos_cache.settings import read_toml
from rvos_select.data.batch import Batch
from rvos_select.selectors.sola import Sola, SolaConfig


def video(expressions: int, tracks: int, frames: int, channels: int, words: int = 14) -> Batch:
    """Random tokens in the shapes of one video with as many expressions and D `channels`; leading size 1."""
    g = torch.Generator().manual_seed(0)
    real = [torch.ones(a, b, dtype=torch.bool) for a, b in ((1, frames), (expressions, tracks), (expressions, words))]
    tokens = torch.randn(1, tracks, frames, 256, generator=g)
    target = (torch.rand(expressions, tracks, generator=g) < 0.1).float()
    return Batch(tokens, real[0], real[1], torch.randn(expressions, words, channels, generator=g), real[2], target)


def singles(x: Batch) -> list[Batch]:
    """The expressions of `x` as batches of one."""
    return [
        Batch(
            x.tokens,
            x.frame_mask,
            x.track_mask[i : i + 1],
            x.words[i : i + 1],
            x.word_mask[i : i + 1],
            None if x.target is None else x.target[i : i + 1],
        )
        for i in range(len(x.words))
    ]


def median_seconds(step: Callable[[], Tensor], repeats: int) -> float:
    """Median time of `step` after one run that does not count."""
    step()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(model: nn.Module, x: Batch, repeats: int) -> dict[str, float]:
    """Seconds of forward and backward both ways, their ratio, and the difference of the losses."""
    each = singles(x)

    def one_by_one() -> Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for batch in each:
            loss = model.loss(batch)["loss"] / len(each)
            loss.backward()
            total += loss.detach()
        return total

    def together() -> Tensor:
        model.zero_grad()
        loss: Tensor = model.loss(x)["loss"]
        loss.backward()
        return loss.detach()

    difference = float((one_by_one() - together()).abs())
    single, grouped = median_seconds(one_by_one, repeats), median_seconds(together, repeats)
    return {
        "single_s": single,
        "grouped_s": grouped,
        "single_samples_per_s": len(each) / single,
        "grouped_samples_per_s": len(each) / grouped,
        "ratio": single / grouped,
        "loss_difference": difference,
    }


def main() -> None:
    """Measure in eval mode, where nothing is random, so that the losses can be compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    shapes = Path(__file__).parents[2] / "pipelines/sola_shapes.toml"
    # The full module on a video like MeViS's, and the demo's module on a video of moving shapes.
    full = (SolaConfig(), {"expressions": 14, "tracks": 32, "frames": 64})
    small = (SolaConfig(word_channels=192, **read_toml(shapes)["config"]), {"expressions": 10, "tracks": 8, "frames": 32})
    for name, (config, sizes) in (("full", full), ("small", small)):
        torch.manual_seed(0)
        model = Sola(config).eval()
        measurements = measure(model, video(**sizes, channels=config.word_channels), repeats)
        values = {key: float(f"{value:.4g}") for key, value in measurements.items()}
        parameters = sum(p.numel() for p in model.parameters())
        sys.stdout.write(json.dumps({"module": name, "parameters": parameters, **sizes, **values}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
