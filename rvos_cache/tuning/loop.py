"""The loop of a tuning run, whatever model it trains: steps with clips that are read ahead, saved states, resumption to the same
numbers. A tuning run trains an upstream live, on the frames of datasets, and its folder is described in `rvos_cache.tuning.state`."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rvos_cache.system.counts import planned_steps
from rvos_cache.system.interrupts import interrupt_between
from rvos_cache.system.progress import Progress
from rvos_cache.tuning import state

AHEAD = 2
"""Steps whose clips are read before they are needed, at least."""
REFUSALS = ("out of memory", "can't allocate memory", "not enough memory")
"""Parts of the text of a RuntimeError that says so: of CUDA's libraries, and of PyTorch's allocator of a CPU."""

Clip = TypeVar("Clip")


class LoopSettings(Protocol):
    """The settings that the loop reads."""

    @property
    def seed(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def clips(self) -> int: ...
    @property
    def readers(self) -> int: ...


class TuningRun(ABC, Generic[Clip]):
    """The training loop. All random numbers of a step follow from seed and step, so a resumed step is the same step.

    A subclass sets `trained`, name -> parameter, and `optimizer`, AdamW over them. items: what an epoch has a clip of each; title: of
    the progress bar.
    """

    trained: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer

    def __init__(self, settings: LoopSettings, items: int, out: Path, title: str) -> None:
        self.loop, self.items, self.out, self.title = settings, items, out, title
        self.steps_per_epoch = math.ceil(items / settings.clips)
        self.steps = planned_steps(items, settings.clips, settings.steps, settings.epochs)

    @abstractmethod
    def clip(self, number: int, generator: torch.Generator) -> Clip:
        """A clip of item `number`; several other threads call it at once."""

    @abstractmethod
    def step(self, step: int, clips: Sequence[Clip]) -> dict[str, float]:
        """One step of the optimiser; the numbers of its line in metrics.jsonl, "loss" among them."""

    @abstractmethod
    def saved_tensors(self) -> Mapping[str, Tensor]:
        """Name -> tensor of a saved state; they are written in place when the run resumes."""

    def before_training(self) -> None:
        """Called once, when the saved state is loaded."""

    def train(self) -> None:
        """Take the steps that are left."""
        done = state.saved_step(self.out)
        if done:
            state.load_tensors(self.out, self.saved_tensors())
            state.load_optimizer(self.out, self.trained, self.optimizer)
        state.cut_metrics(self.out, done)
        self.before_training()
        with Progress(self.title, self.steps, done, unit="steps", announce=True) as bar, interrupt_between() as was_interrupted:
            for step, clips in self._read_ahead(range(done, self.steps)):
                row = self.step(step, clips)
                done = step + 1
                state.add_metrics(self.out, {"step": done, **{name: round(value, 6) for name, value in row.items()}})
                if done % self.loop.save_every == 0 or done == self.steps or was_interrupted():
                    self.save(done)
                if was_interrupted():
                    raise KeyboardInterrupt
                epoch, epochs = step // self.steps_per_epoch + 1, math.ceil(self.steps / self.steps_per_epoch)
                bar.advance(title=f"{self.title}, epoch {epoch}/{epochs}, loss {row['loss']:.4f}")

    def save(self, step: int) -> None:
        """Write the state after `step` steps."""
        state.save_state(self.out, self.saved_tensors(), self.trained, self.optimizer, step)

    def clips(self, step: int) -> list[tuple[int, torch.Generator]]:
        """The clips of a step: number of the item, and what the clip's random numbers come from."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(self.items, generator=generator(self.loop.seed, "epoch", epoch))
        numbers = order[place * self.loop.clips : (place + 1) * self.loop.clips].tolist()
        return [(n, generator(self.loop.seed, "clip", epoch, n)) for n in numbers]

    def seed_noise(self, step: int) -> None:
        """Seed torch's own generator, which dropout and sampled points use, for a step."""
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator(self.loop.seed, "noise", step))))

    def _read_ahead(self, steps: range) -> Iterator[tuple[int, list[Clip]]]:
        """Steps with their clips, which other threads read: as many ahead as keep all of them busy."""
        readers = self.loop.readers
        ahead = max(AHEAD, math.ceil(2 * readers / self.loop.clips))
        with ThreadPoolExecutor(readers) as pool:
            waiting: deque[list[Future[Clip]]] = deque()
            try:
                for step in steps:
                    while len(waiting) <= ahead and step + len(waiting) < steps.stop:
                        waiting.append([pool.submit(self.clip, *clip) for clip in self.clips(step + len(waiting))])
                    yield step, [clip.result() for clip in waiting.popleft()]
            finally:
                for each in (clip for clips in waiting for clip in clips):
                    each.cancel()


def generator(*parts: Any) -> torch.Generator:
    """A generator whose numbers follow from `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is one of a step that needs more memory than there is."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in REFUSALS)
