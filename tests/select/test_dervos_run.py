"""DeRVOS on caches: its frozen BEiT-3, the frames that it reads, the inference over clips, the outputs that are kept, the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from dervos_caches import PIXELS, TINY, inferred, other, whole, write_dervos_caches
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.store import read_card
from rvos_cache.text.beit3 import Beit3, normalise_pixels
from rvos_cache.types import FeatureSpec
from rvos_select.contracts.selector_case import SelectorCase
from rvos_select.contracts.selector_checks import run_selector_checks
from rvos_select.data.batch import Batch
from rvos_select.data.collate import collate
from rvos_select.selectors.dervos import Dervos
from rvos_select.selectors.dervos.beit3 import NAME, OutputStore, images
from rvos_select.selectors.dervos.caches import settings_of, video_queries
from rvos_select.selectors.dervos.losses import matched

WORDS_ONLY = {"understanding": "words", "match_cost": "counts"}
Caches = tuple[Path, Path]


@pytest.fixture(autouse=True, scope="module")
def without_gpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with tiny_sam2.without_gpu():
        yield


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    return write_dervos_caches(tmp_path_factory.mktemp("dervos"))


@pytest.fixture(scope="module")
def case(caches: Caches) -> SelectorCase:
    return SelectorCase("dervos", TINY, tracks=caches[0], texts=caches[1])


# The contract of a selector.

CONTRACT = [{}, {"tais": "direct"}, {"visible_only": True, "match_scope": "video", "cfma_scope": "clip", "store_bytes": 10**7}]


@pytest.mark.slow
@pytest.mark.parametrize("values", CONTRACT, ids=["full", "direct", "others"])
def test_contract_with_beit3(caches: Caches, values: dict[str, Any]) -> None:
    results = list(run_selector_checks(SelectorCase("dervos", {**TINY, **values}, tracks=caches[0], texts=caches[1])))
    assert [result.title for result in results if result.status != "ok"] == ["padded batches have the same loss (static_shapes)"]


@pytest.mark.slow
def test_contract_on_any_cache_with_maps() -> None:
    """Without maps: `test_selector_checks`."""
    features = (FeatureSpec("f_mask_pooled", ("T", 2, 2, 5), "float16", by_frame=True),)
    case = SelectorCase("dervos", {**TINY, **WORDS_ONLY}, features=features)
    results = list(run_selector_checks(case))
    assert [result.title for result in results if result.status != "ok"] == ["padded batches have the same loss (static_shapes)"]
    assert case.selector.config.map_channels == 5 and not len(case.selector.frozen)


def test_settings_follow_from_the_caches(case: SelectorCase) -> None:
    c = case.selector.config
    assert (c.side, c.resample, c.map_channels, c.word_channels, c.token_channels) == (PIXELS, "bicubic", 6, 64, 16)
    assert set(case.selector.requires) >= {"pixels", "word_ids", "frames.f_mask_pooled", "measured.soft", "motion_words"}


# The frozen part.


def test_beit3_is_neither_counted_nor_saved(case: SelectorCase) -> None:
    selector = case.selector
    frozen = dict(selector.frozen[NAME].named_parameters())
    assert isinstance(selector.frozen[NAME], Beit3) and frozen and not any(p.requires_grad for p in frozen.values())
    own = sum(p.numel() for p in selector.parameters())
    assert own == sum(p.numel() for p in Dervos(selector.config).parameters())
    assert not any(name.startswith("frozen.") for name in selector.state_dict())
    assert selector.frozen_digests[NAME] == read_card(case.caches[1]).weights["beit3"]


def test_beit3_moves_with_the_module(case: SelectorCase) -> None:
    model = other(case).to("meta")
    assert all(p.device.type == "meta" for p in model.frozen[NAME].parameters())


# What it reads.


def test_scores_are_those_of_beit3_s_outputs(case: SelectorCase) -> None:
    """One pair after another through the frozen part, and `score` with the expression's own arrays."""
    selector, sample = case.selector, case.samples[0]
    batch = whole(selector, sample)
    t = batch.tokens.shape[2]
    with torch.no_grad():
        scores = selector.frame_scores(batch)
        for b in range(len(batch)):
            real = batch.word_mask[b]
            outputs = [
                selector.frozen[NAME](
                    normalise_pixels(batch.pixels[0][i][None]), batch.word_ids[b : b + 1, real], real[None, real]
                )
                for i in range(t)
            ]
            expected = selector.score(
                q=batch.tokens[:, batch.track_mask[b]],
                maps=batch.frames["f_mask_pooled"][0][:].float().flatten(1, 2)[None],
                vision=torch.stack([out.vision[0] for out in outputs])[None],
                words=torch.stack([out.words[0] for out in outputs])[None],
                word_mask=real[None, real],
                motion_words=batch.motion_words[b, real][None],
                track_mask=torch.ones(1, int(batch.track_mask[b].sum()), dtype=torch.bool),
                frame_mask=torch.ones(1, t, dtype=torch.bool),
                times=torch.arange(t)[None],
            )
            torch.testing.assert_close(scores[b, batch.track_mask[b]], expected[0], atol=1e-5, rtol=1e-4)
            difference = (scores[b, :, :, 0] - scores[b, :, :, 1]).mean(1)
            torch.testing.assert_close(selector(batch)[b], difference, atol=1e-5, rtol=1e-4)


def test_another_text_alone_changes_patches_and_scores(case: SelectorCase) -> None:
    selector, batch = case.selector, whole(case.selector, case.samples[0], [0])
    changed = replace(batch, word_ids=torch.where(batch.word_ids == batch.word_ids[0, 1], 9, batch.word_ids))
    with torch.no_grad():
        pixels = batch.pixels[0][:][None]
        before, after = (
            selector.store.read(selector.frozen[NAME], pixels, b.word_ids, b.word_mask, 64).vision for b in (batch, changed)
        )
        assert (before - after).abs().mean() > 1e-3
        assert (selector(batch) - selector(changed)).abs().max() > 1e-4


def test_frames_are_resized_as_a_cache_of_frames_has_them() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    for resample in ("bicubic", "bilinear"):
        own = images(torch.from_numpy(frames), 16, resample)
        expected = [np.asarray(Image.fromarray(f).resize((16, 16), Image.Resampling[resample.upper()])) for f in frames]
        assert np.array_equal(own.numpy(), np.stack(expected))
    square = torch.from_numpy(frames[:, :16, :16])
    assert torch.equal(images(square, 16, "bicubic"), square)


def test_video_queries_stand_for_their_tracks(case: SelectorCase) -> None:
    batch = whole(case.selector, case.samples[0], [0])
    n, t = batch.tokens.shape[1:3]
    q_v = torch.arange(12.0).reshape(1, 6, 2)
    query = torch.tensor([[(5 * i) % 6 for i in range(n)]])
    out = video_queries(replace(batch, features={"q_v": q_v, "query": query}))
    assert out.shape == (1, n, t, 2)
    for i in range(n):
        assert (out[0, i] == q_v[0, query[0, i]]).all()


def test_video_queries_of_a_cache_of_vita(case: SelectorCase) -> None:
    values = {"queries": "q_v", **WORDS_ONLY}
    with pytest.raises(InputError, match="queries=q_v: no tracks cache declares the feature 'q_v'"):
        settings_of(values, case.cards.tracks)
    features = (FeatureSpec("q_v", (6, 24), "float32"), FeatureSpec("query", ("N",), "int32"))
    own = SelectorCase("dervos", {**TINY, **values}, features=features)
    assert own.selector.config.query_channels == 24
    sample = own.samples[0]
    assert (inferred(own.selector, sample) - inferred(own.selector, replace(sample, tokens=sample.tokens + 1))).abs().max() == 0


# Inference.


def test_clips_of_a_short_video_are_one(case: SelectorCase) -> None:
    sample = case.samples[0]
    frames = sample.tokens.shape[1]
    model = other(case, clip_frames=frames)
    with torch.no_grad():
        expected = model(whole(model, sample))
    torch.testing.assert_close(inferred(model, sample), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(inferred(other(case, inference="whole"), sample), expected, atol=1e-5, rtol=1e-4)


def test_scores_are_the_mean_of_the_frames_of_dilated_clips(case: SelectorCase) -> None:
    sample = max(case.samples, key=lambda s: s.tokens.shape[1])
    t = sample.tokens.shape[1]
    assert t == 12 and case.selector.config.clip_frames == 4
    rows = [(sample, row) for row in range(4)]
    total = torch.zeros(4, len(sample.tokens))
    with torch.no_grad():
        for first in (2, 0, 1):  # in any order
            scores = case.selector.frame_scores(collate(rows, case.selector.requires, frames=[range(first, t, 3)]))
            total += (scores[..., 0] - scores[..., 1]).sum(2)
    torch.testing.assert_close(inferred(case.selector, sample), total / t, atol=1e-5, rtol=1e-4)
    # A single clip of all frames has other scores: attention over time and the time code differ.
    assert (inferred(other(case, inference="whole"), sample) - total / t).abs().max() > 1e-4


def test_chunks_of_expressions_change_nothing(case: SelectorCase) -> None:
    sample = case.samples[1]
    expected = inferred(other(case, pairs_per_pass=1000), sample)
    for pairs in (1, 5, 8):
        torch.testing.assert_close(inferred(other(case, pairs_per_pass=pairs), sample), expected, atol=1e-5, rtol=1e-4)
    alone = torch.cat([inferred(case.selector, sample, (row,)) for row in (1,)])
    torch.testing.assert_close(alone[0, : expected.shape[1]], expected[1], atol=1e-5, rtol=1e-4)


class Counting(nn.Module):
    """Counts the pairs of each call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pairs = model, list[int]()

    def forward(self, pixels: Tensor, ids: Tensor, real: Tensor) -> Any:
        self.pairs.append(len(pixels))
        return self.model(pixels, ids, real)


def test_no_pass_reads_more_pairs_than_the_setting(case: SelectorCase, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = max(case.samples, key=lambda s: s.tokens.shape[1])
    for pairs, inference in ((8, "dilated"), (3, "dilated"), (5, "whole")):
        model = other(case, pairs_per_pass=pairs, inference=inference)
        counting = Counting(model.frozen[NAME])
        model.attach_frozen(NAME, counting)
        read = list[int]()

        def clip(batch: Batch, own: Any = model._clip, lengths: list[int] = read) -> Any:
            lengths.append(batch.tokens.shape[2])
            return own(batch)

        monkeypatch.setattr(model, "_clip", clip)
        scored = list[int]()
        model.tais.register_forward_pre_hook(lambda _, given, own=scored: own.append(given[0].shape[0] * given[0].shape[2]))
        inferred(model, sample)
        # One expression at least, whatever its frames.
        assert max(scored) <= max(pairs, 4 if inference == "dilated" else 12) and sum(scored) == 12 * 4
        assert sum(counting.pairs) == 12 * 4 and max(counting.pairs) <= pairs
        # Frames are read once, for all expressions.
        assert read == ([12] if inference == "whole" else [4, 4, 4])


def test_precision(case: SelectorCase) -> None:
    sample = case.samples[0]
    plain, auto, bf16 = (inferred(other(case, precision=p), sample) for p in ("float32", "auto", "bf16"))
    assert torch.equal(plain, auto) and plain.dtype == bf16.dtype == torch.float32
    difference = (bf16 - plain).abs().max()
    assert 1e-5 < difference < 0.1 * plain.abs().max() + 0.05


def test_training_and_prediction_have_the_module_s_precision(case: SelectorCase) -> None:
    """Whatever the autocast of the training loop."""
    model, batch = other(case, precision="float32"), whole(case.selector, case.samples[0])
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-4)


# Outputs that are kept.


def test_kept_outputs_are_those_computed(case: SelectorCase) -> None:
    sample = case.samples[0]
    for precision in ("float32", "bf16"):
        expected = inferred(other(case, precision=precision), sample)
        model = other(case, store_bytes=10**8, precision=precision)
        counting = Counting(model.frozen[NAME])
        model.attach_frozen(NAME, counting)
        torch.testing.assert_close(inferred(model, sample), expected, atol=1e-5, rtol=1e-4)
        first = sum(counting.pairs)
        assert first == len(model.store) == sample.tokens.shape[1] * 4
        torch.testing.assert_close(inferred(model, sample), expected, atol=1e-5, rtol=1e-4)
        assert sum(counting.pairs) == first
        model.bind(case.cards)
        assert len(model.store) == model.store.bytes == 0


def test_the_store_keeps_no_more_than_its_bytes(case: SelectorCase) -> None:
    counting = Counting(case.selector.frozen[NAME])
    pixels = torch.randint(0, 256, (1, 5, PIXELS, PIXELS, 3), dtype=torch.uint8)
    ids, mask = torch.tensor([[0, 7, 2, 0]]), torch.tensor([[True, True, True, False]])
    one = 4 * 64 * (9 + 3)
    store = OutputStore(3 * one)
    assert store.read(counting, pixels, ids, mask, 64).vision.shape == (1, 5, 9, 64)
    assert (len(store), store.bytes, sum(counting.pairs)) == (3, 3 * one, 5)
    store.read(counting, pixels[:, 2:], ids, mask, 64)
    assert sum(counting.pairs) == 5
    store.read(counting, pixels[:, :1], ids, mask, 64)
    assert (len(store), store.bytes, sum(counting.pairs)) == (3, 3 * one, 6)
    # Another frame, another text, and patches where words alone are kept.
    store.read(counting, pixels[:, :1], ids + 1, mask, 64)
    store.read(counting, pixels[:, :1] + 1, ids, mask, 64, vision=False)
    store.read(counting, pixels[:, :1] + 1, ids, mask, 64)
    assert sum(counting.pairs) == 9 and store.bytes <= 3 * one
    small = OutputStore(one - 1)
    small.read(counting, pixels, ids, mask, 64)
    assert len(small) == small.bytes == 0
    # Padding is no part of what is kept.
    before = sum(counting.pairs)
    padded = store.read(counting, pixels[:, :1] + 1, F.pad(ids, (0, 3)), F.pad(mask, (0, 3)), 64)
    assert padded.words.shape == (1, 1, 7, 64) and sum(counting.pairs) == before


# The loss.


def test_labels_of_soft_masks_are_those_of_dense_ones(case: SelectorCase) -> None:
    """Costs from the sums, and the assignment by hand over all permutations."""
    from itertools import permutations

    sample = case.samples[0]
    batch = case.batch([(sample, 0), (sample, 1)])
    config = case.selector.config.model_copy(update={"cost_class": 0.0})
    scores = torch.zeros(*batch.track_mask.shape, batch.tokens.shape[2], 2)
    for b, match in enumerate(matched(scores, batch, config)):
        soft, track, truth = (batch.measured[name].double() for name in ("soft", "soft_track", "soft_truth"))
        cells = batch.measured["soft_cells"].double()
        b_track, b_cells = min(b, len(track) - 1), min(b, len(cells) - 1)
        at = cells[b_cells] > 0
        sums, own, area = soft[b][:, :, at].sum(2), track[b_track][:, at].sum(1), truth[b][:, at].sum(1)
        dice = 1 - (2 * sums[..., 0] + 1) / (own[:, None, 0] + area[None] + 1)
        bce = (own[:, None, 1] - sums[..., 1]) / cells[b_cells].sum()
        cost = 5 * dice + 5 * bce
        objects = [a for a in range(len(area)) if (truth[b][a, at] > 0).any()]
        tracks = batch.track_mask[b].nonzero()[:, 0].tolist()
        best = min(permutations(tracks, len(objects)), key=lambda chosen: sum(cost[n, a] for n, a in zip(chosen, objects)))
        assert sorted(match.tracks.tolist()) == sorted(best)


def test_hidden_ground_truth(case: SelectorCase) -> None:
    sample = case.load(labelled=False)[0]
    for cost, message in (("soft", r"Batch.measured\['soft'\]"), ("counts", "Batch.overlap")):
        model = other(case, match_cost=cost)
        batch = collate([(sample, 0)], model.requires)
        assert model(batch).isfinite().all()
        with pytest.raises(ValueError, match=message):
            model.loss(batch)
