"""What SAM 2's encoding and following spend the GPU's time on, by kernel: `python tests/bench/sam2_profile.py`, about 40 s on an H100.

Hiera-L at 1024 pixels with random weights on frames of 720x1280. Prints for each part the seconds of the run without the profiler, the
sum of the kernels' times, and the kernels that take longest: share, milliseconds per frame, calls per frame, name.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))

import sam2_bench
from gpu_extraction import LARGE, TINY, prompts_of, seconds

from rvos_cache.system.device import device
from rvos_cache.trackers.sam2 import fused, runs
from rvos_cache.trackers.sam2.settings import Sam2Settings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend


def kernels(run: Callable[[], object]) -> tuple[dict[str, float], Counter[str]]:
    """Milliseconds and calls of each kernel and copy while `run` runs; on a CPU, of each operator."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device().type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]) as trace:
        seconds(run)
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in trace.events():
        if (event.device_type == DeviceType.CUDA) == on_gpu:
            times[event.name] += (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1e3
            calls[event.name] += 1
    return times, calls


def report(what: str, run: Callable[[], object], frames: int, top: int) -> None:
    """The seconds of `run` and its longest kernels."""
    wall = seconds(run)
    times, calls = kernels(run)
    total = sum(times.values())
    spent_all, called = total / frames, sum(calls.values()) / frames
    print(f"== {what}: {wall:.3f} s, {1e3 * wall / frames:.2f} ms a frame; kernels {spent_all:.2f} ms, {called:.0f} calls")
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:top]:
        print(f"{100 * spent / total:5.1f}% {spent / frames:8.3f} ms {calls[name] / frames:7.1f}x  {name[:110]}")
    sys.stdout.flush()


def main() -> None:
    """Print both tables, and how long the first video of a process takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--tracks", type=int, default=16)
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--encoder-batch", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--plain", action="store_true", help="without Triton kernels")
    options = parser.parse_args()
    if options.plain:
        fused.has_triton = runs.has_triton = lambda: False  # type: ignore[assignment]
    sizes = TINY if options.tiny or device().type != "cuda" else LARGE
    frames, tracks = options.frames, options.tracks
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(sam2_bench.SHAPES[sizes.model](Path(folder)))
        backend = TransformersBackend(Sam2Settings(checkpoint=checkpoint, encoder_batch=options.encoder_batch))
    video, prompts = sam2_bench.moving(frames, sizes.size), prompts_of(sizes, frames, tracks)
    with backend.open(video) as session, sam2_bench.outlined():
        for name in ("first", "second"):
            start = time.perf_counter()
            session._encoded = False
            taken = [seconds(lambda: session.features), seconds(lambda: session.propagate(frames // 2, prompts))]
            print(f"{name} run: {time.perf_counter() - start:.2f} s, encode {taken[0]:.2f}, follow {taken[1]:.2f}")

        def encode() -> None:
            session._encoded = False
            _ = session.features

        report("encode", encode, frames, options.top)
        report("follow", lambda: session.propagate(frames // 2, prompts), frames, options.top)
    if device().type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, reserved {torch.cuda.max_memory_reserved() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
