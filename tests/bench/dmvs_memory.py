"""Memory and time of DMVS's training steps at the paper's sizes: mask features of 96 × 160 cells in float16, 20 motion queries.

Run: OMP_NUM_THREADS=1 python tests/bench/dmvs_memory.py [--expressions 8] [--frames 10] [--steps 2] [--bound 3e9]
Writes one JSON line; bytes are the largest resident size of the process, batch and optimiser included, or on a GPU the largest
size of its tensors. Ends with status 1 above the bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch

from rvos_cache.trackers.vita.head import HeadSizes, VitaHead
from rvos_select.data.batch import Batch
from rvos_select.selectors.dmvs import Dmvs
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.vita import HEAD_NAME, VitaInput

SIZES = HeadSizes(
    channels=256, map_channels=256, mask_channels=256, frame_queries=100, video_queries=100, classes=25, hidden=2048,
    encoder_layers=6, decoder_layers=3,
)  # fmt: skip
"""VITA with a ResNet backbone on OVIS."""
SIZE, CELLS, WORDS, OBJECTS = (360, 640), (96, 160), 20, 2


def clips(expressions: int, frames: int) -> Batch:
    """Random numbers in the shapes of clips of 16:9 videos, two objects each."""
    g = torch.Generator().manual_seed(0)
    spans = torch.stack([torch.arange(WORDS), torch.arange(WORDS) + 1], 1).expand(expressions, -1, -1)
    kinds = torch.randint(0, 3, (expressions, WORDS), generator=g)
    truth = torch.zeros(OBJECTS, frames, *SIZE, dtype=torch.bool)
    truth[0, :, 40:160, 60:300] = truth[1, :, 200:330, 350:600] = True
    return Batch(
        tokens=torch.zeros(expressions, 20, frames, 256),
        frame_mask=torch.ones(expressions, frames, dtype=torch.bool),
        track_mask=torch.ones(expressions, 20, dtype=torch.bool),
        words=torch.randn(expressions, WORDS, 768, generator=g),
        word_mask=torch.ones(expressions, WORDS, dtype=torch.bool),
        spans=spans,
        static_words=kinds == 0,
        motion_words=kinds == 1,
        frames={
            "q_f": tuple(torch.randn(frames, 100, 256, generator=g).half() for _ in range(expressions)),
            "f_mask": tuple(_features(frames, g) for _ in range(expressions)),
        },
        truth=tuple(truth.clone() for _ in range(expressions)),
        sizes=(SIZE,) * expressions,
    )


def _features(frames: int, generator: torch.Generator) -> torch.Tensor:
    # Frame by frame, so that making the batch is not what takes most memory.
    out = torch.empty(frames, *CELLS, 256, dtype=torch.float16)
    for frame in out:
        frame.copy_(0.1 * torch.randn(*CELLS, 256, generator=generator))
    return out


def peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Take the steps and print the line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--expressions", type=int, default=8)
    options.add_argument("--frames", type=int, default=10)
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--bound", type=float, help="Bytes.  [default: 3e9 on a CPU, 6e9 on a GPU]")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Dmvs(DmvsConfig())
    head = VitaHead(SIZES)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.attach_frozen(HEAD_NAME, head)
    model.input = VitaInput(360, 640, False)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    batch, before, seconds = clips(given.expressions, given.frames).to(device), peak(device), []
    for _ in range(given.steps):
        start = time.perf_counter()
        losses = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        loss = losses["loss"].item()
        seconds.append(round(time.perf_counter() - start, 2))
    bound = given.bound or (6e9 if device.type == "cuda" else 3e9)
    line = {"device": device.type, "expressions": given.expressions, "frames": given.frames, "before": before}
    print(json.dumps({**line, "bytes": peak(device), "bound": int(bound), "seconds": seconds, "loss": round(loss, 3)}))
    return int(peak(device) > bound)


if __name__ == "__main__":
    sys.exit(main())
