"""Memory and time of the tracker `gdino-queries`, with random weights: GroundingDINO of the released size (Swin-T), ReferDINO's head.

Run: OMP_NUM_THREADS=1 python tests/bench/referdino_extract.py [--height 360] [--width 640] [--frames 79] [--texts 14]
By default on a GPU a mean video of MeViS, on a CPU a small model and video. A JSON line for each value of `masks` that needs no other
model, in a process of its own. frame, text: seconds of a frame, and of one more text in a frame; bytes: the largest resident size of
the process, or on a GPU of its tensors; before: that of the weights; planned: what `rvos-cache plan` says that a video adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from referdino_step import SMALL, peak
from transformers import GroundingDinoConfig, SwinConfig

from rvos_cache.settings import build
from rvos_cache.trackers.referdino.convert import write_upstream
from rvos_cache.trackers.referdino.head import ReferDinoHead
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.stages import FourStageGroundingDino
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.types import Expression, Video

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))
from tiny_grounding_dino import tiny_bert_tokenizer

MASKS = ("head", "box")


def write_checkpoint(folder: Path, small: bool) -> None:
    """A folder `upstream` of random weights."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(backbone_config=SwinConfig(out_indices=[2, 3, 4]), **(SMALL if small else {}))
    model = FourStageGroundingDino(config)
    write_upstream(folder, model, tiny_bert_tokenizer(), ReferDinoHead.from_grounding(model), {})


def measure(masks: str, folder: Path, size: tuple[int, int], frames: int, texts: int) -> dict[str, Any]:
    """Track a video of noise with one text, then with all."""
    settings = build(GdinoQueriesSettings, {"checkpoint": str(folder), "masks": masks}, "gdino-queries")
    tracker = GdinoQueries(settings)
    device = tracker.upstream.device
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    video = Video("noise", tuple(f"{t:05d}" for t in range(frames)), size, lambda t: np.roll(pixels, 4 * t, 1))
    sentences = [Expression("noise", str(i), f"the red square that is moving left {i}", ()) for i in range(texts)]
    before, seconds = peak(device), []
    # The first pass is slower.
    tracker.track(Video("noise", ("00000",), size, video.source), sentences[:1])
    for number in (1, texts):
        start = time.perf_counter()
        tracker.track(video, sentences[:number])
        seconds.append(time.perf_counter() - start)
    text = (seconds[1] - seconds[0]) / frames / max(1, texts - 1)
    return {
        "masks": masks, "device": device.type, "size": size, "frames": frames, "texts": texts, "queries": tracker.upstream.queries,
        "before": before, "bytes": peak(device), "planned": tracker.planned_memory(size, frames),
        "frame": round(seconds[0] / frames - text, 4), "text": round(text, 4),
    }  # fmt: skip


def main() -> int:
    """Each kind of masks in a process of its own, or with --masks that one in this."""
    on_gpu = torch.cuda.is_available()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--height", type=int, default=360 if on_gpu else 180)
    options.add_argument("--width", type=int, default=640 if on_gpu else 320)
    options.add_argument("--frames", type=int, default=79 if on_gpu else 4)
    options.add_argument("--texts", type=int, default=14 if on_gpu else 2)
    options.add_argument("--small", action=argparse.BooleanOptionalAction, default=not on_gpu, help="2 layers and 100 queries.")
    options.add_argument("--masks", choices=MASKS)
    options.add_argument("--checkpoint", type=Path, help="With --masks.")
    given = options.parse_args()
    if given.masks is not None and given.checkpoint is not None:
        print(
            json.dumps(measure(given.masks, given.checkpoint, (given.height, given.width), given.frames, given.texts)), flush=True
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), given.small)
        words = [sys.executable, *sys.argv, "--checkpoint", folder]
        return max(subprocess.run([*words, "--masks", masks], check=False).returncode for masks in MASKS)


if __name__ == "__main__":
    sys.exit(main())
