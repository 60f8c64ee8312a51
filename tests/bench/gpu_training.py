"""Rates of training steps: ours from the training loop, the released SOLA loop's step re-made from its description, and DMVS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import dmvs_memory
import numpy as np
import torch
from torch import nn

from rvos_cache.plugins import describe_error
from rvos_cache.system.device import device
from rvos_cache.trackers.vita.head import VitaHead
from rvos_cache.types import Expression, Words
from rvos_select.contracts.host_reads import HostReads
from rvos_select.data.features import MemoryArray
from rvos_select.data.micro_batches import by_step
from rvos_select.data.samples import VideoSample
from rvos_select.inference.infer import infer_video
from rvos_select.selectors.dmvs import Dmvs
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.vita import HEAD_NAME, VitaInput
from rvos_select.selectors.sola import Sola, SolaConfig
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import Run


@dataclass(frozen=True)
class Shapes:
    """Sizes of a training set, and how long each rate is measured."""

    videos: int
    expressions: int
    tracks: int
    frames: int
    words: int
    word_channels: int
    config: dict[str, Any]
    layers: int
    seconds: float


FULL = Shapes(40, 14, 32, 64, 14, 1024, {}, 24, 3.0)
"""SOLA's full module (32.98 M) on videos like MeViS's, words of RoBERTa-large."""
TINY = Shapes(4, 4, 4, 16, 6, 64, {"word_channels": 64, "width": 16, "layers": 1, "heads": 2}, 1, 0.5)


def wait() -> None:
    """Until the GPU has finished."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def samples(shapes: Shapes, varied: bool = False) -> list[VideoSample]:
    """Random tokens and words in float16, as caches hold them; a tenth of the tracks are targets.

    varied: the sizes of each video and sentence are from half to one and a half times those of `shapes`.
    """
    g, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def size(mean: int) -> int:
        return int(rng.integers(mean // 2, mean + mean // 2 + 1)) if varied else mean

    def words() -> Words:
        vectors = rng.standard_normal((size(shapes.words), shapes.word_channels)).astype(np.float16)
        return Words(vectors, np.zeros((len(vectors), 2), np.int32), ("",) * len(vectors))

    def video(name: str) -> VideoSample:
        n, t, e = size(shapes.tracks), size(shapes.frames), size(shapes.expressions)
        return VideoSample(
            name, torch.randn(n, t, 256, generator=g).half(), torch.ones(n, t),
            tuple(Expression(name, str(i), "a sentence", ()) for i in range(e)), tuple(words() for _ in range(e)),
            torch.ones(e, n, dtype=torch.bool), (torch.rand(e, n, generator=g) < 0.1).float(), set_name="bench/train",
        )  # fmt: skip

    return [video(f"v{v}") for v in range(shapes.videos)]


def make_run(shapes: Shapes, videos: list[VideoSample], **values: Any) -> Run:
    """A run of the training loop without caches and files."""
    torch.manual_seed(0)
    model = Sola(SolaConfig(**shapes.config)).to(device()).train()
    sources: Any = SimpleNamespace(train=videos, valid=[], valid_sets={}, weights={})
    return Run(TrainSettings(selector="sola", **values), sources, model, device(), None)  # type: ignore[arg-type]


def steps_of(run: Run) -> Iterator[tuple[str, Iterator[Any]]]:
    """Steps without an end."""
    epoch = 0
    while True:
        yield from by_step(run._parts(torch.Generator().manual_seed(epoch)))
        epoch += 1


def measure_run(shapes: Shapes, videos: list[VideoSample], **values: Any) -> dict[str, Any]:
    """Samples per second of the loop, milliseconds of a step, host reads of one, peak memory, and on a GPU what it does."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = make_run(shapes, videos, **values)
    following, count = steps_of(run), 0

    def step() -> int:
        name, parts = next(following)
        ready = list(parts)
        run._step(iter(ready), name, 0)
        return ready[0].step_size

    for _ in range(3):
        step()
    run.losses.read()
    wait()
    start, taken = time.perf_counter(), 0
    while time.perf_counter() - start < shapes.seconds:
        taken, count = taken + step(), count + 1
    run.losses.read()
    wait()
    elapsed = time.perf_counter() - start
    name, parts = next(following)
    ready = list(parts)
    facts = [part.batch.mask_facts for part in ready]  # read on the host, before the step
    with HostReads() as reads:
        run.losses.seconds = float("inf")
        run._step(iter(ready), name, 0)
    assert facts
    out = {"samples_per_s": taken / elapsed, "ms_per_step": 1e3 * elapsed / count, "host_reads_per_step": reads.total}
    if device().type == "cuda":
        out["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        try:
            out |= profile(step)
        except Exception as error:  # the rates count without it
            out["profile_failed"] = describe_error(error)
    return out


def measure_epochs(shapes: Shapes, videos: list[VideoSample], **values: Any) -> dict[str, Any]:
    """Samples per second of the first epoch, in which steps are recorded, and of the third; and the shapes that were recorded."""
    run = make_run(shapes, videos, **values)
    rates = []
    for epoch in range(3):
        wait()
        start, taken = time.perf_counter(), 0
        for name, parts in by_step(run._parts(torch.Generator().manual_seed(epoch))):
            part = next(parts)
            run._step(iter([part]), name, 0)
            taken += part.step_size
        run.losses.read()
        wait()
        rates.append(taken / (time.perf_counter() - start))
    graphs = 0 if run.recorded is None else len(run.recorded.batches)
    return {"first_epoch_samples_per_s": rates[0], "samples_per_s": rates[-1], "graphs": graphs}


def profile(step: Callable[[], object], count: int = 4) -> dict[str, Any]:
    """Of `count` steps: share of the time that the GPU computes or copies, launches, and copies of each direction, per step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    wait()
    start = time.perf_counter()
    with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(count):
            step()
        wait()
        elapsed = time.perf_counter() - start
    busy, calls = 0.0, dict.fromkeys(("launches", "to_host", "to_device"), 0)
    for event in recorded.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        busy += event.self_device_time_total if on_gpu else 0.0
        calls["launches"] += event.count if "LaunchKernel" in event.key else 0
        calls["to_host"] += event.count if on_gpu and "DtoH" in event.key else 0
        calls["to_device"] += event.count if on_gpu and "HtoD" in event.key else 0
    return {"gpu_busy": busy / 1e6 / elapsed, **{f"{name}_per_step": total / count for name, total in calls.items()}}


def released_step(shapes: Shapes, videos: list[VideoSample]) -> dict[str, Any]:
    """The step of SOLA's released loop: RoBERTa in each step, one expression, every gradient's norm read, AdamW; tokens in memory."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    width, where = shapes.word_channels, device()
    sizes = {"hidden_size": width, "num_hidden_layers": shapes.layers, "num_attention_heads": max(1, width // 64)}
    with where:
        encoder = RobertaModel(RobertaConfig(**sizes, intermediate_size=4 * width), add_pooling_layer=False).eval()
    run = make_run(shapes, videos, batch="single", resident="false", precision="float32")
    model, optimizer = run.model, torch.optim.AdamW(run.model.parameters(), lr=5e-6)
    batches = [part.batch.to(where) for _, part in zip(range(8), run._parts(torch.Generator().manual_seed(0)))]
    ids = torch.randint(5, 1000, (1, shapes.words))

    def step(i: int) -> None:
        with torch.no_grad():
            encoder(ids.to(where))
        optimizer.zero_grad()
        loss = model.loss(batches[i % len(batches)])["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        _ = sum(p.grad.norm(2).item() ** 2 for p in model.parameters() if p.grad is not None)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    step(0)
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < shapes.seconds:
        step(count)
        count += 1
    elapsed = time.perf_counter() - start
    return {"samples_per_s": count / elapsed, "ms_per_step": 1e3 * elapsed / count}


def make_dmvs() -> Dmvs:
    """DMVS at the paper's sizes, with random weights."""
    torch.manual_seed(0)
    model, head = Dmvs(DmvsConfig()), VitaHead(dmvs_memory.SIZES)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.attach_frozen(HEAD_NAME, head)
    model.input = VitaInput(360, 640, False)
    return model.to(device())


def dmvs_step(expressions: int, frames: int, steps: int) -> dict[str, Any]:
    """DMVS's training step at the paper's sizes."""
    model = make_dmvs().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    batch = dmvs_memory.clips(expressions, frames)
    _ = batch.mask_facts

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(moved)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    moved = batch.to(device())
    step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    elapsed = time.perf_counter() - start
    with HostReads() as reads:
        step()
    return {
        "samples_per_s": expressions * steps / elapsed,
        "ms_per_step": 1e3 * elapsed / steps,
        "host_reads_per_step": reads.total,
    }


def dmvs_predict(expressions: int, frames: int, drawn: int) -> dict[str, Any]:
    """DMVS's prediction of a video in memory: scores of its expressions, and the masks of `drawn` queries of each as runs.

    The mask features are smooth, so that masks are blobs as those of trained weights.
    """
    model, where = make_dmvs().eval(), device()
    g, text = torch.Generator().manual_seed(0), "the red square that is moving left"
    small = torch.randn(256, frames, 4, 6, generator=g).transpose(0, 1)
    f_mask = nn.functional.interpolate(small, dmvs_memory.CELLS, mode="bicubic").permute(0, 2, 3, 1).half().contiguous()
    ends = np.cumsum([len(word) + 1 for word in text.split()])
    spans = np.stack([[0, *ends[:-1]], ends - 1], 1).astype(np.int32)
    vectors = np.random.default_rng(0).standard_normal((expressions, len(spans), 768)).astype(np.float16)
    sample = VideoSample(
        "v", torch.zeros(20, frames, 256), torch.ones(20, frames),
        tuple(Expression("v", str(i), text, ()) for i in range(expressions)),
        tuple(Words(own, spans, tuple(text.split())) for own in vectors), torch.ones(expressions, 20, dtype=torch.bool), None,
        size=dmvs_memory.SIZE, set_name="bench/valid",
        frames={
            "q_f": InMemory(torch.randn(frames, 100, 256, generator=g).half(), ("T", 100, 256)),
            "f_mask": InMemory(f_mask, ("T", *f_mask.shape[1:])),
        },  # type: ignore[dict-item]
    )  # fmt: skip

    def run() -> None:
        for part in infer_video(model, sample, where):
            queries = np.zeros(part.scores.shape, bool)
            queries[:, :drawn] = True
            part.masks(queries)

    with torch.inference_mode():
        run()
        wait()
        start = time.perf_counter()
        run()
    elapsed = time.perf_counter() - start
    return {"expressions_per_s": expressions / elapsed, "seconds": elapsed, "frames": frames, "masks": expressions * drawn}


class InMemory(MemoryArray):
    """A feature of all T frames, (T, …), in memory, where a cache has it on disk."""

    def __len__(self) -> int:
        return len(self.array)
