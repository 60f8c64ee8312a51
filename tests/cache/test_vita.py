"""The VITA tracker on a tiny random checkpoint: it stores the outputs of the models, the same in every profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_vita import CHANNELS, SIZES, SMALL, mask2former, shared_checkpoint, vita_head, write_checkpoint

from rvos_cache.contracts.scene import make_scene as scene
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_video
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackCache, write_tracks
from rvos_cache.trackers.vita import VideoQueries, VitaHead, VitaSettings, VitaTracker, load_head, vita_geometry
from rvos_cache.trackers.vita.basis import Basis
from rvos_cache.trackers.vita.tracker import best_queries
from rvos_cache.types import TrackSet, Video

pytestmark = pytest.mark.usefixtures("file_on_cpu")


def tracker(**settings: Any) -> VitaTracker:
    return VitaTracker(build(VitaSettings, {"checkpoint": shared_checkpoint(), **SMALL, **settings}, "vita"))


def video(frames: int = 7, size: tuple[int, int] = (41, 63)) -> Video:
    return scene(frames, True, size)[0]


def clip(whole: Video, frames: slice) -> Video:
    return Video(whole.video_id, whole.frame_names[frames], whole.size, lambda t: whole.read(range(len(whole))[frames][t]))


def features(vita: VitaTracker, frames: Video) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Frame queries and mask features of a video."""
    q_f, spool = vita.frame_features(frames, vita.geometry(frames))
    return q_f, np.stack([spool[t] for t in range(len(spool))])


@pytest.fixture(scope="module")
def exact() -> TrackSet:
    return tracker(profile="exact").track(video(), ())


def f_mask_of(tracks: TrackSet) -> NDArray[np.float16]:
    return np.stack(list(tracks.features["f_mask"]))


def near(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal up to the last digit of float16, which may differ after another order of float32 additions."""
    return a.shape == b.shape and bool(np.allclose(a.astype(np.float32), b.astype(np.float32), rtol=1e-3, atol=1e-3))


def test_frame_queries_are_the_input_of_both_heads_of_mask2former(exact: TrackSet) -> None:
    model = mask2former()
    frames = video()
    geometry = vita_geometry(frames.size, 64, 96)
    output = model(torch.stack([geometry.image(frames.read(t)) for t in range(7)]))
    q_f = torch.from_numpy(exact.features["q_f"]).float()
    assert q_f.shape == (7, SIZES.frame_queries, CHANNELS)
    assert torch.allclose(model.class_predictor(q_f), output.class_queries_logits, atol=0.02)
    # Not the last state of the decoder as transformers returns it, before its LayerNorm.
    assert not torch.allclose(q_f, output.transformer_decoder_last_hidden_state, atol=0.1)


def test_mask_features_are_vitas_projection_of_the_input_of_mask2formers_projection(exact: TrackSet) -> None:
    model = mask2former()
    inputs: list[torch.Tensor] = []
    projection = model.model.pixel_level_module.decoder.mask_projection
    projection.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    frames = video()
    geometry = vita_geometry(frames.size, 64, 96)
    output = model(torch.stack([geometry.image(frames.read(t)) for t in range(7)]))
    expected = torch.nn.functional.conv2d(inputs[0], vita_head().vita_mask_features.weight, vita_head().vita_mask_features.bias)
    f_mask = torch.from_numpy(f_mask_of(exact)).float()
    assert f_mask.shape == (7, *geometry.cells(), CHANNELS)
    assert torch.allclose(f_mask, expected.permute(0, 2, 3, 1), atol=5e-3)
    assert not torch.allclose(f_mask, output.pixel_decoder_last_hidden_state.permute(0, 2, 3, 1), atol=0.1)


def test_features_of_a_clip_are_a_slice_of_the_videos() -> None:
    """Frames do not influence each other before the head, so stage two may take clips from a stored video."""
    vita, whole = tracker(), video()
    q_f, f_mask = features(vita, whole)
    for frames in (slice(2, 5), slice(6, 7), slice(0, 7, 3)):
        some_q, some_f = features(vita, clip(whole, frames))
        assert near(some_q, q_f[frames]) and near(some_f, f_mask[frames])


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_number_of_frames_per_pass_does_not_change_the_result(size: int, exact: TrackSet) -> None:
    tracks = tracker(profile="exact", frames_per_pass=size).track(video(), ())
    assert near(tracks.features["q_f"], exact.features["q_f"]) and near(f_mask_of(tracks), f_mask_of(exact))
    assert np.array_equal(tracks.features["query"], exact.features["query"])
    assert (tracks.masks.dense() ^ exact.masks.dense()).mean() < 1e-3 and near(tracks.tokens, exact.tokens)


def test_the_head_returns_the_stored_outputs_for_the_stored_queries(exact: TrackSet) -> None:
    q_f = torch.from_numpy(exact.features["q_f"]).float()
    # The head that a selector loads from the same folder, in a batch with another clip.
    queries = load_head(shared_checkpoint())(torch.stack([q_f, q_f.flip(0)]))
    for name in ("q_v", "logits", "mask_embed"):
        assert np.allclose(getattr(queries, name)[0].numpy(), exact.features[name], atol=1e-5), name


def test_float16_hardly_changes_the_class_scores(exact: TrackSet) -> None:
    frames = video()
    geometry = vita_geometry(frames.size, 64, 96)
    vita = tracker()
    unrounded, _ = vita.segmenter(torch.stack([geometry.image(frames.read(t)) for t in range(7)]))
    queries = vita.head(unrounded[None])
    assert np.abs(queries.logits[0].numpy() - exact.features["logits"]).max() < 0.05
    assert set(best_queries(queries, 4).tolist()) >= set(exact.features["query"][:4].tolist())


def test_masks_presence_and_tokens_agree_with_plain_loops() -> None:
    """In a frame of the input's size a cell is four by four pixels."""
    tracks = tracker(profile="exact", max_tracks=4).track(video(3, (64, 96)), ())
    f_mask, embeddings = f_mask_of(tracks).astype(np.float32), tracks.features["mask_embed"]
    geometry = vita_geometry((64, 96), 64, 96)
    assert geometry.resized == geometry.padded == (64, 96) and tracks.masks.shape[0] > 1
    for n, query in enumerate(tracks.features["query"]):
        for t in range(3):
            logits = torch.from_numpy(f_mask[t] @ embeddings[query])
            enlarged = torch.nn.functional.interpolate(logits[None, None], scale_factor=4.0, mode="bilinear")[0, 0].numpy()
            mask = tracks.masks.decode(n, t)
            assert ((enlarged > 0) != mask)[np.abs(enlarged) > 1e-4].sum() == 0
            if not mask.any():
                assert tracks.presence[n, t] == 0 and (tracks.tokens[n, t] == 0).all()
                continue
            assert np.isclose(tracks.presence[n, t], (1 / (1 + np.exp(-enlarged[mask].astype(np.float64)))).mean(), atol=1e-3)
            mean = np.mean([f_mask[t, y // 4, x // 4] for y, x in np.argwhere(mask)], axis=0)
            assert np.allclose(tracks.tokens[n, t].astype(np.float32), mean, atol=2e-3)


def test_tracks_are_the_best_queries_with_a_mask() -> None:
    tracks = tracker(max_tracks=9).track(video(), ())
    scores = VideoQueries(*(torch.from_numpy(tracks.features[n])[None] for n in ("q_v", "logits", "mask_embed"))).scores()[0]
    queries = tracks.features["query"]
    assert len(set(queries.tolist())) == len(queries) == len(tracks.origin) > 1 and set(tracks.origin) == {"query"}
    assert (np.diff(scores.numpy()[queries]) <= 0).all()
    assert (tracks.masks.area().sum(1) > 0).all()
    three = tracker(max_tracks=3).track(video(), ())
    assert 0 < len(three.origin) <= 3 and set(three.features["query"].tolist()) <= set(np.argsort(-scores.numpy())[:3].tolist())


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    assert best_queries(VideoQueries(logits, logits, logits), 3).tolist() == [1, 3, 0]
    assert best_queries(VideoQueries(logits, logits, logits), 9).tolist() == [1, 3, 0, 2]


def test_tracks_are_the_same_in_every_profile(exact: TrackSet, tmp_path: Path) -> None:
    Basis(np.eye(CHANNELS, 5, dtype=np.float32), np.eye(CHANNELS, 5, dtype=np.float32)).save(tmp_path / "b.safetensors")
    others = [
        {"profile": "selection_only"},
        {"profile": "frames"},
        {"profile": "low_rank", "basis": str(tmp_path / "b.safetensors")},
    ]
    for settings in others:
        vita = tracker(**settings)
        tracks = vita.track(video(), ())
        assert tracks.masks == exact.masks and np.array_equal(tracks.tokens, exact.tokens)
        assert set(tracks.features) == {spec.name for spec in vita.feature_specs}
        for name in ("q_f", "q_v", "logits", "mask_embed", "query"):
            assert np.array_equal(tracks.features[name], exact.features[name]), name


def test_one_frame_and_a_video_longer_than_a_window_work() -> None:
    for frames in (1, 13):
        tracks = tracker(profile="exact").track(video(frames), ())
        assert tracks.masks.shape[1] == frames == len(f_mask_of(tracks)) == len(tracks.features["q_f"])


def test_the_cache_stores_the_features_as_declared(exact: TrackSet, tmp_path: Path) -> None:
    vita = tracker(profile="exact")
    frames, truth = scene(7, True)
    record = extract_video(vita, frames, (), truth)
    specs = [{"name": s.name, "dims": list(s.dims), "dtype": s.dtype, "by_frame": s.by_frame} for s in vita.feature_specs]
    card = Card(kind="tracks", dataset="d", split="s", producer="vita", channels=vita.channels, feature_specs=specs)
    write_tracks(CacheWriter(tmp_path / "c.zarr", card), record)
    cache = TrackCache(tmp_path / "c.zarr")
    for spec in vita.feature_specs:
        stored = cache.feature("v", spec.name)
        assert stored.dtype == np.dtype(spec.dtype) and len(stored.shape) == len(spec.dims)
        expected = f_mask_of(exact) if spec.name == "f_mask" else exact.features[spec.name]
        assert np.array_equal(stored, expected), spec.name
    assert np.array_equal(cache.feature("v", "f_mask", slice(2, 4)), f_mask_of(exact)[2:4])
    assert (tmp_path / "c.zarr/videos/v/features/f_mask/c.6.0.0.0").exists()
    assert cache.overlap("v").inter.shape == (len(exact.origin), 1, 7)


def test_features_that_do_not_fit_in_float16_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "vita_head.safetensors"
    tensors = load_file(path)
    tensors["vita_module.vita_mask_features.bias"][3] = 7e4
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"video v, frame 00000: VITA's features are NaN or above 60000"):
        VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL)).track(video(2), ())
    tensors["vita_module.vita_mask_features.bias"][3] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="are NaN or above"):
        VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL)).track(video(2), ())


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    before = VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL)).weight_hashes()
    assert set(before) == {tmp_path.name, "vita_head.safetensors"}
    other: VitaHead = vita_head(seed=5)
    save_file(other.official(), tmp_path / "vita_head.safetensors", {"format": "pt"})
    after = VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL)).weight_hashes()
    assert before[tmp_path.name] == after[tmp_path.name]
    assert before["vita_head.safetensors"] != after["vita_head.safetensors"]


def test_a_missing_or_damaged_head_is_an_error_of_one_line(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "vita_head.safetensors"
    raw = path.read_bytes()
    for damage in (raw[:50], b"", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(
            InputError, match=r"vita_head\.safetensors.* (cannot be read|not a readable) .* rvos-cache convert-vita"
        ) as caught:
            VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL))
        assert "\n" not in str(caught.value)
        path.write_bytes(raw)


def test_two_parts_of_different_checkpoints_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    write_checkpoint(tmp_path)
    save_file(vita_head(replace(SIZES, frame_queries=5)).official(), tmp_path / "vita_head.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"Mask2Former has 6 frame queries, vita_head\.safetensors 5"):
        VitaTracker(VitaSettings(checkpoint=str(tmp_path), **SMALL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "'checkpoint' is required"),
        ({"checkpoint": "x", "profile": "low_rank"}, "profile=low_rank needs basis=FILE"),
        ({"checkpoint": "x", "basis": "b"}, "profile=low_rank needs basis=FILE"),
        ({"checkpoint": "x", "profile": "p0"}, "'profile'"),
        ({"checkpoint": "x", "short_side": 0}, "'short_side'"),
        ({"checkpoint": "x", "keep_every": 0}, "'keep_every'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(VitaSettings, settings, "vita")


def test_a_basis_of_other_channels_is_refused(tmp_path: Path) -> None:
    Basis(np.ones((8, 2), np.float32), np.ones((8, 2), np.float32)).save(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=f"the basis has 8 channels, .* has {CHANNELS}"):
        tracker(profile="low_rank", basis=str(tmp_path / "b.safetensors"))
