"""Validation during training: the loss, and J&F of the masks that the selector's own rule chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rvos_cache.masks import RleMasks
from rvos_select.data.batch import Batch
from rvos_select.data.clips import Clips, ClipSettings, shown_frames
from rvos_select.data.labels import target_indices
from rvos_select.data.one_object import all_name_one_object
from rvos_select.data.samples import VideoSample, video_batch
from rvos_select.data.sources import CachedSets
from rvos_select.inference.drawing import draw_masks
from rvos_select.merging.policy import selector_policy
from rvos_select.metrics.scores import score


class Validator:
    """Scores a module on held-out videos. The masks of a choice of tracks are scored once and remembered.

    samples: the held-out videos; sets: the caches of each of their sets; expressions: only the first so many by hash (0: all);
    clip: losses are those of clips, `batch_size` of them at once, the same after every epoch; masks are those of whole videos.
    """

    def __init__(
        self,
        samples: Sequence[VideoSample],
        sets: CachedSets,
        expressions: int,
        clip: ClipSettings | None = None,
        batch_size: int = 1,
    ) -> None:
        self.sets, self.clip, self.batch_size = sets, clip, batch_size
        keys = sorted(
            {(s.set_name, e.key) for s in samples for e in s.expressions},
            key=lambda k: (hashlib.sha256(k[1].encode()).digest(), k),
        )
        scored = set(keys[:expressions] if expressions else keys)
        rows = [(s, [i for i, e in enumerate(s.expressions) if (s.set_name, e.key) in scored]) for s in samples]
        self.samples = [(sample, chosen) for sample, chosen in rows if chosen]
        self.known: dict[tuple[str, str, bytes, tuple[str, ...]], tuple[float, float]] = {}

    def scores(self, model: Any, device: torch.device, requires: Sequence[str]) -> dict[str, float]:
        """valid/<loss name> as means over the expressions, and valid/j, valid/f, valid/jf.

        Of several sets also the J, F and J&F of each, valid/<dataset>/<split>/jf: which of them the mean over all hides.
        """
        model.eval()
        sums: dict[str, float] = {}
        count, found = 0, dict[str, list[tuple[float, float]]]()
        with torch.inference_mode():
            for batch, size in self._batches(requires):
                for name, value in model.loss(batch.to(device)).items():
                    sums[name] = sums.get(name, 0.0) + value.item() * size
                count += size
            for sample, rows in self.samples:
                batch = video_batch(sample, rows, requires).to(device)
                scores = torch.sigmoid(model(batch).float()).cpu().numpy()
                allowed = np.ones_like(scores, bool) if model.draws else batch.track_mask.cpu().numpy()
                chosen = selector_policy(model, all_name_one_object([sample.set_name.partition("/")[0]])).among(scores, allowed)
                if model.draws:
                    drawn = draw_masks(model, batch, torch.from_numpy(chosen).to(device))
                    pairs = self._drawn(sample, rows, chosen, drawn)
                else:
                    pairs = self._masks(sample, rows, chosen)
                found.setdefault(sample.set_name, []).extend(pairs)
        out = {f"valid/{name}": value / max(count, 1) for name, value in sums.items()}
        if found:
            out |= _means("valid", [pair for pairs in found.values() for pair in pairs])
        if len(found) > 1:
            for name, pairs in found.items():
                out |= _means(f"valid/{name}", pairs)
        return out

    def _batches(self, requires: Sequence[str]) -> Iterator[tuple[Batch, int]]:
        """What the losses are taken of, and how many expressions each batch has."""
        if self.clip is None:
            yield from ((video_batch(sample, rows, requires), len(rows)) for sample, rows in self.samples)
            return
        join = Clips(self.clip, torch.Generator().manual_seed(0))
        picked = [(s, row) for s, rows in self.samples for row in rows if len(shown_frames(s, row))]
        for start in range(0, len(picked), self.batch_size):
            part = picked[start : start + self.batch_size]
            yield join(part, requires), len(part)

    def _drawn(self, sample: VideoSample, rows: Sequence[int], chosen: np.ndarray, masks: RleMasks) -> list[tuple[float, float]]:
        """J and F of each expression's drawn masks: chosen bool (B, Q), masks (K, T), one for each True."""
        truth = self.sets[sample.set_name].tracks.ground_truth(sample.video_id)
        ends = np.concatenate([[0], chosen.sum(1).cumsum()])
        out = []
        for expression, first, stop in zip((sample.expressions[i] for i in rows), ends[:-1], ends[1:]):
            wanted = truth.masks.union(target_indices(expression, truth.object_ids))
            out.append(score(masks.union(range(first, stop)), wanted, truth.annotated))
        return out

    def _masks(self, sample: VideoSample, rows: Sequence[int], chosen: np.ndarray) -> list[tuple[float, float]]:
        out = []
        masks = truth = None
        for expression, row in zip((sample.expressions[i] for i in rows), chosen):
            key = (sample.set_name, sample.video_id, np.packbits(row).tobytes(), expression.targets or ())
            if key not in self.known:
                if masks is None or truth is None:
                    tracks = self.sets[sample.set_name].tracks
                    masks, truth = tracks.masks(sample.video_id), tracks.ground_truth(sample.video_id)
                wanted = truth.masks.union(target_indices(expression, truth.object_ids))
                self.known[key] = score(masks.union(np.flatnonzero(row)), wanted, truth.annotated)
            out.append(self.known[key])
        return out


def _means(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    j, f = (float(np.mean([pair[i] for pair in pairs])) for i in (0, 1))
    return {f"{name}/j": j, f"{name}/f": f, f"{name}/jf": (j + f) / 2}
