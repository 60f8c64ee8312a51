"""The tracker `gdino-queries` against a plain live loop of the same modules, and what its caches promise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from released_referdino import SMALL, live, shared_grounding, shared_upstream
from tiny_gdino_queries import SCENE, TEXTS, expressions, make_tracker, scene
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_video
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackCache, content_digest, write_tracks
from rvos_cache.trackers import open_tracker
from rvos_cache.trackers.referdino import align, frame_maps, tracker
from rvos_cache.trackers.referdino.drawing import filled_boxes, pixel_boxes
from rvos_cache.trackers.referdino.frame_maps import resized_size
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersSession
from rvos_cache.types import TrackSet

SIZES = {"odd": (41, 63), "portrait": (63, 38), "wide": (20, 61)}


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Results of two runs are compared to the last bit."""
    with tiny_sam2.without_gpu():
        yield


@cache
def shared_tracker() -> GdinoQueries:
    return make_tracker()


@pytest.mark.parametrize(("frames", "size"), [(5, "odd"), (1, "odd"), (3, "portrait"), (2, "wide")])
def test_an_imported_checkpoint_gives_the_released_masks(frames: int, size: str) -> None:
    video = scene(frames, SIZES[size])
    tracks = shared_tracker().track(video, expressions(*TEXTS[:2]))
    q = shared_tracker().upstream.queries
    assert tracks.tokens.shape == (2 * q, frames, 64) and q == 4
    for e, text in enumerate(TEXTS[:2]):
        expected, rows = live(video, text), slice(e * q, (e + 1) * q)
        assert np.array_equal(tracks.features["raw"][rows], expected["raw"].numpy())
        start, stop = tracks.features["words"][e * q].tolist()
        pairs = {
            "hs": (tracks.tokens[rows], 2e-3),
            "text": (tracks.features["text"][:, start:stop], 2e-3),
            "reference": (tracks.features["reference"][rows], 1e-5),
        }
        for name, (value, tolerance) in pairs.items():
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=tolerance, atol=tolerance, err_msg=name)
        masks, dense = expected["masks"].numpy(), tracks.masks.select(range(*rows.indices(2 * q))).dense()
        # Pixels whose logit is 0 but for rounding.
        assert (masks != dense).mean() < 1e-4 and 0.02 < masks.mean() < 0.98
        visible = masks.any((2, 3))
        np.testing.assert_allclose(tracks.presence[rows], expected["presence"].numpy() * visible, rtol=0, atol=1e-3)
        best = np.where(visible, expected["presence"].numpy(), -1).argmax(1)
        assert np.array_equal(tracks.prompt_frame[rows], best)
        boxes = pixel_boxes(expected["boxes"].numpy()[np.arange(q), best], video.size)
        np.testing.assert_allclose(tracks.prompt_box[rows], boxes, rtol=0, atol=1e-2)
    if frames > 1:
        assert (np.diff(tracks.features["raw"], axis=1) != 0).any(), "the tracker changed no order"


def test_every_frame_is_read_once_for_all_texts_and_every_text_once() -> None:
    own, rows = make_tracker(frames_per_pass=2), Counter[str]()
    model = own.upstream.model.model
    modules = {"backbone": own.upstream.shared.backbone.conv_encoder.model, "text": model.text_backbone, "encoder": model.encoder}
    for name, module in modules.items():

        def count(_: Any, inputs: Any, output: Any, name: str = name) -> None:
            rows[name] += len(output.feature_maps[0] if name == "backbone" else output[0])

        module.register_forward_hook(count)
    own.track(scene(5), expressions(*TEXTS, "The red square."))
    assert rows == {"backbone": 5, "text": 15, "encoder": 15}


def assert_close(a: TrackSet, b: TrackSet) -> None:
    assert np.array_equal(a.features["raw"], b.features["raw"])
    np.testing.assert_allclose(a.tokens, b.tokens, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(a.features["reference"], b.features["reference"], rtol=0, atol=1e-5)
    assert (a.masks.dense() != b.masks.dense()).mean() < 1e-4


@pytest.mark.parametrize("per_pass", [1, 2, 4])
def test_passes_change_nothing(per_pass: int) -> None:
    whole, parts = shared_tracker(), make_tracker(frames_per_pass=per_pass)
    assert_close(whole.track(scene(5), expressions(*TEXTS[:2])), parts.track(scene(5), expressions(*TEXTS[:2])))


def test_what_does_not_fit_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shared_tracker().track(scene(5), expressions(*TEXTS[:2]))
    monkeypatch.setattr(frame_maps, "IN_MEMORY", 1000)
    monkeypatch.setattr(tracker, "MEMORY", 1000)
    tracks = shared_tracker().track(scene(5), expressions(*TEXTS[:2]))
    assert np.array_equal(tracks.tokens, expected.tokens) and tracks.masks == expected.masks


def test_expressions_together_are_each_alone() -> None:
    own, q, texts = shared_tracker(), shared_tracker().upstream.queries, (*TEXTS, "The Red square. ")
    together = own.track(scene(4), expressions(*texts))
    assert together.prompt.tolist() == np.repeat(range(4), q).tolist() and set(together.origin) == {"query"}
    words = together.features["words"]
    assert words[0].tolist()[0] == 0 and words[-1].tolist()[1] == together.features["text"].shape[1]
    tokens = []
    for e, text in enumerate(texts):
        alone, rows = own.track(scene(4), expressions(text)), range(e * q, (e + 1) * q)
        for name in ("tokens", "presence", "prompt_frame", "prompt_box"):
            assert np.array_equal(getattr(alone, name), getattr(together, name)[rows]), name
        for name in ("reference", "raw"):
            assert np.array_equal(alone.features[name], together.features[name][rows]), name
        start, stop = words[rows[0]].tolist()
        assert (words[rows] == [start, stop]).all()
        assert np.array_equal(alone.features["text"], together.features["text"][:, start:stop])
        assert alone.masks == together.masks.select(rows)
        tokens.append(alone.tokens)
    assert np.array_equal(tokens[0], tokens[3]) and not np.allclose(tokens[0], tokens[1], atol=0.1)


@pytest.mark.parametrize("confidence", ["code_minmax", "paper_cos"])
def test_the_stored_queries_linked_again_are_the_tracks(confidence: str) -> None:
    """From raw order, as a selector does it."""
    own = make_tracker(confidence=confidence, alpha=0.4, keep_ratio=0.7)
    tracks = own.track(scene(6), expressions(TEXTS[0]))
    places = torch.from_numpy(tracks.features["raw"].T.astype(np.int64))
    tracked = torch.from_numpy(tracks.tokens.transpose(1, 0, 2))
    raw = torch.zeros_like(tracked).scatter_(1, places[..., None].expand_as(tracked), tracked)
    text = torch.from_numpy(tracks.features["text"])
    assert torch.equal(align(raw[None], text[None], alpha=0.4, confidence=confidence)[0], places)  # type: ignore[arg-type]
    assert not torch.equal(places, torch.arange(places.shape[1]).expand_as(places))


def test_no_expression_is_no_track(tmp_path: Path) -> None:
    own = shared_tracker()
    card = Card(
        kind="tracks", dataset="d", split="s", producer="gdino-queries", channels=own.channels,
        feature_specs=[spec.to_json() for spec in own.feature_specs],
    )  # fmt: skip
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), extract_video(own, scene(3), [], None))
    stored = TrackCache(tmp_path / "c.zarr").read("v").tracks
    assert stored.tokens.shape == (0, 3, 64) and stored.features["text"].shape == (3, 0, 64)
    assert {name: array.shape[0] for name, array in stored.features.items() if name != "text"} == dict.fromkeys(
        ("reference", "raw", "words"), 0
    )


@pytest.mark.parametrize(
    ("changes", "queries"),
    [({"keep_ratio": 1}, 20), ({"prune_score": "random"}, 4), ({"prune_score": "paper_eq4"}, 4), ({"short_side": 48}, 4)],
)
def test_each_setting_changes_the_queries(changes: dict[str, Any], queries: int) -> None:
    own = make_tracker(masks="none", **changes)
    tokens = own.track(scene(2), expressions(TEXTS[0])).tokens
    assert tokens.shape == (queries, 2, 64)
    assert tokens.shape != (4, 2, 64) or not np.allclose(
        tokens, shared_tracker().track(scene(2), expressions(TEXTS[0])).tokens, atol=0.05
    )


def test_queries_that_are_not_linked_keep_the_order_of_their_frame() -> None:
    tracks = make_tracker(tracker="none").track(scene(), expressions("a red dog"))
    count = len(tracks.origin)
    assert np.array_equal(tracks.features["raw"], np.arange(count)[:, None].repeat(5, 1))
    linked = shared_tracker().track(scene(), expressions("a red dog"))
    raw = linked.features["raw"][..., None].astype(np.int64)
    assert np.array_equal(linked.tokens, np.take_along_axis(tracks.tokens, raw, 0))


def test_the_queries_are_linked_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny random queries are linked in the same way with every alpha; that alpha matters is tested with `align`."""
    calls: list[dict[str, Any]] = []

    def reversed_order(queries: Tensor, text: Tensor, **settings: Any) -> Tensor:
        calls.append(settings)
        # As stored, so that linking the stored queries gives the same order.
        assert queries.dtype == text.dtype == torch.float16
        return align(queries, text, **settings).flip(2)

    own = make_tracker(alpha=0.3, confidence="paper_cos")
    expected = own.track(scene(3), expressions(TEXTS[0]))
    monkeypatch.setattr(tracker, "align", reversed_order)
    tracks = own.track(scene(3), expressions(TEXTS[0]))
    assert calls == [{"alpha": 0.3, "confidence": "paper_cos"}]
    for name in ("tokens", "presence", "prompt_box"):
        assert np.array_equal(getattr(tracks, name), getattr(expected, name)[::-1]), name
    for name in ("reference", "raw"):
        assert np.array_equal(tracks.features[name], expected.features[name][::-1]), name
    assert (tracks.masks.dense() != expected.masks.dense()[::-1]).mean() < 1e-4


# What draws masks


def test_masks_of_a_plain_grounding_dino_need_another_drawer() -> None:
    with pytest.raises(InputError, match=r"masks=head needs ReferDINO's mask decoder .* --set masks=sam2$") as caught:
        make_tracker(checkpoint=str(shared_grounding()))
    assert "\n" not in str(caught.value)


def test_without_masks_every_presence_is_zero() -> None:
    tracks = make_tracker(masks="none").track(scene(3), expressions(TEXTS[0]))
    assert not tracks.masks.area().any() and not tracks.presence.any() and tracks.tokens.any()
    best = live(scene(3), TEXTS[0])["presence"].argmax(1)
    assert np.array_equal(tracks.prompt_frame, best.numpy())


def test_boxes_are_filled_where_pixels_have_their_centres() -> None:
    boxes = pixel_boxes(np.array([[[0.5, 0.5, 0.4, 0.5], [0.0, 0.0, 0.4, 4.0]]], np.float32), (8, 10))
    assert boxes.tolist() == [[[3, 2, 7, 6], [0, 0, 2, 8]]]
    masks = RleMasks.from_bytes(filled_boxes(boxes, (8, 10)), 2, (8, 10)).dense()[0]
    expected = np.zeros((2, 8, 10), bool)
    expected[0, 2:6, 3:7] = expected[1, :, :2] = True
    assert np.array_equal(masks, expected)
    thin = filled_boxes(np.array([[[1.6, 0, 2.4, 8], [1.4, 0, 1.6, 8]]], np.float32), (8, 10))
    assert RleMasks.from_bytes(thin, 2, (8, 10)).area().tolist() == [[0, 8]]


def test_masks_of_boxes_are_those_of_the_predicted_boxes() -> None:
    tracks = make_tracker(masks="box").track(scene(3), expressions(TEXTS[0]))
    boxes = pixel_boxes(live(scene(3), TEXTS[0])["boxes"].numpy(), SIZES["odd"])
    expected = RleMasks.from_bytes(filled_boxes(boxes, SIZES["odd"]), 3, SIZES["odd"])
    assert (tracks.masks.dense() != expected.dense()).mean() < 1e-3 and expected.area().any()


def test_sam2_draws_each_box_in_its_frame_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prompted: list[tuple[int, np.ndarray]] = []
    encoded: list[int] = []
    box_masks, features = TransformersSession.box_masks, TransformersSession._prompt_features

    def recorded(self: Any, t: int, boxes: np.ndarray, settings: Any) -> Any:
        prompted.append((t, boxes))
        return box_masks(self, t, boxes, settings)

    def counted(self: Any, t: int, settings: Any, *more: Any) -> Any:
        encoded.append(t)
        return features(self, t, settings, *more)

    monkeypatch.setattr(TransformersSession, "box_masks", recorded)
    monkeypatch.setattr(TransformersSession, "_prompt_features", counted)
    own = make_tracker(masks="sam2", sam2_checkpoint=tiny_sam2.shared_checkpoint())
    shares: list[float] = []
    own.progress = shares.append  # type: ignore[method-assign]
    video, q = scene(3), own.upstream.queries
    tracks = own.track(video, expressions(*TEXTS[:2]))
    assert encoded == [0, 1, 2] and [t for t, _ in prompted] == [0, 1, 2]
    boxes = np.stack([b for _, b in prompted], 1)
    for e, text in enumerate(TEXTS[:2]):
        expected = pixel_boxes(live(video, text)["boxes"].numpy(), video.size)
        np.testing.assert_allclose(boxes[e * q : (e + 1) * q], expected, rtol=0, atol=1e-2)
    with own.backend.open(video) as session:
        one, _ = box_masks(session, 1, boxes[q : q + 1, 1], own_settings())
    assert one.bytes_at(0, 0) == tracks.masks.bytes_at(q, 1) and tracks.masks.area().any()
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
    assert set(own.weight_hashes()) > {"referdino.safetensors"} and any(n.startswith("sam2/") for n in own.weight_hashes())


def own_settings() -> Any:
    from rvos_cache.trackers.sam2.settings import BoxSettings

    return build(BoxSettings, {}, "SAM 2")


def test_a_wrong_sam2_names_its_own_setting() -> None:
    with pytest.raises(InputError, match="--set sam2_checkpoint=FOLDER"):
        make_tracker(masks="sam2", sam2_checkpoint="./nowhere")
    other = "its config.json is of a model 'grounding-dino', expected 'sam2_video'; --set"
    with pytest.raises(InputError, match=f"{other} sam2_checkpoint=FOLDER$"):
        make_tracker(masks="sam2", sam2_checkpoint=str(shared_grounding()))
    with pytest.raises(InputError, match=f"{other} checkpoint=FOLDER$"):
        open_tracker("sam2-grid", build(GridSettings, {"checkpoint": str(shared_grounding())}, "SAM 2"))


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((360, 640), (360, 640)),
        ((720, 1280), (360, 640)),
        ((1280, 720), (640, 360)),
        ((480, 854), (360, 640)),
        ((100, 279), (360, 1004)),
    ],
)
def test_frames_are_resized_as_by_torchvision(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The longer side is rounded down: 854 * 360 / 480 = 640.5, 279 * 3.6 = 1004.4."""
    assert resized_size(size, 360) == expected


def test_a_short_side_with_fewer_cells_than_queries_is_one_line() -> None:
    own = make_tracker(masks="none")
    own.upstream.model.config.num_queries = 10_000
    with pytest.raises(InputError, match=r"32x49 pixels have \d+ cells, the model needs 10000; give a larger --set short_side"):
        own.track(scene(1), expressions(TEXTS[0]))


def test_tokens_that_do_not_fit_are_named_by_their_frame() -> None:
    own = make_tracker(masks="none", frames_per_pass=1)
    read, calls = own.upstream.read, Counter[str]()

    def broken(levels: Any, caption: str) -> Any:
        calls["read"] += 1
        queries = read(levels, caption)
        if calls["read"] == 3:
            queries.hs[0, 1, 2] = math.nan
        return queries

    own.upstream.read = broken  # type: ignore[method-assign]
    with pytest.raises(InputError, match="video v, frame 00002: queries of GroundingDINO are NaN or above 60000"):
        own.track(scene(4), expressions(TEXTS[0]))


# The card, and running again


@pytest.mark.filterwarnings("ignore:cut to 32 tokens")
def test_shards_and_another_run_give_the_same_cache(tmp_path: Path) -> None:
    settings = {"checkpoint": shared_upstream(), "masks": "head", **SMALL}
    extract(SCENE, tmp_path, "train", "gdino-queries", tmp_path / "whole.zarr", overrides=settings)
    for shard in ("1/2", "2/2"):
        # The number of frames in a pass is not part of the card.
        values = {**settings, "frames_per_pass": 1 if shard == "1/2" else 8}
        extract(SCENE, tmp_path, "train", "gdino-queries", tmp_path / "parts.zarr", overrides=values, shard=shard)
    again = extract(SCENE, tmp_path, "train", "gdino-queries", tmp_path / "parts.zarr", overrides=settings)
    assert (again.done, sorted(again.skipped)) == ([], ["v0", "v1"])
    whole, parts = (TrackCache(tmp_path / f"{name}.zarr") for name in ("whole", "parts"))
    assert_close(whole.read("v0").tracks, parts.read("v0").tracks)
    assert np.array_equal(whole.read("v1").tracks.tokens, parts.read("v1").tracks.tokens)
    assert whole.card.settings["masks"] == "head" and "frames_per_pass" not in whole.card.settings
    assert whole.card.channels == 64 and whole.card.label_iou == 0.5 and whole.card.expressions_digest
    content_digest(tmp_path / "whole.zarr")
    with pytest.raises(InputError, match=r"made with settings\.alpha = 0\.1, now it is 0\.2"):
        extract(SCENE, tmp_path, "train", "gdino-queries", tmp_path / "parts.zarr", overrides={**settings, "alpha": 0.2})
