"""A DMVS small enough for a test, its frozen head, and batches for it made of random numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_vita import CHANNELS, SIZES, vita_head
from torch import Tensor

from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.losses import points
from rvos_select.selectors.dmvs import Dmvs, masks
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.vita import HEAD_NAME, VitaInput

WORDS, SIZE = 16, (24, 40)
SMALL: dict[str, Any] = {
    "token_channels": CHANNELS, "word_channels": WORDS, "width": CHANNELS, "hidden": 24, "layers": 2, "motion_queries": 4,
    "points": 50, "dropout": 0.0,
}  # fmt: skip
VITA, INPUT = vita_head(), VitaInput(32, 48, False)


def dmvs(seed: int = 3, **values: Any) -> Dmvs:
    """In evaluation mode, bound to VITA, its norms and biases away from 1 and 0."""
    torch.manual_seed(seed)
    model = Dmvs(DmvsConfig(**{**SMALL, **values})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return with_head(model) if model.draws else model


def with_head(model: Dmvs) -> Dmvs:
    """Bound to VITA, as `bind` does from a cache's card."""
    model.attach_frozen(HEAD_NAME, VITA)
    model.input = INPUT
    return model.train(model.training)


def batch(
    b: int = 3, t: int = 7, length: int = 5, tracks: int = 6, objects: int = 2, shared: bool = False, seed: int = 0
) -> Batch:
    """Everything that DMVS reads; the first word is a special one. shared: the expressions are of one video."""
    g = torch.Generator().manual_seed(seed)
    lead, (h, w) = 1 if shared else b, INPUT.geometry(SIZE).cells()

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g)

    spans = torch.arange(length)[None, :, None].expand(b, -1, 2) * torch.ones(2, dtype=torch.int32)
    spans = spans + (torch.arange(length) > 0)[None, :, None] * torch.tensor([0, 1])
    kinds = torch.randint(0, 3, (b, length), generator=g)
    truth = tuple(some(objects, t, *SIZE) > 0.5 for _ in range(b))
    return Batch(
        tokens=some(lead, tracks, t, CHANNELS),
        frame_mask=torch.ones(lead, t, dtype=torch.bool),
        track_mask=torch.ones(b, tracks, dtype=torch.bool),
        words=some(b, length, WORDS),
        word_mask=torch.ones(b, length, dtype=torch.bool),
        target=(torch.rand(b, tracks, generator=g) < 0.4).float(),
        spans=spans,
        static_words=kinds == 0,
        motion_words=kinds == 1,
        particle_words=torch.rand(b, length, generator=torch.Generator().manual_seed(seed + 50)) < 0.3,
        features={
            "q_v": some(lead, SIZES.video_queries, CHANNELS),
            "logits": some(lead, SIZES.video_queries, SIZES.classes + 1),
            "query": torch.stack([torch.randperm(SIZES.video_queries, generator=g)[:tracks] for _ in range(lead)]).int(),
        },
        frames={
            "q_f": tuple(some(t, SIZES.frame_queries, CHANNELS) for _ in range(lead)),
            "f_mask": tuple(some(t, h, w, CHANNELS).half() for _ in range(lead)),
        },
        overlap=tuple(overlap(tracks, objects, t, seed=100 * seed + i) for i in range(b)),
        truth=truth,
        sizes=(SIZE,) * lead,
    )


def overlap(tracks: int, objects: int, t: int, seed: int) -> Overlap:
    """Counts of random boolean masks of 30 pixels."""
    predicted, truth = np.random.default_rng(seed).random((2, max(tracks, objects), t, 30)) < 0.5
    predicted, truth = predicted[:tracks].astype(np.int32), truth[:objects].astype(np.int32)
    inter = np.einsum("ntp,atp->nat", predicted, truth).astype(np.int32)
    return Overlap(inter, predicted.sum(-1, dtype=np.int32), truth.sum(-1, dtype=np.int32), np.ones(t, bool))


def single(x: Batch, i: int) -> Batch:
    """Expression i of a batch alone, without its padding."""
    at = 0 if len(x.tokens) == 1 else i
    lead, one = slice(at, at + 1), slice(i, i + 1)
    t, n, words = int(x.frame_mask[at].sum()), x.track_mask[i], x.word_mask[i]
    assert x.target is not None and x.spans is not None and x.static_words is not None and x.motion_words is not None
    features = {name: value[lead][:, n] if name == "query" else value[lead] for name, value in x.features.items()}
    counts = None
    if x.overlap is not None:
        keep = n.numpy()[: len(x.overlap[i].area)]
        counts = (replace(x.overlap[i], inter=x.overlap[i].inter[keep], area=x.overlap[i].area[keep]),)
    return Batch(
        x.tokens[lead, n, :t], x.frame_mask[lead, :t], x.track_mask[one, n], x.words[one, words], x.word_mask[one, words],
        x.target[one, n], None, x.spans[one, words], x.motion_words[one, words], x.static_words[one, words], features,
        {name: tuple(a[:t] for a in arrays[lead]) for name, arrays in x.frames.items()}, counts,
        None if x.truth is None else x.truth[one], x.sizes[lead],
        None if x.particle_words is None else x.particle_words[one, words],
    )  # fmt: skip


def rows(x: Batch, order: list[int]) -> Batch:
    """The expressions of a batch in another order."""
    lead = order if len(x.tokens) > 1 else [0]
    by_row = {
        name: getattr(x, name)[order]
        for name in ("track_mask", "words", "word_mask", "target", "spans", "motion_words", "static_words", "particle_words")
    }
    by_lead = {name: getattr(x, name)[lead] for name in ("tokens", "frame_mask")}
    assert x.overlap is not None and x.truth is not None
    return replace(
        x, **by_row, **by_lead,
        features={name: value[lead] for name, value in x.features.items()},
        frames={name: tuple(arrays[i] for i in lead) for name, arrays in x.frames.items()},
        overlap=tuple(x.overlap[i] for i in order), truth=tuple(x.truth[i] for i in order),
        sizes=tuple(x.sizes[i] for i in lead),
    )  # fmt: skip


def fixed(*sizes: int, device: Any = None) -> Tensor:
    """Random points that do not depend on how many masks ask for them: the same for each."""
    if len(sizes) == 2:
        return torch.rand(*sizes, generator=torch.Generator().manual_seed(0))
    one = torch.rand(1, *sizes[1:], generator=torch.Generator().manual_seed(7))
    return one.expand(*sizes)


class FixedTorch:
    """`torch` with `fixed` as its rand."""

    rand = staticmethod(fixed)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def fixed_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """All costs and losses at the same random points."""
    monkeypatch.setattr(points, "torch", FixedTorch())
    monkeypatch.setattr(masks, "torch", FixedTorch())
