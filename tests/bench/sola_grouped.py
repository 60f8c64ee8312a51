"""Training steps of the full SOLA: single expressions against all expressions of a video in one batch.

Run: OMP_NUM_THREADS=1 python tests/bench/sola_grouped.py [--expressions 14] [--tracks 32] [--frames 64] [--repeats 3]
Writes one JSON line; times are medians in seconds for all expressions of the video.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rvos_select.data import Batch
from rvos_select.selectors.sola import Sola, SolaConfig


def video(expressions: int, tracks: int, frames: int, words: int = 14) -> Batch:
    """Random tokens in the shapes of one video with as many expressions; leading size 1."""
    g = torch.Generator().manual_seed(0)
    real = [torch.ones(a, b, dtype=torch.bool) for a, b in ((1, frames), (expressions, tracks), (expressions, words))]
    tokens = torch.randn(1, tracks, frames, 256, generator=g)
    target = (torch.rand(expressions, tracks, generator=g) < 0.1).float()
    return Batch(tokens, real[0], real[1], torch.randn(expressions, words, 1024, generator=g), real[2], target)


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
    for name, default in (("expressions", 14), ("tracks", 32), ("frames", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Sola(SolaConfig()).eval()
    found = measure(model, video(asked.expressions, asked.tracks, asked.frames), asked.repeats)
    sys.stdout.write(json.dumps(vars(asked) | {name: float(f"{value:.4g}") for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
