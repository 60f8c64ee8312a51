"""Memory and time of tune-referdino's steps, with random weights: GroundingDINO of the released size (Swin-T), clips of 6 frames.

Run: OMP_NUM_THREADS=1 python tests/bench/referdino_step.py [--short-side 368] [--long-side 640] [--frames 6] [--clips 1]
By default on a GPU the paper's clip of 6 frames of 368 x 640 pixels (17.0 GB in Table 5), on a CPU a small model and clip. A JSON line
for each way, in a process of its own: keep_ratio 0.5; the same with activations computed again (checkpointing); keep_ratio 1, whose
memory pruning saves. bytes: the largest resident size of the process, or on a GPU of its tensors; before: that of the weights.
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
from transformers import GroundingDinoConfig, SwinConfig

from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.start import make_live
from rvos_cache.trackers.referdino.trained import select_trained, set_mode
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.referdino_losses import Truth
from rvos_cache.tuning.clips import LiveBatch
from rvos_cache.tuning.run import all_losses

WORDS = 16
SMALL = {"num_queries": 100, "encoder_layers": 2, "decoder_layers": 2}
WAYS: dict[str, dict[str, Any]] = {
    "pruned": {}, "pruned, checkpointing": {"checkpointing": True}, "not pruned": {"keep_ratio": 1.0},
}  # fmt: skip


def make_batch(clips: int, frames: int, size: tuple[int, int]) -> LiveBatch:
    """Random clips of one object each."""
    g = torch.Generator().manual_seed(0)
    h, w = size
    masks = torch.zeros(clips, frames, h, w, dtype=torch.bool)
    masks[:, :, h // 4 : h // 2, w // 4 : w // 2] = True
    ids = torch.randint(2000, 20000, (clips, WORDS), generator=g)
    ids[:, 0], ids[:, -2], ids[:, -1] = 101, 1012, 102
    boxes = torch.tensor([0.375, 0.375, 0.25, 0.25]).expand(clips, frames, 4)
    valid, real = torch.ones(clips, frames, dtype=torch.bool), torch.ones(clips, h, w, dtype=torch.bool)
    images = torch.randn(clips * frames, 3, h, w, generator=g)
    words = torch.ones(clips, WORDS, dtype=torch.bool)
    return LiveBatch(images, real.repeat_interleave(frames, 0), ids, words, Truth(boxes, valid, masks, real), ("",) * clips)


def measure(way: str, clips: int, frames: int, size: tuple[int, int], steps: int, small: bool) -> dict[str, Any]:
    """Take the steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    settings = tune_settings({"batch_size": clips, "accumulate": 1, **WAYS[way]})
    config = GroundingDinoConfig(backbone_config=SwinConfig(out_indices=[2, 3, 4]), **(SMALL if small else {}))
    live = make_live(FourStageGroundingDino(config), None, settings)
    trained = list(select_trained(live, frames == 1).values())
    live.to(device)
    set_mode(live, noise=True)
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = make_batch(clips, frames, size).to(device)
    before, seconds, loss = peak(device), [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = live(batch.images, batch.real, batch.ids, batch.words)
            losses = all_losses(output, batch.truth, settings, clips * frames)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        loss = losses["loss"].item()
        seconds.append(round(time.perf_counter() - start, 2))
    where = {"way": way, "device": device.type, "small": small, "clips": clips, "frames": frames, "size": size}
    return {**where, "before": before, "bytes": peak(device), "seconds": seconds, "loss": round(loss, 2)}


def peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Each way in a process of its own, or with --way that one in this."""
    on_gpu = torch.cuda.is_available()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short-side", type=int, default=368 if on_gpu else 96)
    options.add_argument("--long-side", type=int, default=640 if on_gpu else 160)
    options.add_argument("--frames", type=int, default=6 if on_gpu else 3)
    options.add_argument("--clips", type=int, default=1)
    options.add_argument("--steps", type=int, default=3 if on_gpu else 2)
    options.add_argument("--small", action=argparse.BooleanOptionalAction, default=not on_gpu, help="2 layers and 100 queries.")
    options.add_argument("--way", choices=WAYS)
    given = options.parse_args()
    if given.way is None:
        return max(subprocess.run([sys.executable, *sys.argv, "--way", way], check=False).returncode for way in WAYS)
    # Frames are padded to multiples of 32.
    height, width = (-(-side // 32) * 32 for side in (given.short_side, given.long_side))
    print(json.dumps(measure(given.way, given.clips, given.frames, (height, width), given.steps, given.small)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
