"""What this machine takes: seconds for a frame of each tracker and for each training, measured while rows run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.rows.needs import Places
from pipelines.rows.steps import Step
from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build
from rvos_cache.store import TrackCache
from rvos_cache.system import files
from rvos_cache.system.device import device
from rvos_cache.system.text_files import read_text


class Rates(Settings):
    """Measured on one device."""

    device: str
    """Name of the GPU, or "no GPU"."""
    trackers: dict[str, tuple[int, float]] = {}
    """Key of a tracker -> frames that it has seen, and the seconds that it took, with loading its models."""
    trainings: dict[str, float] = {}
    """A training, see `Step.training` -> seconds of the whole of it."""

    def seconds_per_frame(self, key: str) -> float | None:
        """Of the tracker `key`; None where it was not measured."""
        frames, seconds = self.trackers.get(key, (0, 0.0))
        return seconds / frames if frames else None


def device_name() -> str:
    """The GPU that rows run on, or that there is none."""
    import torch

    return torch.cuda.get_device_name(device()) if device().type == "cuda" else "no GPU"


def read_rates(places: Places) -> Rates:
    """What was measured on this device; nothing where another one was. Raises InputError for a file that is none."""
    path, empty = _path(places), Rates(device=device_name())
    if not path.exists():
        return empty
    try:
        rates = build(Rates, json.loads(read_text(path)), str(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it, it is measured again") from error
    return rates if rates.device == empty.device else empty


@contextmanager
def measured(step: Step, places: Places) -> Iterator[None]:
    """Measure what a step does, if it extracts tracks or trains a whole run, and add it to the rates."""
    is_new, before, start = not step.output.exists(), _frames(step), time.monotonic()
    yield
    seconds, rates = time.monotonic() - start, read_rates(places)
    if step.tracker is not None and (frames := _frames(step) - before):
        known, spent = rates.trackers.get(step.tracker.key, (0, 0.0))
        own = {**rates.trackers, step.tracker.key: (known + frames, spent + seconds)}
        rates = rates.model_copy(update={"trackers": own})
    elif step.makes == "run" and step.training and is_new:
        rates = rates.model_copy(update={"trainings": {**rates.trainings, step.training: seconds}})
    else:
        return
    files.write_json(_path(places), rates.model_dump())


def _path(places: Places) -> Path:
    return places.out / "rates.json"


def _frames(step: Step) -> int:
    """Frames of the videos in the tracks cache that a step writes."""
    if step.tracker is None or not step.output.exists():
        return 0
    cache = TrackCache(step.output)
    return sum(cache.info(video_id).frames for video_id in cache.video_ids())
