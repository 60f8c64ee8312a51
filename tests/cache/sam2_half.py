"""Whole tracks in bfloat16 against float32: how near the library's own autocast comes, and how far tracks from a wrong memory are.

A tiny model without scores near 0, whose sign decides on a whole mask and token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain_sam2 import plain_tracks
from sam2_video import as_video, moving, prompts_of, squares
from tiny_sam2 import tiny_sam2, without_gpu

from rvos_cache.trackers.sam2 import transformers_backend
from rvos_cache.trackers.sam2.backend import Propagated
from rvos_cache.trackers.sam2.follow import Controls
from rvos_cache.trackers.sam2.precision import inference_precision
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend

FRAMES, PROMPT = 12, 5


@dataclass(frozen=True)
class Errors:
    """tokens: mean length of a token's error, relative to the token; masks: share of pixels."""

    tokens: float
    masks: float


class HalfTracks:
    """Tracks of three squares by a model in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.settings = GridSettings(checkpoint=str(tiny_sam2(folder, present=4.0)))
        with without_gpu(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers_backend, "native_dtype", lambda device: torch.float32)
            exact = self.run(TransformersBackend(self.settings), 3)
            self.tokens, self.masks = exact.tokens, exact.masks.dense()
            controls = Controls.__init__

            def one_away(self: Controls, *inputs: Any) -> None:
                controls(self, *inputs)
                self.distances.fill_(1)

            patch.setattr(Controls, "__init__", one_away)
            self.wrong = self.errors(self.run(TransformersBackend(self.settings), 3))
            """Of tracks for which every map is one frame away, in float32."""

    def run(self, backend: TransformersBackend, count: int) -> Propagated:
        """Tracks of the first `count` of the squares, which are prompted twice."""
        with backend.open(as_video(moving(FRAMES))) as session:
            return session.propagate(PROMPT, (prompts_of(squares(PROMPT), PROMPT) * 2)[:count])

    def library(self, backend: TransformersBackend) -> Errors:
        """Errors of a session of transformers, float32 weights under autocast, on the device of `backend`."""
        with inference_precision(backend.device, torch.bfloat16):
            tokens, _, masks = plain_tracks(backend.network.model, list(moving(FRAMES)), PROMPT, squares(PROMPT))
        return self._errors(tokens, masks)

    def errors(self, tracks: Propagated) -> Errors:
        """Of at most three tracks."""
        return self._errors(tracks.tokens[:3], tracks.masks.dense(range(min(3, tracks.masks.shape[0]))))

    def _errors(self, tokens: NDArray[np.float32], masks: NDArray[np.bool_]) -> Errors:
        exact = self.tokens[: len(tokens)]
        lengths = np.linalg.norm(tokens - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        return Errors(float(lengths.mean()), float((masks != self.masks[: len(masks)]).mean()))

    def check(self, tracks: Propagated, library: Errors) -> None:
        """As near as the library, up to the noise of a few roundings; nearer than a wrong memory."""
        ours = self.errors(tracks)
        message = f"ours {ours}, library {library}, wrong memory {self.wrong}"
        assert ours.tokens < 1.5 * library.tokens and ours.masks < 2 * library.masks + 0.002, message
        assert ours.tokens < self.wrong.tokens, message
