"""Several caches read as one: caches of one split contribute their tracks, caches of other splits their videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.identity import expressions_difference, frames_difference, truth_difference
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.store import Card, TrackCache, TrackInfo
from rvos_cache.types import VIDEO, GroundTruth, Overlap
from rvos_select.data.cards import Spec, check_same_channels, specs_of, token_channels
from rvos_select.paths import Paths, as_paths


class TrackSource:
    """Tracks caches read as one, with TrackCache's getters. Raises InputError when they do not fit together.

    caches_of: video -> the caches that hold it: one or, where several of its split were given, each of them.
    incomplete: video that one of those lacks -> which cache lacks it and how to fix that; its tracks are not read, its
    expressions and ground truth are.
    """

    def __init__(self, paths: Paths) -> None:
        paths = as_paths(paths)
        if not paths:
            raise InputError("no tracks cache given; add --cache C.zarr")
        twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
        if twice is not None:
            raise InputError(f"{twice}: given twice; give each cache once")
        self.caches = [TrackCache(path) for path in paths]
        check_same_channels([(cache.path, cache.card) for cache in self.caches])
        self.caches_of: dict[str, list[TrackCache]] = {}
        self.incomplete: dict[str, str] = {}
        self._first_of_incomplete: dict[str, TrackCache] = {}
        self._compared: set[str] = set()
        for cache in self.caches:
            self._add(cache)
        for video_id, caches in list(self.caches_of.items()):
            absent = [cache.path for cache in self.caches if _split_of(cache) == _split_of(caches[0]) and cache not in caches]
            if absent:
                self.incomplete[video_id] = f"{absent[0]}: lacks video {video_id} that {caches[0].path} has; extract it there too"
                self._first_of_incomplete[video_id] = self.caches_of.pop(video_id)[0]
        if self.incomplete and not self.caches_of:
            raise InputError(next(iter(self.incomplete.values())))

    def _add(self, cache: TrackCache) -> None:
        for video_id in cache.video_ids():
            caches = self.caches_of.setdefault(video_id, [])
            if caches and _split_of(caches[0]) != _split_of(cache):
                raise InputError(f"{cache.path}: video {video_id} is also in {caches[0].path}, of another split")
            if caches and _corruption(cache) != _corruption(caches[0]):
                raise InputError(
                    f"{cache.path}: tracks of {_corruption(cache)} frames, those of {caches[0].path} are of "
                    f"{_corruption(caches[0])} ones; give caches of one split extracted with the same --corrupt"
                )
            caches.append(cache)

    @property
    def card(self) -> Card:
        """The first cache's card."""
        return self.caches[0].card

    @property
    def cards(self) -> list[Card]:
        """The card of each cache, in the order given."""
        return [cache.card for cache in self.caches]

    @property
    def channels(self) -> int:
        """C; 0 where no cache holds tracks."""
        return token_channels(self.cards)

    def video_ids(self) -> tuple[str, ...]:
        """The videos whose tracks can be read, sorted."""
        return tuple(sorted(self.caches_of))

    def skipped_line(self) -> str:
        """One line on the incomplete videos, for a command that leaves them out."""
        first = min(self.incomplete.items())[1]
        return f"{len(self.incomplete)} videos are left out, because not every cache has them; first {first}"

    def _caches(self, video_id: str) -> list[TrackCache]:
        try:
            return self.caches_of[video_id]
        except KeyError:
            raise InputError(self.missing_line(video_id)) from None

    def missing_line(self, video_id: str) -> str:
        """Why a video's tracks cannot be read, and how to fix that."""
        unknown = f"{self.caches[0].path}: no video {video_id}; run the extraction again to add it"
        return self.incomplete.get(video_id, unknown)

    def ground_truth_cache(self, video_id: str) -> TrackCache | None:
        """The first cache that holds the video's expressions and ground truth, also where another cache lacks the video."""
        caches = self.caches_of.get(video_id)
        return caches[0] if caches else self._first_of_incomplete.get(video_id)

    def info(self, video_id: str) -> TrackInfo:
        """The info of all tracks; prompts are positions in the expressions of the first cache."""
        caches = self._caches(video_id)
        infos = [cache.info(video_id) for cache in caches]
        first = infos[0]
        if len(infos) == 1:
            return first
        position = {e.expression_id: i for i, e in enumerate(first.expressions)}
        prompts = []
        for info, cache in zip(infos, caches):
            # Once for each video: this is called by every getter, and the comparison decodes all masks of the ground truth.
            difference = None if video_id in self._compared else _difference(caches[0], cache, first, info)
            if difference is not None:
                raise InputError(
                    f"{cache.path}, video {video_id}: extracted from other data than {caches[0].path}: {difference}; extract the "
                    "older of the two again"
                )
            ids = [e.expression_id for e in info.expressions]
            unknown = [ids[p] for p in info.prompt if p != VIDEO and ids[p] not in position]
            if unknown:
                raise InputError(f"{cache.path}, video {video_id}: tracks of expression {unknown[0]}, which others lack")
            prompts.append(np.array([VIDEO if p == VIDEO else position[ids[p]] for p in info.prompt], np.int32))
        self._compared.add(video_id)
        return TrackInfo(
            video_id,
            first.frame_names,
            first.size,
            first.expressions,
            first.object_ids,
            sum(i.tracks for i in infos),
            tuple(o for i in infos for o in i.origin),
            np.concatenate(prompts),
            np.concatenate([i.prompt_frame for i in infos]),
            np.concatenate([i.prompt_box for i in infos]),
        )

    def contents(self, video_id: str) -> tuple[str, ...]:
        """The identity of the video's content in each of its caches, see `rvos_cache.store.content`."""
        return tuple(cache.content(video_id) for cache in self._caches(video_id))

    def tokens(self, video_id: str) -> NDArray[np.floating]:
        """(N, T, C)."""
        caches = self._caches(video_id)
        return np.concatenate([cache.tokens(video_id) for cache in _with_tracks(caches) or caches[:1]])

    def presence(self, video_id: str) -> NDArray[np.float16]:
        """(N, T)."""
        return np.concatenate([cache.presence(video_id) for cache in self._caches(video_id)])

    def masks(self, video_id: str, tracks: Iterable[int] | None = None) -> RleMasks:
        """(N, T), or the masks of the given tracks alone, in that order. Raises IndexError for a track beyond the last."""
        return RleMasks.from_runs(self.runs(video_id, tracks))

    def runs(self, video_id: str, tracks: Iterable[int] | None = None) -> MaskRuns:
        """The same as run-length ends, from which pixels are rendered fastest."""
        caches = self._caches(video_id)
        if tracks is None or len(caches) == 1:
            parts = [cache.runs(video_id, tracks) for cache in caches]
            return parts[0] if len(parts) == 1 else MaskRuns.concatenate(parts)
        ends = np.cumsum([cache.info(video_id).tracks for cache in caches])
        indices = [range(ends[-1])[int(k)] for k in tracks]
        owners = np.searchsorted(ends, indices, side="right")
        # Each cache reads its own tracks alone; the first reads none of them where nothing is selected.
        parts, order = [], np.argsort(owners, kind="stable")
        for owner in sorted({0, *map(int, owners)}):
            before = ends[owner] - caches[owner].info(video_id).tracks
            parts.append(caches[owner].runs(video_id, [indices[i] - before for i in order if owners[i] == owner]))
        return MaskRuns.concatenate(parts).select(np.argsort(order))

    def overlap(self, video_id: str) -> Overlap:
        """Counts of all tracks. Raises InputError when the split hides its ground truth."""
        parts = [cache.overlap(video_id) for cache in self._caches(video_id)]
        first = parts[0]
        return Overlap(
            np.concatenate([p.inter for p in parts]),
            np.concatenate([p.area for p in parts]),
            first.gt_area,
            first.annotated,
        )

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The annotated objects. Raises InputError when the split hides its ground truth."""
        return self._caches(video_id)[0].ground_truth(video_id)

    def feature_specs(self, video_id: str) -> list[Spec]:
        """The features of the video's caches, as their cards list them."""
        return [spec for cache in self._caches(video_id) for spec in cache.card.feature_specs]

    def feature_spec(self, video_id: str, name: str) -> Spec:
        """The feature `name`. Raises InputError: no cache has it, or several that cannot be concatenated along N."""
        return self._holders(video_id, name, "feature")[1]

    def feature(self, video_id: str, name: str, frames: slice | None = None) -> NDArray[Any]:
        """The feature `name`, or its rows `frames` where it is stored by frame; of several caches concatenated along N.

        An axis E has the expressions of `info`, in their order. Raises like `feature_spec`, and InputError where a cache of the
        video lacks a feature of tracks, or one of expressions was extracted with other expressions.
        """
        caches, spec = self._holders(video_id, name, "feature")
        return self._concatenated(video_id, name, spec, [(c, c.feature(video_id, name, frames)) for c in caches])

    def measurement_spec(self, video_id: str, name: str) -> Spec:
        """The measurement `name`. Raises like `feature_spec`."""
        return self._holders(video_id, name, "measurement")[1]

    def measurement(self, video_id: str, name: str) -> NDArray[Any]:
        """The measurement `name`; of several caches concatenated along N.

        One without an axis N is of the ground truth alone, and the caches must agree on it: soft sums of maps of other cells are not
        comparable. Raises like `feature`, and InputError where the caches do not agree or the split hides its ground truth.
        """
        caches, spec = self._holders(video_id, name, "measurement")
        parts = [(c, c.measurement(video_id, name)) for c in caches]
        if "N" in spec["dims"]:
            return self._concatenated(video_id, name, spec, parts)
        first_cache, first = parts[0]
        for cache, array in parts[1:]:
            # Sums of float32 differ in their last digits between machines.
            if array.shape != first.shape or not np.allclose(array, first, rtol=1e-4, atol=1e-3):
                raise InputError(
                    f"{cache.path}, video {video_id}: the measurement {name!r} differs from that of {first_cache.path}, so their "
                    "tracks were measured in maps of other cells; extract both at one size, or give one of them"
                )
        return first

    def _holders(self, video_id: str, name: str, kind: str) -> tuple[list[TrackCache], Spec]:
        """The caches of the video that have the array, and its spec."""
        caches = self._caches(video_id)
        specs = {c.path: spec for c in caches for spec in specs_of(c.card, kind) if spec["name"] == name}
        holders = [c for c in caches if c.path in specs]
        where = f"{caches[0].path}, video {video_id}"
        if not holders:
            known = ", ".join(str(s["name"]) for c in caches for s in specs_of(c.card, kind)) or "none"
            raise InputError(
                f"{where}: no cache holds the {kind} {name!r} (there are: {known}); give the cache of a tracker that writes it"
            )
        spec = specs[holders[0].path]
        lacking = [c for c in _with_tracks(caches) if c not in holders]
        if "N" in spec["dims"] and lacking:
            other = lacking[0]
            raise InputError(
                f"{holders[0].path}, video {video_id}: the {kind} {name!r} has an axis of tracks, {other.path} does not hold it; "
                "give caches that all hold it, or this cache alone"
            )
        for cache in holders[1:]:
            if "N" not in spec["dims"] and kind == "feature":
                raise InputError(
                    f"{where}: {len(holders)} caches hold the {kind} {name!r}, which has no axis of tracks to concatenate; give one"
                )
            if any(specs[cache.path][key] != spec[key] for key in ("dims", "dtype")):
                raise InputError(
                    f"{cache.path}: the {kind} {name!r} is {specs[cache.path]['dtype']} {specs[cache.path]['dims']}, "
                    f"{holders[0].path} has {spec['dtype']} {spec['dims']}; give caches of one tracker"
                )
        return holders, spec

    def _concatenated(
        self, video_id: str, name: str, spec: Spec, parts: Sequence[tuple[TrackCache, NDArray[Any]]]
    ) -> NDArray[Any]:
        dims, arrays = list(spec["dims"]), [array for _, array in parts]
        if len(parts) > 1 or "E" in dims:
            ids = [e.expression_id for e in self.info(video_id).expressions]
            objects = self.info(video_id).object_ids
            for i, (cache, array) in enumerate(parts):
                info = cache.info(video_id)
                if "A" in dims and info.object_ids != objects:
                    raise InputError(
                        f"{cache.path}, video {video_id}: other objects than {self.caches[0].path}; extract it again"
                    )
                if "E" in dims:
                    own = [e.expression_id for e in info.expressions]
                    if sorted(own) != sorted(ids):
                        raise InputError(
                            f"{cache.path}, video {video_id}: {name!r} has an axis of expressions, and they are not those of "
                            f"{self._caches(video_id)[0].path}; extract it again"
                        )
                    arrays[i] = np.take(array, [own.index(e) for e in ids], axis=dims.index("E"))
        if len(arrays) == 1:
            return arrays[0]
        axis = dims.index("N")
        rest = [array.shape[:axis] + array.shape[axis + 1 :] for array in arrays]
        if len(set(rest)) > 1:
            raise InputError(
                f"{parts[1][0].path}, video {video_id}: {name!r} has the shape {arrays[1].shape}, {parts[0][0].path} has "
                f"{arrays[0].shape}; only the axis of tracks may differ"
            )
        return np.concatenate(arrays, axis)


def _difference(first: TrackCache, second: TrackCache, before: TrackInfo, now: TrackInfo) -> str | None:
    """How the data of a video changed between the extractions of two caches; before, now: its info in both."""
    difference = frames_difference((before.frame_names, before.size), (now.frame_names, now.size))
    if difference is None and None not in (before.frames_digest, now.frames_digest) and before.frames_digest != now.frames_digest:
        difference = "its frames are other pictures"
    difference = difference or expressions_difference(before.expressions, now.expressions)
    if difference is None and before.object_ids is not None and now.object_ids is not None:
        difference = truth_difference(first.ground_truth(before.video_id), second.ground_truth(now.video_id))
    return difference


def _with_tracks(caches: Sequence[TrackCache]) -> list[TrackCache]:
    return [cache for cache in caches if cache.card.channels]


def _split_of(cache: TrackCache) -> tuple[str, str]:
    return cache.card.dataset, cache.card.split


def _corruption(cache: TrackCache) -> str:
    return cache.card.extra.get("corrupt", "clean")


def candidates(info: TrackInfo, expression_id: str) -> NDArray[np.bool_]:
    """bool (N,): the tracks that the expression may select: those of the video and those that it prompted itself.

    An expression that the tracks cache does not know, added after an extraction that read no sentence, may select every
    track of the video.
    """
    position = {e.expression_id: i for i, e in enumerate(info.expressions)}
    return (info.prompt == VIDEO) | (info.prompt == position.get(expression_id, VIDEO))
