"""Memory and time of DeRVOS's training steps at the paper's sizes: BEiT-3 on 320 x 320 frames with 20 words, 50 tracks.

Run: OMP_NUM_THREADS=1 python tests/bench/dervos_step.py [--clips 8] [--frames 8] [--tracks 50] [--steps 3] [--bound 10e9]
By default on a CPU a clip of 2 frames, on a GPU the paper's 8 of 8. A JSON line for each way, in a process of its own: BEiT-3 base,
large, and without it. bytes: the largest resident size of the process, or on a GPU of its tensors; before: that of the weights.
Weights are random. Ends with status 1 above the bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.text.beit3 import Beit3, Beit3Sizes
from rvos_select.data.batch import Batch
from rvos_select.selectors.dervos import Dervos, DervosConfig
from rvos_select.selectors.dervos_beit3 import NAME

SIDE, GRID, WORDS, OBJECTS, CELLS = 320, 20, 20, 2, 160 * 160
LAYERS = {768: 12, 1024: 24}
"""Width of BEiT-3 base and large -> layers."""
WAYS: dict[str, dict[str, Any]] = {
    "base": {}, "large": {"word_channels": 1024}, "words": {"understanding": "words"},
}  # fmt: skip


def batch(clips: int, frames: int, tracks: int, channels: int, device: torch.device) -> Batch:
    """Random clips of expressions with two objects each."""
    g = torch.Generator().manual_seed(0)
    spans = torch.stack([torch.arange(WORDS), torch.arange(WORDS) + 1], 1).expand(clips, -1, -1)
    shapes = {"N": tracks, "A": OBJECTS, "T": frames}
    sums = {
        s.name: CELLS * torch.rand(clips, *(d if isinstance(d, int) else shapes[d] for d in s.dims), generator=g)
        for s in SOFT_SPECS
    }
    return Batch(
        tokens=torch.randn(clips, tracks, frames, 512, generator=g),
        frame_mask=torch.ones(clips, frames, dtype=torch.bool),
        track_mask=torch.ones(clips, tracks, dtype=torch.bool),
        words=torch.randn(clips, WORDS, channels, generator=g),
        word_mask=torch.ones(clips, WORDS, dtype=torch.bool),
        word_ids=torch.randint(0, 64_002, (clips, WORDS), generator=g),
        spans=spans,
        motion_words=torch.rand(clips, WORDS, generator=g) < 0.2,
        frame_index=torch.arange(frames).expand(clips, -1),
        measured={**sums, "soft_cells": torch.full((clips, frames), CELLS)},
        frames={"f_mask_pooled": tuple(torch.randn(clips, frames, GRID, GRID, 256, generator=g).half())},
        pixels=tuple(torch.randint(0, 256, (clips, frames, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)),
    ).to(device)


def measure(way: str, clips: int, frames: int, tracks: int, steps: int) -> dict[str, Any]:
    """Take the steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Dervos(DervosConfig(**WAYS[way]))
    width = model.config.word_channels
    if model.config.understanding == "beit3":
        model.attach_frozen(NAME, Beit3(Beit3Sizes(width, LAYERS[width], 64_010, 14, 1_022), SIDE).eval())
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = batch(clips, frames, tracks, width, device)
    before, seconds, loss = peak(device), [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        losses = model.loss(inputs)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        loss = losses["loss"].item()
        seconds.append(round(time.perf_counter() - start, 2))
    where = {"way": way, "device": device.type, "clips": clips, "frames": frames, "tracks": tracks}
    return {**where, "before": before, "bytes": peak(device), "seconds": seconds, "loss": round(loss, 3)}


def peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Each way in a process of its own, or with --way that one in this."""
    on_gpu = torch.cuda.is_available()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=8 if on_gpu else 1)
    options.add_argument("--frames", type=int, default=8 if on_gpu else 2)
    options.add_argument("--tracks", type=int, default=50)
    options.add_argument("--steps", type=int, default=5 if on_gpu else 2)
    options.add_argument("--bound", type=float, default=10e9, help="Bytes.  [default: 10e9]")
    options.add_argument("--way", choices=WAYS)
    given = options.parse_args()
    if given.way is None:
        return max(subprocess.run([sys.executable, *sys.argv, "--way", way], check=False).returncode for way in WAYS)
    line = measure(given.way, given.clips, given.frames, given.tracks, given.steps)
    print(json.dumps({**line, "bound": int(given.bound)}), flush=True)
    return int(line["bytes"] > given.bound)


if __name__ == "__main__":
    sys.exit(main())
