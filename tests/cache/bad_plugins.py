"""Trackers, encoders and datasets that break their contract, one fault each; named to the program as bad_plugins:Class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rvos_cache import Dataset, FeatureSpec, TextEncoder, Tracker, TrackSet, Video


def tracks(video: Video, **parts: Any) -> TrackSet:
    masks = np.zeros((2, len(video), *video.size), bool)
    masks[:, :, :1, :1] = True
    return TrackSet.from_masks(np.ones((2, len(video), 3)), masks, **parts)


class Sound(Tracker):
    channels = 3

    def track(self, video, expressions):
        return tracks(video)


class NotATracker:
    channels = 3


class NoTrack(Tracker):
    channels = 3


class NoChannels(Tracker):
    def track(self, video, expressions):
        return tracks(video)


class ChannelsAreText(Sound):
    channels = "3"


class OneArgument(Tracker):
    channels = 3

    def track(self, video):
        return tracks(video)


class ThreeArguments(Tracker):
    channels = 3

    def track(self, video, expressions, ground_truth):
        return tracks(video)


class TruthWithTwoArguments(Sound):
    wants_ground_truth = True


class SettingsAreADict(Sound):
    Settings = dict


class SpecsAreNames(Sound):
    feature_specs = ("maps",)


class SpecTwice(Sound):
    feature_specs = (FeatureSpec("maps", ("T", 3)),)
    measurement_specs = (FeatureSpec("maps", ("T", 3)),)


class SpecOfObjects(Sound):
    feature_specs = (FeatureSpec("maps", ("N", "A")),)


class IouTooLarge(Sound):
    label_iou = 1.5


class InitFails(Sound):
    def __init__(self, settings):
        raise RuntimeError("no weights")


class InitSetsNoChannels(NoChannels):
    def __init__(self, settings):
        pass


class HashesAreNumbers(Sound):
    def weight_hashes(self):
        return {"weights": 3}


class Features(Sound):
    """Declares `a` and `b`, which share a letter; a subclass gives the arrays."""

    feature_specs = (FeatureSpec("a", ("T", "h")), FeatureSpec("b", ("h", 2), "float32", by_frame=True))
    given: dict[str, Any] = {}

    def track(self, video, expressions):
        t = len(video)
        return tracks(video, features={"a": np.zeros((t, 4), np.float16), "b": np.zeros((4, 2), np.float32), **self.given})


class OtherDtype(Features):
    given = {"a": np.zeros((5, 4))}


class Missing(Features):
    def track(self, video, expressions):
        return tracks(video, features={"a": np.zeros((len(video), 4), np.float16)})


class Undeclared(Features):
    given = {"extra": np.zeros(3)}


class OtherRank(Features):
    given = {"a": np.zeros(5, np.float16)}


class OtherNumber(Features):
    given = {"b": np.zeros((4, 3), np.float32)}


class OtherFrames(Features):
    given = {"a": np.zeros((99, 4), np.float16)}


class OtherLetter(Features):
    given = {"b": np.zeros((5, 2), np.float32)}


class AList(Features):
    given = {"a": [[0.0] * 4] * 5}


class Streamed(Features):
    """`b` comes frame by frame."""

    frames: tuple[Any, ...] = ()

    def track(self, video, expressions):
        def frames() -> Iterator[np.ndarray]:
            yield from self.frames

        return tracks(video, features={"a": np.zeros((len(video), 4), np.float16), "b": frames()})


class StreamedDtype(Streamed):
    frames = (np.zeros(2, np.float32), np.zeros(2))


class StreamedShape(Streamed):
    frames = (np.zeros(2, np.float32), np.zeros(3, np.float32))


class StreamedTooShort(Streamed):
    frames = (np.zeros(2, np.float32),) * 3


class StreamedNothing(Streamed):
    pass


class OtherChannels(Sound):
    channels = 4


class OtherTokens(Sound):
    def track(self, video, expressions):
        track_set = tracks(video)
        object.__setattr__(track_set, "tokens", track_set.tokens.astype(np.float32))
        return track_set


class PresenceTooLarge(Sound):
    def track(self, video, expressions):
        return tracks(video, presence=np.full((2, len(video)), 1.5))


class PromptOfNobody(Sound):
    def track(self, video, expressions):
        return tracks(video, prompt=[-1, 99])


class ReturnsNone(Sound):
    def track(self, video, expressions):
        tracks(video)


class OtherSize(Sound):
    def track(self, video, expressions):
        return TrackSet.from_masks(np.ones((1, 2, 3)), np.ones((1, 2, 3, 3), bool))


class Measures(Sound):
    measurement_specs = (FeatureSpec("hits", ("N", "A", "T"), "int32"),)
    measured: Any = None

    def track(self, video, expressions):
        return tracks(video, measure=None if self.measured is None else lambda truth: self.measured)


class MeasuresNothing(Measures):
    pass


class MeasuresAnother(Measures):
    measured = {"misses": np.zeros((2, 2, 5), np.int32)}


class MeasuresWrongDtype(Measures):
    measured = {"hits": np.zeros((2, 2, 5))}


class MeasuresWrongShape(Measures):
    measured = {"hits": np.zeros((2, 7, 5), np.int32)}


class MeasuresUndeclared(Sound):
    def track(self, video, expressions):
        return tracks(video, measure=lambda truth: {})


class PresenceOfEmptyMask(Sound):
    def track(self, video, expressions):
        masks = np.zeros((1, len(video), *video.size), bool)
        return TrackSet.from_masks(np.ones((1, len(video), 3)), masks, presence=np.ones((1, len(video))))


class Random(Sound):
    def track(self, video, expressions):
        return tracks(video, presence=np.random.default_rng().random((2, len(video))))


class ReadsSentences(Sound):
    def track(self, video, expressions):
        return tracks(video, presence=np.full((2, len(video)), len(expressions[0].text) / 1e4))


class Peeks(Sound):
    """Finds the ground truth in the names of the targets."""

    def track(self, video, expressions):
        return tracks(video, presence=np.full((2, len(video)), 0.5 if expressions[0].targets is None else 1))


class NoBlankVideo(Sound):
    def track(self, video, expressions):
        if video.read(0).std() == 0:
            raise ValueError("nothing here")
        return tracks(video)


class AnySetting(Sound):
    class Settings(Sound.Settings):
        model_config = {"extra": "allow"}


class NoEncode(TextEncoder):
    channels = 3


class NoEncoderChannels(TextEncoder):
    def encode(self, texts):
        return []


class TooFewWords(TextEncoder):
    channels = 3

    def encode(self, texts):
        return []


class NoVideo(Dataset):
    def video_ids(self):
        return ("v",)


class NotADataset:
    pass
