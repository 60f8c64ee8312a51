"""The base class of trackers, and the checks of a tracker class before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rvos_cache import settings
from rvos_cache.errors import InputError
from rvos_cache.plugins import (
    check_channels,
    check_overridden,
    check_settings_model,
    check_signature,
    check_signatures,
    reporting,
)
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.types import Expression, FeatureSpec, TrackSet, Video

ShareDone = Callable[[float], None]
"""Called with the share of a computation that is done, from 0 to 1."""


def no_progress(share: float) -> None:
    """Reports nothing."""


def part_of(progress: ShareDone, start: float, end: float) -> ShareDone:
    """What reports the shares of a part of a computation that takes its time from the share `start` to the share `end`."""
    return lambda share: progress(start + share * (end - start))


class Tracker:
    """Videos to tracks. A subclass sets `channels` and overrides `track`; everything else has a default.

    A tracker sees neither paths nor the store. Attributes may be set in the class, or in `__init__` where they depend on the
    settings or the weights.
    """

    Settings: type[settings.Settings] = settings.Settings
    """Its settings model; by default there are no settings."""
    reads_expressions: bool = False
    """Whether its tracks depend on the sentences."""
    wants_ground_truth: bool = False
    """Whether it prompts with annotated masks: its caches are for training only, and `track` takes a third argument."""
    channels: int
    """C of its tokens; 0: it makes features of the video and never a track (N = 0), so its caches fit beside those of any tracker."""
    feature_specs: tuple[FeatureSpec, ...] = ()
    """The features that it returns for every video, in `TrackSet.features`."""
    measurement_specs: tuple[FeatureSpec, ...] = ()
    """The measurements that `TrackSet.measure` returns where the split has its ground truth."""
    label_iou: float = 0.5
    """Mean IoU with an object above which one of its tracks is a positive by default, in (0, 1)."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def weight_hashes(self) -> dict[str, str]:
        """Name of each loaded checkpoint -> digest of its weights; by default there are none."""
        return {}

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes | None:
        """Bytes of a cache of `videos`, before any runs; None, the default, if the tracker cannot know them.

        `plan` and `extract` give each as a `VideoSize`, a pair of size and number of frames that knows its sentences too.
        """
        return None

    def planned_memory(self, size: tuple[int, int], frames: int) -> int | None:
        """About how many bytes of memory `track` takes for a video of `frames` frames of `size` (H, W); None: not known."""
        return None

    def progress(self, share: float) -> None:
        """Receives what `track` reports of itself: the share that is done, from 0 to 1, by estimated time.

        `track` may call it as often as it likes. By default nothing happens; `rvos-select ask` sets it to show the time left.
        """

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """All tracks of one video. A tracker with `wants_ground_truth` is called `track(video, expressions, ground_truth)`."""
        raise NotImplementedError


def check_tracker_class(cls: type[Tracker], title: str) -> None:
    """Check what can be checked without creating a tracker. Raises InputError, starting with `title`, for the first fault."""
    check_settings_model(cls, settings.Settings, title)
    check_overridden(cls, Tracker, ["track"], title)
    for name in ("reads_expressions", "wants_ground_truth"):
        if not isinstance(getattr(cls, name), bool):
            raise InputError(f"{title}: {name} is {getattr(cls, name)!r}, expected True or False, set in the class")
    check_signature(cls, "track", ["video", "expressions"] + ["ground_truth"] * cls.wants_ground_truth, title)
    check_signatures(cls, Tracker, ["weight_hashes", "planned_bytes", "planned_memory", "progress"], title)
    _check_values(cls, title, complete=cls.__init__ is Tracker.__init__)


def create_tracker(cls: type[Tracker], settings: Any, title: str, is_custom: bool) -> Tracker:
    """`cls(settings)`, checked. Raises InputError if it cannot be created, or what its `__init__` set breaks the contract.

    is_custom: it is a class of the user's own, so that any exception is an InputError.
    """
    with reporting(title, "cannot be created", is_custom):
        tracker = cls(settings)
    for name in ("reads_expressions", "wants_ground_truth"):
        if getattr(tracker, name) is not getattr(cls, name):
            raise InputError(f"{title}: {name} is set in __init__, expected in the class")
    _check_values(tracker, title, complete=True)
    return tracker


def _check_values(owner: Any, title: str, complete: bool) -> None:
    """Check the attributes of a tracker or its class. complete: an attribute that is missing or a property is a fault too."""
    check_channels(owner, title, complete, least=0)
    if not _later(owner.label_iou, complete):
        is_number = isinstance(owner.label_iou, int | float) and not isinstance(owner.label_iou, bool)
        if not is_number or not 0 < owner.label_iou < 1:
            raise InputError(f"{title}: label_iou is {owner.label_iou!r}, expected a number between 0 and 1")
    if not _later(owner.feature_specs, complete) and not _later(owner.measurement_specs, complete):
        _check_specs(owner, title)


def _later(value: object, complete: bool) -> bool:
    """Whether `value` is known only for an instance."""
    return not complete and isinstance(value, property)


def _check_specs(owner: Any, title: str) -> None:
    names: set[str] = set()
    for attribute in ("feature_specs", "measurement_specs"):
        specs = getattr(owner, attribute)
        if not isinstance(specs, tuple | list):
            raise InputError(f"{title}: {attribute} is a {type(specs).__name__}, expected a tuple of FeatureSpec")
        for spec in specs:
            if not isinstance(spec, FeatureSpec):
                raise InputError(f"{title}: {attribute} has {spec!r:.60}, expected FeatureSpec(name, dims, dtype)")
            if spec.name in names:
                raise InputError(f"{title}: {spec.name!r} is declared twice; give every feature and measurement its own name")
            if attribute == "feature_specs" and "A" in spec.dims and owner.wants_ground_truth is False:
                raise InputError(
                    f"{title}: feature {spec.name!r} has the dimension A (annotated objects), which a tracker does not see; "
                    "declare it in measurement_specs, or name the dimension differently"
                )
            names.add(spec.name)
