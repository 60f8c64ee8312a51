"""ReferDINO's selector: released values, padding, GroundingDINO's own logits, losses and first weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_referdino import TOLERANCE, error, golden, released_tensors
from golden_values import needs
from safetensors.torch import save_file
from tiny_referdino_caches import CHANNELS, PARTS, SMALL, load_samples, referdino, write_caches

from rvos_cache.contracts.checks import run_check
from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.trackers.referdino import ReferDinoHead
from rvos_cache.trackers.referdino.boxes import refined
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample
from rvos_select.merging.policy import selector_policy
from rvos_select.selectors.referdino import ReferDino, ReferDinoConfig, video_scores
from rvos_select.selectors.referdino.cached_losses import objects_of
from rvos_select.selectors.referdino.tracks import objects_in

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_caches(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def samples(caches: tuple[Path, Path]) -> list[VideoSample]:
    return load_samples(caches)


def test_the_published_module_has_its_parameters() -> None:
    model = ReferDino(ReferDinoConfig())
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in (("enhancer", model.enhancer), ("box", model.box))
    }
    assert counts == {"enhancer": 5_528_832, "box": 132_612}
    assert sum(p.numel() for p in model.parameters()) == 5_661_444
    assert sum(p.numel() for p in ReferDino(ReferDinoConfig(logit_affine=True)).parameters()) == 5_661_446


CASES = {
    "default": {},
    "none": {"tracker": "none", "target_mode": "multi_positive", "sentence_feature": "mean_tokens"},
    "retrack": {"tracker": "retrack", "logit_affine": True, "sentence_feature": "both", "box_frames": "visible"},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, caches: tuple[Path, Path]) -> SelectorCase:
    return SelectorCase("referdino", {**SMALL, **CASES[request.param]}, tracks=caches[0], texts=caches[1])


@pytest.mark.slow
@pytest.mark.parametrize("title", SELECTOR_CHECKS)
def test_the_contract(case: SelectorCase, title: str) -> None:
    result = run_check(title, SELECTOR_CHECKS[title], case)
    assert result.status != "FAILED", result.message


# Released values.


@pytest.fixture(scope="module")
def released() -> ReferDino:
    model = ReferDino(ReferDinoConfig()).eval()
    state = model.named_as_here(ReferDinoHead.from_official(released_tensors("head")).state())
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def released_batch(case: str, tracked: bool) -> Batch:
    """The queries of a recorded case as tracks, the released tracker's or each frame's own; two rows of different texts."""
    g = {name.removeprefix(f"{case}."): value for name, value in golden().items() if name.startswith(f"{case}.")}
    b, t, q = g["queries"].shape[:3]
    order = g.get("perm", torch.arange(q).expand(b, t, q)) if tracked else torch.arange(q).expand(b, t, q)
    tokens, reference = (g[name].gather(2, order[..., None].expand_as(g[name])) for name in ("queries", "reference"))
    lengths = g["text_mask"][:, 0].sum(-1)
    # The text of one expression in the middle of those of others.
    text = torch.cat([torch.full_like(g["text"][:, :, :1], 50.0), g["text"], torch.full_like(g["text"][:, :, :1], 50.0)], 2)
    return Batch(
        tokens=tokens.transpose(1, 2),
        frame_mask=torch.ones(b, t, dtype=torch.bool),
        track_mask=torch.ones(b, q, dtype=torch.bool),
        words=torch.ones(b, 1, 8),
        word_mask=torch.ones(b, 1, dtype=torch.bool),
        features={
            "reference": reference.transpose(1, 2),
            "raw": torch.arange(q)[None, :, None].expand(b, q, t).short(),
            "words": torch.stack([torch.ones(b, dtype=torch.long), 1 + lengths], -1)[:, None].expand(b, q, 2).int(),
        },
        frames={"text": tuple(text)},
        sizes=((8, 8),) * b,
    )


@pytest.mark.parametrize("case", ["d1", "d2", "d3"])
@torch.inference_mode()
def test_released_logits_boxes_and_scores(released: ReferDino, case: str) -> None:
    needs(golden(), f"{case}.queries")
    batch = released_batch(case, tracked=True)
    tracked = released.track(batch)
    assert error(f"{case}.logits", tracked.logits) < TOLERANCE
    if case != "d3":
        assert error(f"{case}.enhanced", tracked.queries) < TOLERANCE
    boxes = refined(released.box(tracked.queries), batch.features["reference"].transpose(1, 2))
    assert error(f"{case}.boxes", boxes) < TOLERANCE
    scores = golden()[f"{case}.logits"].sigmoid().mean(1)
    torch.testing.assert_close(released(batch).sigmoid(), scores, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(video_scores(golden()[f"{case}.logits"]), scores)


@torch.inference_mode()
def test_the_released_tracker_runs_on_raw_queries(released: ReferDino) -> None:
    """A cache that keeps each frame's own order, tracked again."""
    needs(golden(), "d2.queries")
    again = ReferDino(ReferDinoConfig(tracker="retrack")).eval()
    again.load_state_dict(released.state_dict())
    tracked = again.track(released_batch("d2", tracked=False))
    assert tracked.places is not None and torch.equal(tracked.places, golden()["d2.perm"])
    assert error("d2.enhanced", tracked.queries) < TOLERANCE and error("d2.logits", tracked.logits) < TOLERANCE


@pytest.mark.parametrize("frames", [1, 2])
@torch.inference_mode()
def test_recorded_enhancer_alone(released: ReferDino, frames: int) -> None:
    case = "c3" if frames == 1 else "c1"
    out = released.enhancer(golden()[f"{case}.queries"], golden()[f"{case}.sentence"])
    assert error(f"{case}.out", out) < TOLERANCE


def test_named_as_the_release(released: ReferDino) -> None:
    names = released.named_as_here(dict.fromkeys(released_tensors("head"))).keys()  # type: ignore[arg-type]
    assert set(released.state_dict()) <= names
    assert "temporal_decoder.1.norm.0.weight" in released.named_as_here({"temporal_decoder.1.norm.0.weight": torch.zeros(1)})


# What a score is.


def test_a_video_score_is_the_mean_probability() -> None:
    logits = torch.tensor([[[0.0, 100.0], [0.0, -100.0], [9.0, 9.0]]])
    assert video_scores(logits, torch.tensor([[True, True, False]])).tolist() == [[0.5, 0.5]]
    assert video_scores(logits)[0, 0].item() == pytest.approx((0.5 + 0.5 + torch.tensor(9.0).sigmoid().item()) / 3)


@torch.inference_mode()
def test_without_layers_and_tracker_logits_are_grounding_dino_s(samples: list[VideoSample]) -> None:
    model = referdino(temporal_layers=0)
    for sample in samples:
        rows = range(len(sample.expressions))
        scores = model(collate([(sample, row) for row in rows], PARTS)).sigmoid()
        text, words = sample.frames["text"].select({}).float(), sample.features["words"].array
        for row in rows:
            own = sample.candidates[row].nonzero()[:, 0]
            start, end = words[own[0]].tolist()
            products = torch.einsum("ntc,tlc->ntl", sample.tokens[own].float(), text[:, start:end])
            torch.testing.assert_close(scores[row, own], products.amax(-1).sigmoid().mean(1), **CLOSE)


@torch.inference_mode()
def test_poor_queries_keep_their_order(samples: list[VideoSample]) -> None:
    """The best of them is selected where none is above the threshold."""
    model = referdino(temporal_layers=0, logit_affine=True)
    model.affine.data = torch.tensor([1.0, -40.0])
    batch = collate([(samples[0], 0)], PARTS)
    scores = model(batch).sigmoid()[0]
    assert (scores < 1e-10).all() and scores.argmax() == video_scores(model.track(batch).logits)[0].argmax()
    assert len(scores.unique()) == len(scores)


def test_the_policy_is_the_released_one() -> None:
    model = referdino()
    several, one = (selector_policy(model, one_object) for one_object in (False, True))
    for scores, expected in (([0.2, 0.1, 0.05], [0]), ([0.3, 0.1, 0.21], [0, 2]), ([0.19, 0.0, 0.2], [2])):
        selected = [policy.among(np.array([scores], np.float32), np.ones((1, 3), bool))[0] for policy in (several, one)]
        assert np.flatnonzero(selected[0]).tolist() == expected
        assert np.flatnonzero(selected[1]).tolist() == [int(np.argmax(scores))]


# Padding.


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
@torch.inference_mode()
def test_what_lies_in_the_padding_is_not_read(samples: list[VideoSample], values: dict[str, object]) -> None:
    model = referdino(**values)
    rows = [(sample, row) for sample, row in zip(samples, (1, 0, 2))]
    batch = collate(rows, PARTS)
    tracks, frames = ~batch.track_mask, ~batch.frame_mask
    assert tracks.any() and frames.any()
    pad = tracks[:, :, None] | frames[:, None]
    junk = replace(
        batch,
        tokens=batch.tokens.masked_fill(pad[..., None], 30.0),
        features={
            "reference": batch.features["reference"].masked_fill(pad[..., None], 0.7),
            "raw": batch.features["raw"].masked_fill(tracks[..., None], 0),
            "words": batch.features["words"].masked_fill(tracks[..., None], 3),
        },
        frames={"text": tuple(text[:].masked_fill(f[:, None, None], 9.0) for text, f in zip(batch.frames["text"], frames))},
    )
    torch.testing.assert_close(model(junk)[batch.track_mask], model(batch)[batch.track_mask], **CLOSE)
    for name, value in model.loss(batch).items():
        torch.testing.assert_close(model.loss(junk)[name], value, **CLOSE)


@torch.inference_mode()
def test_one_frame_skips_the_enhancer_also_beside_longer_videos(samples: list[VideoSample]) -> None:
    full, none = referdino(), referdino(temporal_layers=0)
    one = collate([(samples[0], 0)], PARTS, frames=[[2]])
    torch.testing.assert_close(full(one), none(one))
    two = collate([(samples[0], 0)], PARTS, frames=[[2, 3]])
    assert not torch.allclose(full(two), none(two))
    beside = replace(
        collate([(samples[0], 0), (samples[1], 0)], PARTS, frames=[[2, 3], [0, 1]]),
        frame_mask=torch.tensor([[True, False], [True, True]]),
    )
    torch.testing.assert_close(full(beside)[0, beside.track_mask[0]], none(one)[0], **CLOSE)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_bfloat16_autocast_stays_near(samples: list[VideoSample], values: dict[str, object]) -> None:
    model = referdino(**values)
    batch = collate([(sample, 0) for sample in samples], PARTS)
    exact, losses = model(batch), model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, rounded_losses = model(batch), model.loss(batch)
    rounded_losses["loss"].backward()
    assert rounded.dtype == rounded_losses["loss"].dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()
    assert rounded_losses["loss"].item() == pytest.approx(losses["loss"].item(), rel=0.05)


def test_candidates_of_several_sentences_are_refused(samples: list[VideoSample]) -> None:
    everything = replace(samples[0], candidates=torch.ones_like(samples[0].candidates))
    with pytest.raises(InputError, match="expression 0: its candidates have the text of several expressions"):
        referdino()(collate([(everything, 0)], PARTS))


# Losses and first weights.


def test_boxes_of_the_ground_truth_are_those_of_its_masks(samples: list[VideoSample]) -> None:
    for frames in (None, [[3, 0, 3]]):
        rows = [(samples[0], row) for row in range(4)]
        for row in rows:
            batch = collate([row], PARTS, frames=frames or [list(range(6))])
            assert batch.truth is not None and batch.boxes is not None
            from_masks, from_boxes = objects_of(batch.truth[0]), objects_in(batch.boxes[0], batch.sizes[0])
            torch.testing.assert_close(from_boxes.boxes, from_masks.boxes)
            assert torch.equal(from_boxes.visible, from_masks.visible) and from_boxes.pixels == from_masks.pixels


def test_one_pixel_is_not_visible() -> None:
    masks = torch.zeros(3, 1, 6, 8, dtype=torch.bool)
    masks[0, 0, 2, 3] = masks[1, 0, 2:5, 3:6] = True
    boxes = np.array([[[3, 2, 1, 1]], [[3, 2, 3, 3]], [[0, 0, 0, 0]]], np.float64)
    from_masks, from_boxes = objects_of(masks), objects_in(boxes, (6, 8))
    assert from_boxes.visible.tolist() == [[False], [True], [False]] == from_masks.visible.tolist()
    torch.testing.assert_close(from_boxes.boxes, from_masks.boxes)


def test_training_moves_the_scores_of_the_target(samples: list[VideoSample]) -> None:
    """A few steps on one clip raise the matched track's score and lower the others'."""
    torch.manual_seed(0)
    model = ReferDino(ReferDinoConfig(**SMALL)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = collate([(samples[1], 0), (samples[1], 2)], PARTS, frames=[[1, 3, 5, 7]] * 2)
    first = model.loss(batch)
    for _ in range(60):
        losses = model.loss(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["loss"] < 0.5 * first["loss"] and losses["cls"] < first["cls"] and losses["l1"] < first["l1"]
    scores = model.eval()(batch).sigmoid()[0, batch.track_mask[0]]
    best, second = scores.sort(descending=True).values[:2].tolist()
    assert best > 0.7 and best - second > 0.2


def test_a_hidden_split_has_no_loss(samples: list[VideoSample]) -> None:
    with pytest.raises(ValueError, match=r"ReferDINO's loss needs Batch\.boxes"):
        referdino().loss(replace(collate([(samples[0], 0)], PARTS), boxes=None))


def card(**values: object) -> CacheCards:
    settings = {"channels": CHANNELS, "settings": values}
    return CacheCards([Card(kind="tracks", dataset="tiny", split="train", producer="gdino-queries", **settings)])


@pytest.mark.parametrize("name", ["referdino.safetensors", "model.safetensors"])
def test_the_box_head_starts_as_the_upstream_s(tmp_path: Path, name: str) -> None:
    own = {f"bbox_embed.{i}.{n}": v + i for i in (0, 2) for n, v in referdino(5).box.state_dict().items()}
    save_file({**own, "temporal_decoder.0.norm.0.weight": torch.zeros(3)}, tmp_path / name)
    model = ReferDino(ReferDinoConfig(**{**SMALL, "box_init": "upstream"}))
    model.bind(card(checkpoint=str(tmp_path)))
    for key, value in model.box.state_dict().items():
        torch.testing.assert_close(value, own[f"bbox_embed.2.{key}"])
    # Trained weights stay.
    trained = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(trained)
    model.bind(card(checkpoint=str(tmp_path)))
    torch.testing.assert_close(model.state_dict(), trained)


def test_a_missing_or_foreign_box_head_is_one_line(tmp_path: Path) -> None:
    model = ReferDino(ReferDinoConfig(**{**SMALL, "box_init": "upstream"}))
    save_file({"bbox_embed.0.layers.0.weight": torch.zeros(3, 3)}, tmp_path / "referdino.safetensors")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/model.safetensors").write_bytes(b"damaged")
    for checkpoint, reason in (
        ({}, "its card names no checkpoint, .*; extract with --tracker gdino-queries"),
        ({"checkpoint": str(tmp_path)}, r"its box head has the tensors layers\.0\.weight \(3, 3\), expected layers\.0\.bias"),
        ({"checkpoint": str(tmp_path / "damaged")}, "not a readable safetensors file"),
        ({"checkpoint": str(tmp_path / "absent")}, "no model.safetensors"),
    ):
        with pytest.raises(InputError, match=reason) as fault:
            model.bind(card(**checkpoint))
        # Random weights help where the tracks have what the selector reads.
        assert "\n" not in str(fault.value) and ("box_init=random" in str(fault.value)) == bool(checkpoint)


def test_settings_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match="target_mode=multi_positive counts the positives before a step"):
        ReferDinoConfig(tracker="retrack", target_mode="multi_positive")
