"""ReferDINO's selector with other alignments of the same queries: their tracks in each frame, scores and losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_referdino_caches import ALPHA, PARTS, load_samples, referdino, write_caches
from torch import Tensor

from rvos_cache.trackers.referdino import align
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample
from rvos_select.inference.infer import ScoredRows, infer_video
from rvos_select.selectors.referdino import ReferDino

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSample]:
    return load_samples(write_caches(tmp_path_factory.mktemp("caches")))


def pieces(model: ReferDino, sample: VideoSample) -> Iterator[ScoredRows]:
    with torch.inference_mode():
        yield from infer_video(model, sample, torch.device("cpu"))


@pytest.mark.parametrize("confidence", ["code_minmax"])
def test_raw_order_tracked_again_is_the_cache_s_own_selection(samples: list[VideoSample], confidence: str) -> None:
    default, again = referdino(), referdino(tracker="retrack", alpha=ALPHA, confidence=confidence)
    for sample in samples:
        (a,), (b,) = pieces(default, sample), pieces(again, sample)
        assert a.parts is None and b.parts is not None
        for row, candidates in enumerate(a.candidates):
            own = np.flatnonzero(candidates)
            assert (b.parts[row, : len(own)] == own[:, None]).all() and (b.parts[row, len(own) :] == -1).all()
            assert b.candidates[row].tolist() == [q < len(own) for q in range(b.candidates.shape[1])]
            np.testing.assert_allclose(b.scores[row, : len(own)], a.scores[row, own], atol=1e-6)


@pytest.mark.parametrize("tracker", ["cached", "none"])
def test_groups_of_expressions_are_scored_as_all_together(
    samples: list[VideoSample], monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    model = referdino(tracker=tracker)
    (whole,) = pieces(model, samples[1])
    monkeypatch.setattr("rvos_select.selectors.referdino.selector.QUERIES_PER_PASS", 3 * 5 * 9)
    parts = list(pieces(model, samples[1]))
    assert [piece.rows for piece in parts] == [(0, 1, 2), (3,)]
    np.testing.assert_allclose(np.concatenate([piece.scores for piece in parts]), whole.scores, atol=1e-6)
    if whole.parts is not None:
        assert (np.concatenate([piece.parts for piece in parts]) == whole.parts).all()


def test_another_alignment_takes_other_tracks_in_each_frame(samples: list[VideoSample]) -> None:
    """Parts give each frame's track once, and with them the queries that the scores are of."""
    for values in ({"tracker": "none"}, {"tracker": "retrack", "alpha": 1.0}, {"tracker": "retrack", "confidence": "paper_cos"}):
        model, moved = referdino(**values), False
        for sample in samples:
            (piece,) = pieces(model, sample)
            assert piece.parts is not None
            raw = sample.features["raw"].array.numpy()
            for row in range(len(sample.expressions)):
                own = sample.candidates[row].numpy().nonzero()[0]
                parts = piece.parts[row, : len(own)]
                assert (np.sort(parts, 0) == own[:, None]).all() and (parts[:, 0] == own).all()
                moved |= bool((parts != own[:, None]).any())
                if values["tracker"] == "none":
                    assert (np.take_along_axis(raw, parts, 0) == raw[own, :1]).all()
                # A cache whose tracks are these has the same scores.
                tokens = sample.tokens.clone()
                tokens[own] = sample.tokens[torch.from_numpy(parts).long(), torch.arange(tokens.shape[1])]
                (fixed,) = pieces(referdino(), replace(sample, tokens=tokens))
                np.testing.assert_allclose(piece.scores[row, : len(own)], fixed.scores[row, own], atol=1e-6)
        assert moved


@torch.inference_mode()
def test_a_clip_is_aligned_for_itself(samples: list[VideoSample]) -> None:
    """As the released code trains; the queries of a clip that begins elsewhere may have other tracks."""
    model, sample, frames = referdino(tracker="retrack", alpha=1.0), samples[1], [7, 4, 3, 0]
    tracked = model.track(collate([(sample, 0)], PARTS, frames=[frames]))
    own = sample.candidates[0].nonzero()[:, 0]
    start, end = sample.features["words"].array[own[0]].tolist()
    raw, tokens = sample.features["raw"].array[own][:, frames].long(), sample.tokens[own][:, frames]
    queries = torch.zeros_like(tokens).scatter(0, raw[..., None].expand_as(tokens), tokens).transpose(0, 1)
    text = sample.frames["text"].select({"T": frames})[:, start:end]
    places = align(queries[None], text[None], alpha=1.0)[0]
    expected = {tuple(row) for row in places.T.tolist()}
    assert tracked.places is not None and tracked.places[0, 0].tolist() == list(range(len(own)))
    tracks = raw.T.gather(1, tracked.places[0])
    assert {tuple(row) for row in tracks.T.tolist()} == expected


def test_losses_of_another_alignment_are_of_its_masks(samples: list[VideoSample]) -> None:
    """As those of a cache whose tracks are aligned that way."""
    model, fixed = referdino(tracker="none"), referdino()
    sample = samples[1]
    (piece,) = pieces(model, sample)
    assert piece.parts is not None and sample.overlap is not None
    own = sample.candidates[0].numpy().nonzero()[0]
    at, frames = piece.parts[0, : len(own)], np.arange(piece.parts.shape[-1])

    def moved(array: Tensor) -> Tensor:
        out = array.clone()
        out[own] = array[torch.from_numpy(at).long(), torch.from_numpy(frames)]
        return out

    inter, area = sample.overlap.inter.copy(), sample.overlap.area.copy()
    area[own] = sample.overlap.area[at, frames]
    for a in range(inter.shape[1]):
        inter[own, a] = sample.overlap.inter[:, a][at, frames]
    reference = sample.features["reference"]
    other = replace(
        sample,
        tokens=moved(sample.tokens),
        overlap=replace(sample.overlap, inter=inter, area=area),
        features={**sample.features, "reference": replace(reference, array=moved(reference.array))},
    )
    for clip in (None, [[1, 1, 5, 8]]):
        first, second = (m.loss(collate([(s, 0)], PARTS, frames=clip)) for m, s in ((model, sample), (fixed, other)))
        if clip is None:
            for name, value in second.items():
                torch.testing.assert_close(first[name], value, **CLOSE)
        else:
            assert first["loss"].isfinite()
