"""A selector with settings, and small caches, that the checks run on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.contracts.checks import CheckFailed
from rvos_cache.contracts.folders import folder_of
from rvos_cache.settings import build
from rvos_cache.store import read_card
from rvos_cache.types import FeatureSpec
from rvos_select.contracts.caches import copy_videos, write_caches
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import CacheCards
from rvos_select.data.collate import Row, collate
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.inference.infer import ScoredRows, infer_video
from rvos_select.selectors import Selector
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import make_selector, required_parts

CPU = torch.device("cpu")
CLIP_FRAMES = 4


@dataclass
class SelectorCase:
    """A selector with settings, and small caches to run it on.

    name: as `train` takes it; config: its settings; tracks, texts: caches whose shortest videos are used, by default random ones
    with `features` and `measurements`; tolerance: relative, of comparisons in float32.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    features: Sequence[FeatureSpec] = ()
    measurements: Sequence[FeatureSpec] = ()
    tracks: Path | None = None
    texts: Path | None = None
    tolerance: float = 1e-4

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self)

    def path(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    @cached_property
    def caches(self) -> tuple[Path, Path]:
        """The tracks cache and the text cache."""
        if self.tracks is not None and self.texts is not None:
            return copy_videos(self.tracks, self.texts, self.path())
        return write_caches(self.path(), self.features, self.measurements)

    @cached_property
    def cards(self) -> CacheCards:
        """The cards of the caches."""
        return CacheCards([read_card(self.caches[0])], [read_card(self.caches[1])])

    def settings(self, **values: Any) -> TrainSettings:
        """Training settings: clips where the selector has losses of masks, else videos."""
        clips = "truth" in self.requires
        base: dict[str, Any] = {
            "selector": self.name,
            "config": dict(self.config),
            "batch": "clip" if clips else "video",
            "batch_size": 4,
            "clip": {"frames": CLIP_FRAMES},
            "epochs": 2,
            "optim": {"lr": 1e-3, "schedule": "constant"},
            "precision": "float32",
            "hold_out": 0.34,
        }
        return build(TrainSettings, {**base, **values}, f"selector {self.name}")

    @cached_property
    def requires(self) -> tuple[str, ...]:
        """The parts of a batch that the selector reads."""
        settings = TrainSettings(selector=self.name, config=dict(self.config))
        selector = make_selector(settings, self.cards)
        selector.bind(self.cards)
        return tuple(selector.requires)

    @cached_property
    def selector(self) -> Selector:
        """A bound selector in evaluation mode, its parameters away from their first values."""
        selector = make_selector(self.settings(), self.cards)
        selector.bind(self.cards)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in selector.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return selector.eval()

    @cached_property
    def samples(self) -> list[VideoSample]:
        """The videos with labels."""
        return self.load(labelled=True)

    def load(self, labelled: bool) -> list[VideoSample]:
        """The videos, with or without ground truth."""
        tracks, texts = TrackSource([self.caches[0]]), TextSource([self.caches[1]])
        thresholds = {self.caches[0].as_posix(): 0.3} if labelled else None
        requires = required_parts(self.settings(), self.selector)
        return [load_video(tracks, texts, v, thresholds=thresholds, requires=requires) for v in tracks.video_ids()]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The batch of `rows` as training makes it, of clips of the first frames or of whole videos."""
        if "truth" not in self.selector.requires:
            return collate(rows, self.selector.requires)
        frames = [sample.visible_frames(row).tolist() or [0] for sample, row in rows]
        return collate(rows, self.selector.requires, frames=[(own * CLIP_FRAMES)[:CLIP_FRAMES] for own in frames])

    def rows(self) -> list[Row]:
        """Two expressions of each of the first two videos that have a candidate, or any where masks are predicted."""
        rows = [
            (s, row) for s in self.samples for row in range(len(s.expressions)) if self.selector.draws or s.candidates[row].any()
        ]
        first = [[r for r in rows if r[0] is s][:2] for s in self.samples]
        return [row for own in first if own for row in own][:4]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, with the same random numbers each time."""
        torch.manual_seed(0)
        return self.selector.loss(batch)

    @torch.no_grad()
    def scores(self, sample: VideoSample, rows: Sequence[int] | None = None) -> Tensor:
        """Scores of the expressions of a video: of each track in each frame, (E, N, T), or of predicted masks (E, Q)."""
        parts = list(infer_video(self.selector, sample, CPU, rows))
        order = [row for part in parts for row in part.rows]
        scores = torch.cat([torch.from_numpy(part.scores if self.selector.draws else _by_frame(part, sample)) for part in parts])
        return scores[[order.index(row) for row in (rows if rows is not None else range(len(sample.expressions)))]]

    def close(self, a: Tensor, b: Tensor, what: str) -> None:
        """Raises CheckFailed where two results differ by more than the tolerance of their largest value."""
        if a.shape != b.shape:
            raise CheckFailed(f"{what}: shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        finite = b.isfinite() | a.isfinite()
        difference = (a - b)[finite].abs().amax().item() if finite.any() else 0.0
        limit = self.tolerance * max(1.0, b[finite].abs().amax().item() if finite.any() else 1.0)
        if not difference <= limit:
            raise CheckFailed(f"{what}: differs by {difference:.2g}, allowed {limit:.2g}")


def _by_frame(part: ScoredRows, sample: VideoSample) -> NDArray[np.float32]:
    """The score of each track in each frame, float32 (R, N, T): that of the track, or the best of the queries with its mask."""
    tracks, frames = sample.tokens.shape[:2]
    if part.parts is None:
        return np.repeat(part.scores[..., None], frames, -1)
    out = np.zeros((len(part.rows), tracks, frames), np.float32)
    r, q, t = np.nonzero(part.parts >= 0)
    np.maximum.at(out, (r, part.parts[r, q, t], t), part.scores[r, q])
    return out
