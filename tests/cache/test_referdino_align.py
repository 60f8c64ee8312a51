"""ReferDINO's tracker: against all permutations, its invariances, and values that are not finite."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_cache.trackers.referdino import align


def random_video(seed: int, batch: int = 2, frames: int = 5, number: int = 4, words: int = 3) -> tuple[Tensor, Tensor]:
    """Queries (B, T, Q, 8) that change slowly and are shuffled in each frame, and text (B, T, L, 8)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn((batch, 1, number, 8), generator=generator)
    queries = base + 1.5 * torch.randn((batch, frames, number, 8), generator=generator).cumsum(1)
    shuffled = torch.rand((batch, frames, number), generator=generator).argsort(-1)
    text = torch.randn((batch, frames, words, 8), generator=generator)
    return queries.take_along_dim(shuffled[..., None], 2), text


def plain(queries: Any, text: Any, alpha: float, confidence: str) -> list[list[int]]:
    """Equations 1 and 2 for one video in float64, with all permutations tried."""
    queries, text = np.asarray(queries, np.float64), np.asarray(text, np.float64)

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    memory, out = queries[0].copy(), [list(range(len(queries[0])))]
    for frame, words in zip(queries[1:], text[1:]):
        costs = [[1 - cosine(m, o) for o in frame] for m in memory]
        order = min(itertools.permutations(range(len(frame))), key=lambda p: sum(costs[i][j] for i, j in enumerate(p)))
        rows = frame[list(order)]
        if confidence == "paper_cos":
            c = np.array([max(cosine(row, words[0]), 0) for row in rows])
        else:
            best = (rows @ words.T).max(1)
            c = (best - best.min()) / (best.max() - best.min())
        memory = (1 - alpha * c[:, None]) * memory + alpha * c[:, None] * rows
        out.append(list(order))
    return out


@pytest.mark.parametrize("confidence", ["code_minmax", "paper_cos"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_places_are_the_best_of_all_permutations(alpha: float, confidence: Any) -> None:
    queries, text = random_video(3, batch=12, frames=8)
    places = align(queries, text, alpha=alpha, confidence=confidence)
    assert places.dtype == torch.int64
    for b in range(len(queries)):
        assert places[b].tolist() == plain(queries[b], text[b], alpha, confidence)


def test_the_video_of_these_tests_tells_the_settings_apart() -> None:
    queries, text = random_video(3, batch=12, frames=8)
    results = [
        align(queries, text, alpha=alpha, confidence=confidence)
        for alpha, confidence in ((0.0, "code_minmax"), (0.5, "code_minmax"), (1.0, "code_minmax"), (1.0, "paper_cos"))
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("confidence", ["code_minmax", "paper_cos"])
def test_the_order_within_a_later_frame_does_not_matter(confidence: Any) -> None:
    queries, text = random_video(1)
    tracked = queries.take_along_dim(align(queries, text, alpha=0.1, confidence=confidence)[..., None], 2)
    other = queries.clone()
    other[:, 2], other[:, 4] = queries[:, 2, [3, 0, 2, 1]], queries[:, 4, [1, 0, 3, 2]]
    places = align(other, text, alpha=0.1, confidence=confidence)
    assert torch.equal(other.take_along_dim(places[..., None], 2), tracked)


def test_without_memory_every_frame_is_assigned_to_the_first() -> None:
    queries, text = random_video(2)
    places = align(queries, text, alpha=0.0, confidence="code_minmax")
    for t in range(1, queries.shape[1]):
        pair = align(queries[:, [0, t]], text[:, [0, t]], alpha=0.7, confidence="paper_cos")
        assert torch.equal(places[:, t], pair[:, 1])


def test_with_full_confidence_a_frame_is_assigned_to_the_one_before() -> None:
    # The first half of each vector is common to all queries and the sentence, and so large that every cosine is nearly 1.
    queries, text = random_video(5)
    common = torch.full((8,), 1e4)
    queries, text = (torch.cat([common.expand(*x.shape[:-1], 8), x], -1) for x in (queries, text))
    places = align(queries.double(), text, alpha=1.0, confidence="paper_cos")
    order = torch.arange(4).expand(len(queries), 4)
    for t in range(1, queries.shape[1]):
        before = queries[:, t - 1].take_along_dim(order[..., None], 1)
        step = align(torch.stack([before, queries[:, t]], 1), text[:, :2], alpha=0.0, confidence="paper_cos")
        order = step[:, 1]
        assert torch.equal(places[:, t], order)


def test_pads_count_only_without_a_mask() -> None:
    queries, text = random_video(3, batch=12, frames=8)
    padded = torch.cat([text, 50 * torch.randn((12, 8, 2, 8), generator=torch.Generator().manual_seed(9))], 2)
    mask = torch.tensor([True, True, True, False, False]).expand(12, 8, 5)
    expected = align(queries, text, alpha=1.0, confidence="code_minmax")
    assert torch.equal(align(queries, padded, alpha=1.0, confidence="code_minmax", text_mask=mask), expected)
    assert not torch.equal(align(queries, padded, alpha=1.0, confidence="code_minmax"), expected)


@pytest.mark.parametrize("confidence", ["code_minmax", "paper_cos"])
def test_one_frame_and_one_query(confidence: Any) -> None:
    queries, text = random_video(1)
    assert align(queries[:, :1], text[:, :1], alpha=0.1, confidence=confidence).tolist() == [[[0, 1, 2, 3]]] * 2
    alone = align(queries[:, :, :1], text, alpha=0.1, confidence=confidence)
    assert torch.equal(alone, torch.zeros(2, 5, 1, dtype=torch.int64))


def test_equal_confidences_leave_the_memory_as_it_is() -> None:
    queries, _ = random_video(4, frames=8)
    text = torch.zeros(2, 8, 3, 8)
    places = align(queries, text, alpha=1.0, confidence="code_minmax")
    assert torch.equal(places, align(queries, text, alpha=0.0, confidence="code_minmax"))


@pytest.mark.parametrize("confidence", ["code_minmax", "paper_cos"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, 3e38])
def test_values_that_are_not_finite_disturb_no_other_query(value: float, confidence: Any) -> None:
    queries, text = random_video(7)
    clean = align(queries, text, alpha=0.0, confidence=confidence)
    damaged, words = queries.clone(), text.clone()
    damaged[0, 2, 1] = value
    words[0, 1] = value
    places = align(damaged, words, alpha=0.0, confidence=confidence)
    assert torch.equal(places.sort(-1).values, torch.arange(4).expand(2, 5, 4))
    assert torch.equal(places[:, 3:], clean[:, 3:]) and torch.equal(places[1], clean[1])
    through = align(damaged, words, alpha=0.5, confidence=confidence)
    assert torch.equal(through.sort(-1).values, torch.arange(4).expand(2, 5, 4))
    # The memory is not lost in the damaged frame: queries are assigned as before after it, wherever they are.
    same = queries[:1, :1].repeat(1, 5, 1, 1)
    same[0, 3:] = same[0, 3:].flip(1)
    same[0, 2, 1:3] = value
    # With positive words the products of large values overflow to infinity, and not to NaN.
    for words in (text[:1], text[:1].abs()):
        assert align(same, words, alpha=0.5, confidence=confidence)[0, 3:].tolist() == [[3, 2, 1, 0]] * 2


def test_a_word_that_is_not_a_number_counts_as_zeros() -> None:
    queries, text = random_video(3, batch=12, frames=8)
    zeros, damaged = text.clone(), text.clone()
    zeros[:, :, 1], damaged[:, :, 1] = 0.0, float("nan")
    places = align(queries, damaged, alpha=1.0, confidence="code_minmax")
    assert torch.equal(places, align(queries, zeros, alpha=1.0, confidence="code_minmax"))
    assert not torch.equal(places, align(queries, text, alpha=0.0, confidence="code_minmax"))


def test_an_unknown_confidence_is_refused() -> None:
    queries, text = random_video(1)
    with pytest.raises(ValueError, match="confidence must be"):
        align(queries, text, alpha=0.1, confidence="best")  # type: ignore[arg-type]
