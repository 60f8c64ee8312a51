"""Validation during training: the loss, and J&F of the masks that the selector's own policy selects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_cache.system.progress import tracked
from rvos_select.data.batch import Batch
from rvos_select.data.clips import ClipSampler, ClipSettings
from rvos_select.data.collate import collate
from rvos_select.data.epochs import Step
from rvos_select.data.labels import target_indices
from rvos_select.data.micro_batches import micro_batches
from rvos_select.data.one_object import all_name_one_object
from rvos_select.data.samples import VideoSample
from rvos_select.data.sources import CachedSets
from rvos_select.inference.infer import ScoredRows, infer_video
from rvos_select.merging.policy import SelectionPolicy, selector_policy
from rvos_select.merging.tracks_by_frame import ByFrame, by_frame
from rvos_select.metrics.scores import score
from rvos_select.selectors import Selector
from rvos_select.training.step_losses import read_scalars

Pair = tuple[float, float]
"""J and F of an expression."""


class Validator:
    """Scores a selector on held-out videos. The masks of a selection of tracks are scored once and cached.

    samples: the held-out videos; sets: the caches of each of their sets; expressions: only the first so many by hash (0: all);
    clip: losses are those of steps of `batch_size` clips, `micro_batch` of them at once (0: all), the same after every epoch; masks
    are those of whole videos.
    """

    def __init__(
        self,
        samples: Sequence[VideoSample],
        sets: CachedSets,
        expressions: int,
        clip: ClipSettings | None = None,
        batch_size: int = 1,
        micro_batch: int = 0,
    ) -> None:
        self.sets, self.clip, self.batch_size, self.micro_batch = sets, clip, batch_size, micro_batch
        keys = sorted(
            {(s.set_name, e.key) for s in samples for e in s.expressions},
            key=lambda k: (hashlib.sha256(k[1].encode()).digest(), k),
        )
        chosen = set(keys[:expressions] if expressions else keys)
        rows = [(s, [i for i, e in enumerate(s.expressions) if (s.set_name, e.key) in chosen]) for s in samples]
        self.samples = [(sample, own) for sample, own in rows if own]
        self._scores: dict[tuple[str, str, ByFrame, tuple[str, ...]], Pair] = {}

    def scores(self, selector: Selector, device: torch.device, requires: Sequence[str]) -> dict[str, float]:
        """valid/<loss name> as means over the expressions, and valid/j, valid/f, valid/jf.

        Of several sets also the J, F and J&F of each, valid/<dataset>/<split>/jf, which the mean over all hides.
        """
        selector.eval()
        losses: list[tuple[str, float, Tensor]] = []
        count, pairs_of_set = 0, dict[str, list[Pair]]()
        with torch.inference_mode():
            for batch, weight in self._batches(selector, requires):
                losses += [(name, weight, value) for name, value in selector.loss(batch.to(device)).items()]
                count += len(batch)
            for sample, rows in self.samples:
                policy = selector_policy(selector, all_name_one_object([sample.set_name.partition("/")[0]]))
                pairs = pairs_of_set.setdefault(sample.set_name, [])
                for part in infer_video(selector, sample, device, rows):
                    pairs += self._score(sample, part, policy)
        sums: dict[str, float] = {}
        for (name, weight, _), number in zip(losses, read_scalars([value for _, _, value in losses])):
            sums[name] = sums.get(name, 0.0) + number * weight
        out = {f"valid/{name}": value / max(count, 1) for name, value in sums.items()}
        if pairs_of_set:
            out |= _means("valid", [pair for pairs in pairs_of_set.values() for pair in pairs])
        if len(pairs_of_set) > 1:
            for name, pairs in pairs_of_set.items():
                out |= _means(f"valid/{name}", pairs)
        return out

    def ceiling(self, selector: Selector) -> dict[str, float]:
        """valid/j, valid/f, valid/jf of the labels themselves: of a module whose scores are the targets. No expression: empty."""
        pairs: list[Pair] = []
        for sample, rows in tracked(self.samples, "ceiling of the labels"):
            assert sample.target is not None
            policy = selector_policy(selector, all_name_one_object([sample.set_name.partition("/")[0]]))
            selected = policy.among(sample.target[rows].numpy(), sample.candidates[rows].numpy())
            pairs += self._score_tracks(sample, rows, selected, None)
        return _means("valid", pairs) if pairs else {}

    def _batches(self, selector: Selector, requires: Sequence[str]) -> Iterator[tuple[Batch, float]]:
        """The batches of the losses, and how many expressions the loss of each counts for."""
        if self.clip is None:
            yield from ((collate([(s, row) for row in rows], requires), len(rows)) for s, rows in self.samples)
            return
        sampler = ClipSampler(self.clip, torch.Generator().manual_seed(0), requires)
        rows = [(s, row) for s, rows in self.samples for row in rows if len(s.visible_frames(row))]
        parts = (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))
        steps = (Step(part, part[0][0].expressions[part[0][1]].key) for part in parts)
        for part in micro_batches(steps, self.micro_batch, tuple(requires), sampler, selector.normalisers):
            yield part.batch, part.share * part.step_size

    def _score(self, sample: VideoSample, part: ScoredRows, policy: SelectionPolicy) -> list[Pair]:
        selected = policy.among(part.scores, part.candidates)
        if part.selector.draws:
            return self._score_queries(sample, part, selected)
        return self._score_tracks(sample, part.rows, selected, part.parts)

    def _score_queries(self, sample: VideoSample, part: ScoredRows, selected: NDArray[np.bool_]) -> list[Pair]:
        """J and F of each expression's predicted masks. selected: bool (R, Q)."""
        masks = part.masks(selected)
        truth = self.sets[sample.set_name].tracks.ground_truth(sample.video_id)
        ends = np.concatenate([[0], selected.sum(1).cumsum()])
        pairs = []
        for expression, start, stop in zip((sample.expressions[i] for i in part.rows), ends[:-1], ends[1:]):
            target = truth.masks.union(target_indices(expression, truth.object_ids))
            pairs.append(score(masks.union(range(start, stop)), target, truth.annotated))
        return pairs

    def _score_tracks(
        self, sample: VideoSample, rows: Sequence[int], selected: NDArray[np.bool_], parts: NDArray[np.int32] | None
    ) -> list[Pair]:
        """J and F of each expression's tracks. selected: bool (R, N), or (R, Q) of queries with parts int32 (R, Q, T)."""
        pairs = []
        masks: RleMasks | None = None
        for i, (row, marked) in enumerate(zip(rows, selected)):
            expression = sample.expressions[row]
            own = by_frame(np.flatnonzero(marked), None if parts is None else parts[i], sample.tokens.shape[1])
            key = (sample.set_name, sample.video_id, own, expression.targets or ())
            if key not in self._scores:
                tracks = self.sets[sample.set_name].tracks
                if masks is None:
                    masks, truth = tracks.masks(sample.video_id), tracks.ground_truth(sample.video_id)
                target = truth.masks.union(target_indices(expression, truth.object_ids))
                self._scores[key] = score(masks.union_by_frame(own), target, truth.annotated)
            pairs.append(self._scores[key])
        return pairs


def _means(name: str, pairs: Sequence[Pair]) -> dict[str, float]:
    j, f = (float(np.mean([pair[i] for pair in pairs])) for i in (0, 1))
    return {f"{name}/j": j, f"{name}/f": f, f"{name}/jf": (j + f) / 2}
