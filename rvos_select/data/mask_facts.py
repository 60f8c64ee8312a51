"""What the host knows of a batch's masks, so that a selector on a GPU need not read them back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskFacts:
    """Facts of the masks of a Batch, as numbers of the host; the tensors are on the device of the batch.

    frames_real, words_real: all frames, all words are real; frames_first: real frames come before padding in every video.
    used: int64 (U,), positions of the tracks that some expression may select; None where those are all N tracks, or none.
    tracks_real: every expression may select each of these tracks. candidate_sets: bool (K, N), the different rows of `track_mask`;
    set_of: int64 (B,), the row of each expression among them. Both None where all expressions have the same candidates, or each has
    a video of its own.
    """

    frames_real: bool
    frames_first: bool
    words_real: bool
    tracks_real: bool
    used: Tensor | None
    candidate_sets: Tensor | None
    set_of: Tensor | None

    @classmethod
    def of(cls, frame_mask: Tensor, track_mask: Tensor, word_mask: Tensor) -> MaskFacts:
        """The facts of these masks; those of a GPU are waited for."""
        used = track_mask.any(0)
        some, every = bool(used.any()), bool(used.all())
        sets: Tensor | None = None
        set_of: Tensor | None = None
        if len(frame_mask) < len(track_mask) and not bool((track_mask == track_mask[:1]).all()):
            sets, set_of = torch.unique(track_mask, dim=0, return_inverse=True)
        return cls(
            frames_real=bool(frame_mask.all()),
            frames_first=not bool((frame_mask[:, 1:] & ~frame_mask[:, :-1]).any()),
            words_real=bool(word_mask.all()),
            tracks_real=bool((track_mask | ~used).all()) if some else not len(used),
            used=None if every or not some else used.nonzero()[:, 0],
            candidate_sets=sets,
            set_of=set_of,
        )

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """used, candidate_sets and set_of."""
        return self.used, self.candidate_sets, self.set_of

    def with_tensors(self, used: Tensor | None, candidate_sets: Tensor | None, set_of: Tensor | None) -> MaskFacts:
        """The same facts with these tensors, on another device."""
        return replace(self, used=used, candidate_sets=candidate_sets, set_of=set_of)
