"""Memory and time of SSA's training steps at the paper's sizes: CLIP ConvNeXt-L, 20 queries, clips of frames 448 pixels high; and of
the cached form's, with 64 tracks.

Run: OMP_NUM_THREADS=1 python tests/bench/ssa_step.py [--short-side 448] [--frames 8] [--clips 1]
By default on a CPU a clip of 2 frames of 128 x 256 pixels, on a GPU the paper's 8 of 448 x 800. A JSON line for each way, in a process
of its own: live; live with activations computed again (checkpointing); cached. bytes: the largest resident size of the process, or
on a GPU of its tensors; before: that of the weights. Weights are random.
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

from rvos_select.data.batch import Batch
from rvos_select.selectors.ssa import Ssa, SsaConfig
from rvos_select.selectors.ssa.clip import IMAGE_PART, set_drop_path

DEPTHS = (3, 3, 27, 3)
TRACKS, WORDS, OBJECTS = 64, 12, 2
WAYS: dict[str, dict[str, Any]] = {
    "live": {}, "live, checkpointing": {"checkpointing": True}, "cached": {"form": "cached"},
}  # fmt: skip


def batch(form: str, clips: int, frames: int, size: tuple[int, int], device: torch.device) -> Batch:
    """Random clips with two objects each; for form=cached their pooled tracks."""
    g = torch.Generator().manual_seed(0)
    h, w = size
    truth = torch.zeros(OBJECTS, frames, h, w, dtype=torch.bool)
    truth[0, :, h // 8 : h // 2, w // 8 : w // 2] = truth[1, :, h // 2 : -h // 8, w // 2 : -w // 8] = True
    values: dict[str, Any] = {
        "tokens": torch.zeros(clips, TRACKS, frames, 4),
        "frame_mask": torch.ones(clips, frames, dtype=torch.bool),
        "track_mask": torch.ones(clips, TRACKS, dtype=torch.bool),
        "words": torch.randn(clips, WORDS, 768, generator=g),
        "word_mask": torch.ones(clips, WORDS, dtype=torch.bool),
        "sizes": (size,) * clips,
    }
    if form == "live":
        pixels = torch.randint(0, 256, (clips, frames, h, w, 3), generator=g, dtype=torch.uint8)
        return Batch(**values, pixels=tuple(pixels), truth=(truth,) * clips).to(device)
    from rvos_cache.masks import RleMasks
    from rvos_cache.overlap import count_overlap
    from rvos_cache.types import GroundTruth

    masks = RleMasks.from_dense(truth.numpy())
    overlap = count_overlap(
        masks.select([i % OBJECTS for i in range(TRACKS)]), GroundTruth(("0", "1"), masks, truth.any(0).flatten(1).any(1).numpy())
    )
    boxes = torch.rand(clips, frames, TRACKS, 2, generator=g) / 2
    features = {
        "clip_pool": tuple(torch.randn(clips, frames, TRACKS, 2880, generator=g).half()),
        "clip_frame": tuple(torch.randn(clips, frames, 2880, generator=g).half()),
        "clip_box": tuple(torch.cat([boxes, boxes + 0.3], -1)),
    }
    return Batch(**values, frames=features, overlap=(overlap,) * clips).to(device)


def measure(way: str, clips: int, frames: int, size: tuple[int, int], steps: int) -> dict[str, Any]:
    """Take the steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ssa = Ssa(SsaConfig(text="cached", **WAYS[way]))
    if ssa.draws:
        from transformers import ConvNextConfig, ConvNextModel

        tower = ConvNextModel(ConvNextConfig(hidden_sizes=list(ssa.config.stage_channels), depths=list(DEPTHS)))
        set_drop_path(tower, ssa.config.clip_drop_path)
        ssa.attach_frozen(IMAGE_PART, tower)
    ssa.to(device).train()
    optimizer = torch.optim.AdamW(ssa.parameters(), lr=5e-5, fused=True)
    inputs = batch(ssa.config.form, clips, frames, size, device)
    before, seconds, loss = peak(device), [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = ssa.loss(inputs)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(ssa.parameters(), 0.01)
        optimizer.step()
        loss = losses["loss"].item()
        seconds.append(round(time.perf_counter() - start, 2))
    where = {"way": way, "device": device.type, "clips": clips, "frames": frames, "size": size}
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
    options.add_argument("--short-side", type=int, default=448 if on_gpu else 128)
    options.add_argument("--frames", type=int, default=8 if on_gpu else 2)
    options.add_argument("--clips", type=int, default=1)
    options.add_argument("--steps", type=int, default=3 if on_gpu else 2)
    options.add_argument("--way", choices=WAYS)
    given = options.parse_args()
    if given.way is None:
        return max(subprocess.run([sys.executable, *sys.argv, "--way", way], check=False).returncode for way in WAYS)
    width = -(-given.short_side * 16 // (9 * 32)) * 32
    print(json.dumps(measure(given.way, given.clips, given.frames, (given.short_side, width), given.steps)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
