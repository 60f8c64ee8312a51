"""Every rate of training and of SAM 2 on the GPU of this machine, one JSON line each, in under 4 minutes, without compiling.

    python -m tests.bench.gpu [--part training|extraction] [--tiny]

Random weights in the real shapes: SOLA's full module on videos like MeViS's, and SAM 2 Hiera-L at 1024 pixels on frames of 720x1280.
Peers are the released SOLA loop's step, re-made from its description, a plain session of transformers, and Meta's package where it is
installed. Without a GPU it says so and runs small shapes (--tiny), whose rates mean nothing. Ratios hold within one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))

import gpu_extraction
import gpu_training
import sam2_bench

from rvos_cache.extraction.plan import machine
from rvos_cache.plugins import describe_error
from rvos_cache.system.device import device
from rvos_cache.trackers.sam2.settings import Sam2Settings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend

GOALS: dict[str, str] = {
    "SOLA, batch=single, batch_size 1": "250 samples/s",
    "SOLA, batch=video": "2500 samples/s",
    "SAM 2, ours": "800 track-frames/s, 140 frames/s encoded, 20 GB",
    "MeViS train by sam2-grid": "3.5 hours",
}
"""Of issue 17, on one H100 or H200."""


def report(what: str, **values: Any) -> None:
    """One line."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps({"what": what, **rounded}) + "\n")
    sys.stdout.flush()


def measured(what: str, tiny: bool, measure: Callable[[], dict[str, Any]], **values: Any) -> dict[str, Any]:
    """The line of one measurement, with its goal in real shapes, or with the error that ended it: the others go on."""
    goal = {"goal": GOALS[what]} if what in GOALS and not tiny else {}
    try:
        rates = measure()
    except Exception as error:
        report(what, **values, failed=describe_error(error))
        return {}
    report(what, **values, **rates, **goal)
    return rates


def training(tiny: bool) -> None:
    """The released step and ours in each way of making batches."""
    shapes = gpu_training.TINY if tiny else gpu_training.FULL
    videos = gpu_training.samples(shapes)
    released = measured("released SOLA loop's step", tiny, lambda: gpu_training.released_step(shapes, videos))
    precision = "bf16" if device().type == "cuda" else "float32"
    runs: tuple[tuple[str, dict[str, Any]], ...] = (
        ("SOLA, batch=single, batch_size 1", {"batch": "single", "precision": precision}),
        ("SOLA, batch=single, batch_size 1, resident=false", {"batch": "single", "precision": precision, "resident": "false"}),
        (
            "SOLA, batch=single, batch_size 1, cuda_graphs=false",
            {"batch": "single", "precision": precision, "cuda_graphs": False},
        ),
        ("SOLA, batch=single, batch_size 16", {"batch": "single", "batch_size": 16, "precision": precision}),
        ("SOLA, batch=video", {"batch": "video", "precision": precision}),
        ("SOLA, batch=video, float32", {"batch": "video", "precision": "float32"}),
    )
    for what, values in runs:
        rates = measured(what, tiny, lambda values=values: gpu_training.measure_run(shapes, videos, **values))  # type: ignore[misc]
        if rates and released:
            report(f"{what}, times the released step", ratio=rates["samples_per_s"] / released["samples_per_s"])
    varied = gpu_training.samples(shapes, varied=True)
    for batch in ("single", "video"):
        values = {"batch": batch, "precision": precision}
        measured(
            f"SOLA, batch={batch}, videos of many sizes", tiny, partial(gpu_training.measure_epochs, shapes, varied, **values)
        )
    measured("DMVS", tiny, lambda: gpu_training.dmvs_step(1, 2, 1) if tiny else gpu_training.dmvs_step(8, 10, 10))
    measured("DMVS, predict", tiny, lambda: gpu_training.dmvs_predict(*((2, 2, 1) if tiny else (14, 79, 1))))


def extraction(tiny: bool) -> None:
    """SAM 2, what MeViS takes by the rates of a video like its own, a long video, and SAM 2's peers."""
    sizes = gpu_extraction.TINY if tiny else gpu_extraction.LARGE
    with tempfile.TemporaryDirectory() as name:
        folder = sam2_bench.SHAPES[sizes.model](Path(name))
        backend = TransformersBackend(Sam2Settings(checkpoint=str(folder)))
        gpu_extraction.measure_ours(backend, sizes, 2, 2, 2)

        def ours(frames: int, tracks: int, batch: int) -> None:
            size = {"frames": frames, "tracks": tracks, "batch": batch}
            measured("SAM 2, ours", tiny, partial(gpu_extraction.measure_ours, backend, sizes, **size), **size)

        for run in sizes.runs:
            ours(*run)
        measured("SAM 2, grid of a prompt frame, encoded again", tiny, lambda: gpu_extraction.measure_grid(backend, sizes))
        measured("MeViS train by sam2-grid", tiny, lambda: gpu_extraction.measure_tracker(backend, sizes))
        ours(*sizes.long)
        measured("SAM 2, limit of attention alone", tiny, lambda: gpu_extraction.attention_limit(sizes))
        peers = dict(zip(("frames", "tracks"), sizes.peers))
        measured("SAM 2, plain session of transformers", tiny, lambda: gpu_extraction.measure_plain(backend, sizes), **peers)
        measured("SAM 2, Meta's package", tiny, lambda: gpu_extraction.measure_meta(folder, sizes), **peers)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["training", "extraction"], help="Only these rates.")
    parser.add_argument("--tiny", action="store_true", help="Small shapes, as where there is no GPU.")
    options = parser.parse_args()
    tiny, start = options.tiny or device().type != "cuda", time.perf_counter()
    report("machine", machine=machine(), torch=torch.__version__, shapes="tiny" if tiny else "real")
    if device().type != "cuda":
        sys.stdout.write("no GPU on this machine: small shapes, whose rates mean nothing; host reads are those of a GPU\n")
    for name, run in (("training", training), ("extraction", extraction)):
        if options.part in (None, name):
            run(tiny)
    report("all", seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
