"""The DVIS++ tracker on a tiny random checkpoint: tracks, features and measurements are those of the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from tiny_dvis import (
    CHANNELS,
    CLASSES,
    HEAD_FILE,
    QUERIES,
    SMALL,
    WIDTH,
    dvis_head,
    mask2former,
    shared_checkpoint,
    write_checkpoint,
)
from tiny_sam2 import without_gpu
from torch.nn import functional as F

from rvos_cache.contracts.scene import make_scene as scene
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_video
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackCache, write_tracks
from rvos_cache.trackers.dvis import DvisSettings, DvisTracker, track_scores
from rvos_cache.trackers.dvis.features import FeatureSizes, planned_bytes, video_bytes
from rvos_cache.trackers.dvis.generators import GeneratedTracks
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.types import GroundTruth, TrackSet

FRAMES, SIDE = 7, 64
SIZE = (41, 63)


def tracker(**settings: Any) -> DvisTracker:
    return DvisTracker(build(DvisSettings, {"checkpoint": shared_checkpoint(), **SMALL, **settings}, "dvis"))


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    """Values of two ways are compared; on a GPU they round differently."""
    with without_gpu():
        yield


@pytest.fixture(scope="module")
def offline() -> TrackSet:
    return tracker(keep_raw=True).track(scene(FRAMES)[0], ())


@pytest.fixture(scope="module")
def linked() -> TrackSet:
    return tracker(generator="frames").track(scene(FRAMES)[0], ())


@pytest.fixture(scope="module")
def outputs() -> Any:
    """Mask2Former's outputs for all frames."""
    video, geometry = scene(FRAMES)[0], square_geometry(SIZE, SIDE)
    with torch.no_grad():
        return mask2former("resnet")(torch.stack([geometry.image(video.read(t)) for t in range(FRAMES)]))


def near(a: Any, b: Any, atol: float = 3e-3) -> bool:
    """Equal up to the rounding to float16."""
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=3e-3, atol=atol))


def masks_of(logits: torch.Tensor) -> NDArray[np.bool_]:
    """Masks (N, T, H, W) of logits (N, T, h, w): bilinear to the input, then to the frame."""
    full = F.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return F.interpolate(full, SIZE, mode="bilinear", align_corners=False).numpy() > 0


@torch.no_grad()
def test_tracks_are_those_of_the_models_over_the_whole_video(offline: TrackSet, outputs: Any) -> None:
    head = dvis_head()
    q = outputs.transformer_decoder_last_hidden_state
    queries, raw = head.reid(q[None])
    tracked = head.tracker(queries, raw)
    refined = head.refiner(tracked.embeds, raw)
    scores = track_scores(refined.logits, tracked.logits)[0]
    query = offline.features["query"]
    assert query.tolist() == [n for n in scores.argsort(descending=True).tolist() if n in query]
    assert near(offline.tokens, refined.embeds[0, :, query].transpose(0, 1))
    logits = torch.einsum("tnc,tchw->nthw", refined.mask_embed[0, :, query], outputs.pixel_decoder_last_hidden_state)
    masks = masks_of(logits)
    assert masks.any((1, 2, 3)).all() and not masks.any((2, 3)).all()
    assert (masks ^ offline.masks.dense()).mean() < 1e-3
    assert near(offline.features["logits"], torch.stack([refined.logits[0], tracked.logits[0].mean(0)]))
    assert near(offline.features["raw"], q)


@torch.no_grad()
def test_classes_and_masks_can_be_computed_again_from_stored_tokens(offline: TrackSet) -> None:
    refined = dvis_head().refiner.heads(torch.from_numpy(offline.tokens).float().transpose(0, 1)[None])
    assert np.allclose(refined.logits[0], offline.features["logits"][0, offline.features["query"]], atol=1e-5)


def test_presence_is_the_mean_probability_of_the_pixels(offline: TrackSet, outputs: Any) -> None:
    area = offline.masks.area()
    assert ((offline.presence > 0.5) == (area > 0)).all() and (offline.presence[area == 0] == 0).all()
    geometry = square_geometry(SIZE, SIDE)
    with torch.no_grad():
        embed = dvis_head().refiner.mask_embed(torch.from_numpy(offline.tokens[0, 0]).float())
        logits = geometry.enlarge(torch.einsum("c,chw->hw", embed, outputs.pixel_decoder_last_hidden_state[0])[None])[0]
    assert np.isclose(offline.presence[0, 0], logits[logits > 0].sigmoid().mean(), atol=2e-3)


def test_pooled_mask_features_are_means_of_squares_of_cells(offline: TrackSet, outputs: Any) -> None:
    cells = outputs.pixel_decoder_last_hidden_state.numpy().reshape(FRAMES, CHANNELS, 4, 4, 4, 4).mean((3, 5))
    assert near(offline.features["f_mask_pooled"], cells.transpose(0, 2, 3, 1))
    assert "f_mask_pooled" not in tracker(pool=0).track(scene(1)[0], ()).features


@pytest.mark.parametrize("size", [1, 3])
def test_the_number_of_frames_per_pass_does_not_change_the_tracks(size: int, offline: TrackSet) -> None:
    tracks = tracker(keep_raw=True, frames_per_pass=size).track(scene(FRAMES)[0], ())
    assert np.array_equal(tracks.features["query"], offline.features["query"])
    assert near(tracks.tokens, offline.tokens) and near(tracks.features["raw"], offline.features["raw"])
    assert near(tracks.features["f_mask_pooled"], offline.features["f_mask_pooled"])
    assert (tracks.masks.dense() ^ offline.masks.dense()).mean() < 1e-3


def test_the_tracker_of_a_video_longer_than_its_window_carries_its_state_on() -> None:
    dvis, video = tracker(), scene(19)[0]
    q, _, _ = dvis.frame_features(video, square_geometry(SIZE, SIDE), lambda share: None)
    with torch.no_grad():
        head = dvis_head()
        queries, raw = head.reid(q[None])
        tracked = head.tracker(queries, raw)
        expected = head.refiner(tracked.embeds, raw)
    generated = dvis.generator.tracks(q, lambda share: None)
    assert near(generated.tokens, expected.embeds[0]) and near(generated.logits[1], tracked.logits[0].mean(0))


def test_tracks_are_the_best_queries_with_a_mask() -> None:
    """A head whose masks are mostly empty: tracks without any pixel are not tracks."""
    dvis, video = tracker(), scene(4)[0]
    dvis.generator.head = dvis_head(seed=17)  # type: ignore[union-attr]
    tracks = dvis.track(video, ())
    assert 0 < len(tracks.origin) < QUERIES and tracks.masks.area().any(1).all()
    assert len(tracks.tokens) == len(tracks.presence) == len(tracks.features["query"]) == len(tracks.origin)
    one = tracker(max_tracks=1).track(video, ())
    assert one.features["query"].tolist() == tracker().track(video, ()).features["query"][:1].tolist()


@torch.no_grad()
def test_a_dropped_track_takes_its_own_rows_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries from the last to the first, so that what is dropped is not at the end."""
    video, geometry = scene(4)[0], square_geometry(SIZE, SIDE)
    dvis = tracker()
    dvis.generator.head = dvis_head(seed=17)  # type: ignore[union-attr]
    monkeypatch.setattr(GeneratedTracks, "best", lambda self, count: np.arange(QUERIES)[::-1].copy())
    q, f_mask, _ = dvis.frame_features(video, geometry, lambda share: None)
    generated = dvis.generator.tracks(q, lambda share: None)
    embed = dvis.generator.mask_embed(generated.tokens)
    cells = torch.from_numpy(np.stack([f_mask[t] for t in range(4)])).float()
    masks = masks_of(torch.einsum("tnc,thwc->nthw", embed, cells))
    expected = [n for n in reversed(range(QUERIES)) if masks[n].any()]
    assert expected != list(reversed(range(QUERIES)))[: len(expected)]
    tracks = dvis.track(video, ())
    assert tracks.features["query"].tolist() == expected
    assert np.array_equal(tracks.tokens, generated.tokens[:, expected].transpose(0, 1))
    assert (tracks.masks.dense() == masks[expected]).mean() > 0.999
    assert ((tracks.presence > 0) == masks[expected].any((2, 3))).all()


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    generated = GeneratedTracks(torch.zeros(1, 4, 2), torch.zeros(2, 4, 3), torch.tensor([0.5, 0.9, 0.5, 0.9]))
    assert generated.best(3).tolist() == [1, 3, 0] and generated.best(9).tolist() == [1, 3, 0, 2]


@torch.no_grad()
def test_frames_links_the_queries_of_mask2former_with_their_own_masks(linked: TrackSet, outputs: Any) -> None:
    model = mask2former("resnet")
    queries = model.model.transformer_module.decoder.layernorm(outputs.transformer_decoder_last_hidden_state)
    order = [np.arange(QUERIES)]
    for t in range(1, FRAMES):
        cosines = F.cosine_similarity(queries[t - 1][order[-1]][:, None], queries[t][None], dim=-1)
        order.append(linear_sum_assignment(cosines.numpy(), maximize=True)[1])
    assert any((rows != order[0]).any() for rows in order)
    query = linked.features["query"]
    assert near(linked.tokens, torch.stack([queries[t][order[t][query]] for t in range(FRAMES)], 1))
    logits = torch.stack([outputs.class_queries_logits[t][rows] for t, rows in enumerate(order)]).mean(0)
    assert near(linked.features["logits"], logits[None], atol=0.01)
    scores = logits.softmax(-1)[:, :-1].amax(-1)
    assert query.tolist() == scores.argsort(descending=True).tolist()
    masks = masks_of(torch.stack([outputs.masks_queries_logits[t][order[t][query]] for t in range(FRAMES)], 1))
    assert (masks ^ linked.masks.dense()).mean() < 2e-3
    assert tracker(generator="frames").channels == linked.tokens.shape[2] == CHANNELS


def test_a_checkpoint_with_vit_adapter_tracks_and_is_the_same_after_saving(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "adapter")
    video = scene(3)[0]
    for generator in ("offline", "frames"):
        dvis = DvisTracker(DvisSettings(checkpoint=str(tmp_path), generator=generator, keep_raw=True, **SMALL))
        tracks = dvis.track(video, ())
        geometry = square_geometry(SIZE, SIDE)
        with torch.no_grad():
            out = mask2former("adapter")(torch.stack([geometry.image(video.read(t)) for t in range(3)]))
        assert near(tracks.features["raw"], out.transformer_decoder_last_hidden_state)


def test_frames_needs_no_head(tmp_path: Path) -> None:
    mask2former("resnet").save_pretrained(tmp_path)
    settings = DvisSettings(checkpoint=str(tmp_path), generator="frames", **SMALL)
    assert set(DvisTracker(settings).weight_hashes()) == {tmp_path.name}
    with pytest.raises(InputError, match=r"the folder has no dvis_head\.safetensors, so rvos-cache convert-dvis"):
        DvisTracker(settings.model_copy(update={"generator": "offline"}))


def two_objects(annotated: tuple[int, ...]) -> GroundTruth:
    masks = np.zeros((2, FRAMES, *SIZE), bool)
    masks[0, annotated, 3:20, 5:31] = True
    masks[1, annotated[1:], 30:, 40:] = True
    return GroundTruth(("a", "b"), RleMasks.from_dense(masks), np.isin(np.arange(FRAMES), annotated))


@torch.no_grad()
def test_the_measurements_are_sums_over_the_cells_of_the_map(offline: TrackSet, outputs: Any) -> None:
    truth = two_objects((0, 2, 5))
    record = extract_video(tracker(), scene(FRAMES)[0], (), truth)
    embed = dvis_head().refiner.mask_embed(torch.from_numpy(offline.tokens).float())
    x = torch.einsum("ntc,tchw->nthw", embed, outputs.pixel_decoder_last_hidden_state.half().float())
    y = torch.stack([square_geometry(SIZE, SIDE).shares(torch.from_numpy(truth.masks.dense()[:, t])) for t in range(FRAMES)], 1)
    both = torch.stack([torch.einsum("nthw,athw->nat", v, y) for v in (x.sigmoid(), x)], -1)
    track = torch.stack([x.sigmoid().sum((2, 3)), F.softplus(x).sum((2, 3))], -1)
    assert np.allclose(record.measurements["soft"], both, rtol=1e-3, atol=1e-2)
    assert np.allclose(record.measurements["soft_track"], track, rtol=1e-3, atol=1e-2)
    assert np.allclose(record.measurements["soft_truth"], y.sum((2, 3)), atol=1e-4) and y.sum() > 0
    assert record.measurements["soft_cells"].tolist() == [256, 0, 256, 0, 0, 256, 0]


def test_a_hidden_split_has_the_same_tracks_and_no_measurements() -> None:
    dvis, (video, truth) = tracker(), scene(4)
    hidden, shown = extract_video(dvis, video, (), None), extract_video(dvis, video, (), truth)
    assert hidden.measurements == {} and set(shown.measurements) == {spec.name for spec in dvis.measurement_specs}
    assert hidden.tracks.masks == shown.tracks.masks and np.array_equal(hidden.tracks.tokens, shown.tracks.tokens)
    assert np.array_equal(hidden.tracks.presence, shown.tracks.presence)


def test_a_cache_of_a_hidden_split_lacks_the_sums(tmp_path: Path) -> None:
    extract(
        "rvos_cache.contracts.scene:SceneDataset", tmp_path, "hidden", "dvis", tmp_path / "c.zarr", videos=["v0"],
        overrides={"checkpoint": shared_checkpoint(), **SMALL},
    )  # fmt: skip
    cache = TrackCache(tmp_path / "c.zarr")
    assert cache.info("v0").tracks and cache.feature("v0", "f_mask_pooled").any()
    with pytest.raises(InputError, match="hides its ground truth"):
        cache.measurement("v0", "soft")


def test_the_cache_stores_features_and_measurements_as_declared(tmp_path: Path) -> None:
    dvis, (video, truth) = tracker(keep_raw=True), scene(4)
    record = extract_video(dvis, video, (), truth)
    card = Card(
        kind="tracks", dataset="d", split="s", producer="dvis", channels=dvis.channels,
        feature_specs=[spec.to_json() for spec in dvis.feature_specs],
        measurement_specs=[spec.to_json() for spec in dvis.measurement_specs],
    )  # fmt: skip
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), record)
    cache = TrackCache(tmp_path / "c.zarr")
    assert np.array_equal(cache.tokens("v"), record.tracks.tokens) and cache.tokens("v").shape[2] == WIDTH
    for spec in dvis.feature_specs:
        assert np.array_equal(cache.feature("v", spec.name), record.tracks.features[spec.name]), spec.name
    assert np.array_equal(cache.feature("v", "f_mask_pooled", slice(1, 4, 2)), record.tracks.features["f_mask_pooled"][1:4:2])


@pytest.mark.parametrize("settings", [{}, {"keep_raw": True, "max_tracks": 4}, {"pool": 0}, {"generator": "frames"}])
def test_planned_bytes_are_those_of_the_arrays(settings: dict[str, Any]) -> None:
    dvis, (video, _) = tracker(**settings), scene(FRAMES)
    four = GroundTruth(tuple("abcd"), RleMasks.from_dense(np.ones((4, FRAMES, *SIZE), bool)), np.ones(FRAMES, bool))
    record = extract_video(dvis, video, (), four)
    planned = video_bytes(dvis.settings, dvis.sizes, FRAMES)
    arrays = {**record.tracks.features, **record.measurements, "tokens": record.tracks.tokens, "presence": record.tracks.presence}
    assert {name: value.nbytes for name, value in arrays.items()} == {n: b for n, b in planned.items() if n != "mask_rle"}
    plan = dvis.planned_bytes([(SIZE, FRAMES), (SIZE, 2)])
    assert plan.sizes[plan.value] == sum(planned.values()) + sum(video_bytes(dvis.settings, dvis.sizes, 2).values())


def test_planned_bytes_of_mevis_are_the_published_estimate() -> None:
    """79 frames, the mean of MeViS, and 2,006 videos: 4.05 MB of tokens of 50 tracks, 16.2 MB of pooled mask features."""
    sizes = FeatureSizes(queries=100, channels=256, token_channels=512, mask_channels=256, classes=25, rows=2)
    settings = DvisSettings(checkpoint="x")
    one = video_bytes(settings, sizes, 79)
    assert round(one["tokens"] / 1e6, 2) == 4.04 and round(one["f_mask_pooled"] / 1e6, 1) == 16.2
    assert round(sum(one[name] for name in ("soft", "soft_track", "soft_truth")) / 1e6, 2) == 0.16
    plan = planned_bytes(settings, sizes, [((720, 1280), 79)] * 2006)
    assert round(plan.sizes["max_tracks=50 pool=20"] / 1e9, 1) == round(2006 * sum(one.values()) / 1e9, 1)
    assert plan.sizes["max_tracks=50 pool=0"] < plan.sizes["max_tracks=50 pool=20"] < plan.sizes["max_tracks=100 pool=20"]


def test_a_video_of_one_frame_and_progress() -> None:
    for generator in ("offline", "frames"):
        dvis, shares = tracker(generator=generator), list[float]()
        dvis.progress = shares.append  # type: ignore[method-assign]
        assert dvis.track(scene(1, False)[0], ()).masks.shape[1] == 1
        dvis.track(scene(10)[0], ())
        last = shares[shares.index(0.0, 1) :]
        assert last == sorted(last) and len(last) > 5 and last[0] == 0 and last[-1] <= 1


def test_features_that_do_not_fit_in_float16_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    for file, name in (
        ("model.safetensors", "model.pixel_level_module.decoder.mask_projection.bias"),
        (HEAD_FILE, "refiner.decoder_norm.bias"),
    ):
        tensors = load_file(tmp_path / file)
        for value in (7e4, float("nan")):
            changed = tensors[name].clone()
            changed[3] = value
            save_file({**tensors, name: changed}, tmp_path / file, {"format": "pt"})
            with pytest.raises(InputError, match=r"video v, frame 00000: DVIS\+\+'s features are NaN or above 60000"):
                DvisTracker(DvisSettings(checkpoint=str(tmp_path), **SMALL)).track(scene(2)[0], ())
        save_file(tensors, tmp_path / file, {"format": "pt"})


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    before = DvisTracker(DvisSettings(checkpoint=str(tmp_path), **SMALL)).weight_hashes()
    assert set(before) == {tmp_path.name, HEAD_FILE}
    save_file(dvis_head(seed=5).official(), tmp_path / HEAD_FILE, {"format": "pt"})
    after = DvisTracker(DvisSettings(checkpoint=str(tmp_path), **SMALL)).weight_hashes()
    assert before[tmp_path.name] == after[tmp_path.name] and before[HEAD_FILE] != after[HEAD_FILE]


def test_two_parts_of_different_dvis_checkpoints_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    tensors = dvis_head().official()
    norm = "sem_seg_head.predictor.decoder_norm.weight"
    save_file({**tensors, norm: tensors[norm] + 1}, tmp_path / HEAD_FILE, {"format": "pt"})
    with pytest.raises(InputError, match="different decoder_norm weights; convert one checkpoint"):
        DvisTracker(DvisSettings(checkpoint=str(tmp_path), **SMALL))
    other = {"refiner.mask_embed.layers.2.weight": torch.ones(16, WIDTH), "refiner.mask_embed.layers.2.bias": torch.ones(16)}
    save_file({**tensors, **other}, tmp_path / HEAD_FILE, {"format": "pt"})
    with pytest.raises(InputError, match=f"Mask2Former has {CHANNELS} channels of the mask features, .* 16"):
        DvisTracker(DvisSettings(checkpoint=str(tmp_path), **SMALL))


def test_what_convert_dvis_has_not_written_is_named(tmp_path: Path) -> None:
    """The likeliest slips: no folder, the released file, a folder of another model."""

    def message(checkpoint: Path | str) -> str:
        with pytest.raises(InputError) as error:
            DvisTracker(DvisSettings(checkpoint=str(checkpoint), **SMALL))
        return str(error.value)

    (tmp_path / "DVIS.pth").write_bytes(b"released")
    assert "DVIS.pth': is a file, expected a folder; convert it first: rvos-cache convert-dvis" in message(tmp_path / "DVIS.pth")
    write_checkpoint(tmp_path / "other")
    (tmp_path / "other" / HEAD_FILE).unlink()
    assert f"the folder has no {HEAD_FILE}, so rvos-cache convert-dvis has not written it" in message(tmp_path / "other")
    for absent in (tmp_path / "none", "weights/none"):
        assert "there is no such folder, nor one in RVOS_CHECKPOINTS" in message(absent)
        assert "give a folder that rvos-cache convert-dvis wrote" in message(absent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "'checkpoint' is required"),
        ({"checkpoint": "x", "side": 650}, "'side'"),
        ({"checkpoint": "x", "side": 0}, "'side'"),
        ({"checkpoint": "x", "side": 320, "pool": 30}, "has 80 cells along a side, which pool=30 does not divide"),
        ({"checkpoint": "x", "generator": "online"}, "'generator'"),
        ({"checkpoint": "x", "max_tracks": 0}, "'max_tracks'"),
    ],
)
def test_impossible_dvis_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(DvisSettings, settings, "dvis")


def test_the_sizes_are_those_of_the_checkpoint() -> None:
    assert tracker().sizes == FeatureSizes(QUERIES, CHANNELS, WIDTH, CHANNELS, CLASSES, 2)
