"""SAM 2's extraction against a plain run of transformers, in one process, on the same tiny checkpoint and the same prompts.

    OMP_NUM_THREADS=1 python tests/bench/sam2_bench.py [--repeats 3]
    python tests/bench/sam2_bench.py --shapes large [--frames 100] [--tracks 32] [--size 720x1280] [--points 32]
        [--gpu-memory 8GB] [--compile]

The plain run opens a session for each batch of prompts: it encodes the frames again and tracks objects one by one. Time is
processor time of one thread, medians. encoded_per_frame: frames encoded per frame of the video. Then the growth of time with
frames, tracks and resolution: seconds fitted as fixed + frames x (encode + tracks x propagate).

With --shapes it measures this machine instead: wall-clock rates and peak memory of one video after a short one. large is
Hiera-L at 1024 pixels, the shapes of facebook/sam2-hiera-large with random weights, for a CUDA machine; tiny is the tests' model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))

from plain_sam2 import plain_tracks
from tiny_sam2 import tiny_sam2

from rvos_cache.extraction.plan import machine
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.trackers.sam2.backend import make_prompts
from rvos_cache.trackers.sam2.settings import GridSettings, Sam2Settings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

BATCH = 4


def scene(frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(T, H, W, 3): a square that crosses a background of noise."""
    background = np.random.default_rng(0).integers(60, 90, (1, *size, 3), np.uint8)
    pictures = np.repeat(background, frames, 0)
    side = size[0] // 3
    for t in range(frames):
        left = (size[1] - side) * t // max(frames - 1, 1)
        pictures[t, side : 2 * side, left : left + side] = (220, 40, 40)
    return pictures


def prompt_masks(count: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N, H, W): boxes along the diagonal."""
    masks = np.zeros((count, *size), bool)
    for i in range(count):
        y, x = i * size[0] // (2 * count), i * size[1] // (2 * count)
        masks[i, y : y + size[0] // 3, x : x + size[1] // 3] = True
    return masks


class MaskRuns:
    """Both runs on `tracks` prompts of the middle frame of a video."""

    def __init__(self, backend: TransformersBackend, frames: int, tracks: int, size: tuple[int, int]) -> None:
        self.backend, self.pictures, self.t = backend, scene(frames, size), frames // 2
        self.masks = prompt_masks(tracks, size)
        self.video = Video("v", tuple(map(str, range(frames))), size, self.pictures.__getitem__)
        self.encoded = 0
        backend.network.model.vision_encoder.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.encoded += len(inputs[0])

    def ours(self) -> NDArray[np.float32]:
        prompts = make_prompts(RleMasks.from_dense(self.masks[:, None]), self.t)
        with self.backend.open(self.video) as session:
            parts = [session.propagate(self.t, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
        return np.concatenate([part.tokens for part in parts])

    def plain(self) -> NDArray[np.float32]:
        model, frames = self.backend.network.model, list(self.pictures)
        parts = [plain_tracks(model, frames, self.t, self.masks[i : i + BATCH]) for i in range(0, len(self.masks), BATCH)]
        return np.concatenate([tokens for tokens, _, _ in parts])

    def calls(self, run: Callable[[], NDArray[np.float32]]) -> float:
        """Frames encoded by `run` per frame of the video."""
        self.encoded = 0
        run()
        return self.encoded / len(self.pictures)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median processor time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def report(**values: Any) -> None:
    rounded = {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
    sys.stdout.flush()


def compare(backend: TransformersBackend, repeats: int) -> None:
    """Both runs side by side: each repeat runs one and then the other, so that a busy machine slows both."""
    frames, tracks, size = 24, 16, (120, 160)
    runs = MaskRuns(backend, frames, tracks, size)
    prompted = [runs.ours()[:, runs.t], runs.plain()[:, runs.t]]
    pairs = [(seconds(runs.ours, 1), seconds(runs.plain, 1)) for _ in range(repeats)]
    ours, plain = (statistics.median(times) for times in zip(*pairs))
    report(
        frames=frames, tracks=tracks, batches=tracks // BATCH, ours_s=ours, plain_s=plain, ratio=plain / ours,
        ours_encoded_per_frame=runs.calls(runs.ours), plain_encoded_per_frame=runs.calls(runs.plain),
        difference_in_the_prompted_frame=float(np.abs(prompted[0] - prompted[1]).max()),
    )  # fmt: skip


def growth(backend: TransformersBackend, repeats: int) -> None:
    """Time against frames and tracks, by least squares, and against the pixels of a frame."""
    rows, times = [], []
    for frames in (8, 16, 32):
        for tracks in (4, 8, 16):
            runs = MaskRuns(backend, frames, tracks, (120, 160))
            rows.append([1, frames, frames * tracks])
            times.append(seconds(runs.ours, repeats))
    # Fit relative errors: one second of ten counts as a tenth of one.
    relative = np.array(rows) / np.array(times)[:, None]
    fit, *_ = np.linalg.lstsq(relative, np.ones(len(rows)), rcond=None)
    error = np.abs(relative @ fit - 1).max()
    report(fixed_s=fit[0], encode_s_per_frame=fit[1], propagate_s_per_frame_and_track=fit[2], largest_error=float(error))
    for size in ((120, 160), (240, 320), (480, 640), (720, 1280)):
        report(size=list(size), s_per_frame=seconds(MaskRuns(backend, 8, 4, size).ours, repeats) / 8)


def moving(frames: int, size: tuple[int, int]) -> Video:
    """The same scene, rendered frame by frame: a long video must not fill the memory that is measured."""
    background, side = scene(1, size)[0], size[0] // 3

    def render(t: int) -> NDArray[np.uint8]:
        frame, left = background.copy(), (size[1] - side) * t // max(frames - 1, 1)
        frame[side : 2 * side, left : left + side] = (220, 40, 40)
        return frame

    return Video("v", tuple(map(str, range(frames))), size, render)


def large(folder: Path) -> Path:
    """A Sam2VideoModel of Hiera-L's shapes (224.4 M parameters, 1024 pixels), with random weights, in `folder`."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    hiera = Sam2HieraDetConfig(
        hidden_size=144, num_attention_heads=2, blocks_per_stage=[2, 6, 36, 4], embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16], window_size_per_stage=[8, 4, 16, 8], global_attention_blocks=[23, 33, 43],
        window_positional_embedding_background_size=[7, 7],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=[1152, 576, 288, 144])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam2VideoModel(Sam2VideoConfig(vision_config=vision))
    with torch.no_grad():
        # Every object is visible: masks of hidden ones are empty, and cost nothing.
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    model.save_pretrained(str(folder))
    return folder


@contextmanager
def outlined() -> Iterator[None]:
    """Replaces the logits of tracked masks by those of wavy discs before they are enlarged, cut and encoded.

    Masks of random weights are noise of 200,000 runs at 720x1280, which no trained model gives; the discs have about 1,000.
    """
    from rvos_cache.trackers.sam2 import propagate

    resize, discs = propagate.resize_logits, None

    def replaced(low: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        nonlocal discs
        if discs is None or discs.shape != low.shape:
            y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=low.device) for n in low.shape[1:]), indexing="ij")
            centre = torch.linspace(-0.6, 0.6, len(low), device=low.device).view(-1, 1, 1)
            angle = torch.atan2(y, x - centre)
            discs = 0.3 + 0.05 * torch.cos(12 * angle) - torch.hypot(y, x - centre)
        return resize(discs + 0 * low, size)

    propagate.resize_logits = replaced
    try:
        yield
    finally:
        propagate.resize_logits = resize


@contextmanager
def outlined_grid() -> Iterator[None]:
    """Replaces the masks of grid points by discs of three sizes around 49 centres; half of them pass the threshold of predicted IoU."""
    from rvos_cache.trackers.sam2 import generate

    decode = generate._decode_prompts

    def replaced(network: Any, features: Any, multimask: bool, points: Any = None, boxes: Any = None) -> tuple[Any, Any]:
        low, iou = decode(network, features, multimask, points, boxes)
        if points is None:
            return low, iou
        # Seven objects in a row and a column, which many points give.
        centres = (torch.from_numpy(points).to(low.device) * 6 / network.side).round() / 3 - 1
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=low.device) for n in low.shape[2:]), indexing="ij")
        away = torch.hypot(x - centres[:, :1, None], y - centres[:, 1:, None])[:, None]
        radii = torch.tensor([0.15, 0.3, 0.6], device=low.device)
        scores = (
            0.6
            + 0.4
            * (torch.arange(len(low), device=low.device)[:, None] * 12.9898 + radii * 78.233).sin().mul(43758.5453).frac().abs()
        )
        return 1000 * (radii[:, None, None] - away) + 0 * low, scores + 0 * iou.float()

    generate._decode_prompts = replaced
    try:
        yield
    finally:
        generate._decode_prompts = decode


SHAPES = {"large": large, "tiny": tiny_sam2}


def wall(run: Callable[[], object]) -> float:
    """Seconds, until the GPU has finished."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rates(
    backend: TransformersBackend, frames: int, tracks: int, size: tuple[int, int], grid: GridSettings
) -> tuple[float, float, float, float]:
    """Seconds of encoding a video, of the grid of one prompt frame with an encoding of its own and with the video's, and of
    propagating `tracks` prompts through the whole video."""
    video, t = moving(frames, size), frames // 2
    prompts = make_prompts(RleMasks.from_dense(prompt_masks(tracks, size)[:, None]), t)
    shared = grid.model_copy(update={"prompt_features": "video"})
    with backend.open(video) as session:
        encode_s = wall(lambda: session.features)
        own_s = wall(lambda: session.grid_masks(t, grid))
        shared_s = wall(lambda: session.grid_masks(t, shared))
        propagate_s = wall(lambda: [session.propagate(t, prompts[i : i + BATCH]) for i in range(0, tracks, BATCH)])
    return encode_s, own_s, shared_s, propagate_s


def measure(backend: TransformersBackend, frames: int, tracks: int, size: tuple[int, int], grid: GridSettings) -> None:
    """Rates of encoding, prompting and propagating, each of the whole video, and the peak memory."""
    rates(backend, 2, min(tracks, BATCH), size, grid)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    encode_s, own_s, shared_s, propagate_s = rates(backend, frames, tracks, size, grid)
    gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    total = encode_s + propagate_s
    report(
        machine=machine(), parameters_million=sum(p.numel() for p in backend.network.model.parameters()) / 1e6,
        dtype=str(backend.dtype).removeprefix("torch."), pixels=backend.network.side, frames=frames, tracks=tracks,
        size=list(size), encoded_frames_per_s=frames / encode_s, grid_s_per_prompt_frame=own_s,
        grid_s_with_features_of_the_video=shared_s, propagated_track_frames_per_s=frames * tracks / propagate_s,
        frames_per_s=frames / total, tracks_per_s=tracks / total, peak_gpu_gb=gpu,
        peak_host_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )  # fmt: skip


def pixels(text: str) -> tuple[int, int]:
    """ "720x1280" as (height, width)."""
    height, width = map(int, text.split("x"))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", choices=SHAPES)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--tracks", type=int, default=32)
    parser.add_argument("--size", type=pixels, default=(720, 1280))
    parser.add_argument("--points", type=int, default=32, help="per side of the grid")
    parser.add_argument("--gpu-memory", default="8GB")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.shapes:
            values = {"gpu_memory": options.gpu_memory, "compile": options.compile}
            settings = build(Sam2Settings, {"checkpoint": str(SHAPES[options.shapes](Path(folder))), **values}, "sam2_bench")
            grid = GridSettings(points_per_side=options.points)
            measure(TransformersBackend(settings), options.frames, options.tracks, options.size, grid)
            return
        torch.set_num_threads(1)
        backend = TransformersBackend(Sam2Settings(checkpoint=str(tiny_sam2(Path(folder)))))
        compare(backend, options.repeats)
        growth(backend, options.repeats)


if __name__ == "__main__":
    main()
