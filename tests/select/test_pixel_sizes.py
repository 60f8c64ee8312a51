"""Frames stored at another size than the video, and in a cache without tracks beside that of another tracker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_refcoco import write_refcoco
from tiny_caches import write
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.extraction import extract, extract_text
from rvos_cache.masks import RleMasks
from rvos_cache.shapes import write_shapes
from rvos_cache.store import CacheWriter, SelectionCache, TrackCache, read_card, write_tracks
from rvos_cache.trackers.base import Tracker
from rvos_cache.types import FeatureSpec, TrackSet, Video
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import token_channels
from rvos_select.data.collate import collate
from rvos_select.data.pixels import StoredPixels
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.sources import cached_sets
from rvos_select.data.texts import TextSource
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.selectors import Selector
from rvos_select.training import train as loop
from rvos_select.training.train import train

SIZE = (16, 32)
REQUIRES = ("pixels", "truth", "overlap")


class TinyFrames(Tracker):
    """The frames at SIZE, and no track."""

    channels = 0
    feature_specs = (FeatureSpec("rgb", ("T", "h", "w", 3), "uint8", by_frame=True),)

    def track(self, video: Video, expressions: Any) -> TrackSet:
        frames = (Image.fromarray(video.read(t)).resize(SIZE[::-1], Image.Resampling.BILINEAR) for t in range(len(video)))
        masks = RleMasks.empty(0, len(video), video.size)
        return TrackSet.from_masks(np.zeros((0, len(video), 0)), masks, features={"rgb": np.stack([*map(np.asarray, frames)])})


class NativeFrames(TinyFrames):
    """The frames as they are."""

    def track(self, video: Video, expressions: Any) -> TrackSet:
        frames = np.stack([video.read(t) for t in range(len(video))])
        return TrackSet.from_masks(
            np.zeros((0, len(video), 0)), RleMasks.empty(0, len(video), video.size), features={"rgb": frames}
        )


class Caches(dict[str, Path]):
    """Paths by name: frames, flow and text of three videos, and text and frames of another dataset's images."""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    folder = tmp_path_factory.mktemp("sizes")
    write_shapes(folder / "data", 4, 1)
    out = Caches()
    for name, tracker in (("frames", "test_pixel_sizes:TinyFrames"), ("flow", "flow")):
        extract("mevis", folder / "data", "train", tracker, folder / f"{name}.zarr", limit=3)
        out[name] = folder / f"{name}.zarr"
    extract_text("mevis", folder / "data", "train", "hashed", folder / "text.zarr")
    return Caches({**out, "text": folder / "text.zarr", "data": folder / "data"})


def load(tracks: list[Path], text: Path, requires: tuple[str, ...] = REQUIRES) -> list[VideoSample]:
    source, words = TrackSource(tracks), TextSource([text])
    thresholds = {str(cache.path): 0.5 for cache in source.caches}
    return [load_video(source, words, v, thresholds=thresholds, requires=requires) for v in source.video_ids()]


def nearest(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(SIZE[::-1], Image.Resampling.NEAREST)) > 0


def test_the_truth_has_the_size_of_the_pixels(caches: Caches) -> None:
    """Of clips, of whole videos that share a batch and that do not; the sizes are those of the videos, for predicted masks."""
    samples = load([caches["frames"]], caches["text"])
    sample = samples[0]
    assert isinstance(sample.pixels, StoredPixels) and sample.pixels.size == SIZE != sample.size
    clip = collate([(samples[0], 0), (samples[1], 1)], REQUIRES, frames=[[1, 3], [0, 0]])
    shared = collate([(sample, 0), (sample, 1)], REQUIRES)
    for batch, rows in (
        (clip, [(samples[0], 0, [1, 3]), (samples[1], 1, [0, 0])]),
        (shared, [(sample, 0, None), (sample, 1, None)]),
    ):
        assert batch.pixels is not None and batch.truth is not None
        assert batch.sizes == tuple(s.size for s in (samples[:2] if batch is clip else samples[:1]))
        assert {tuple(p[:].shape[1:]) for p in batch.pixels} == {(*SIZE, 3)}
        for truth, (own, row, frames) in zip(batch.truth, rows):
            assert own.truth is not None and own.objects is not None
            objects, chosen = own.objects[row], frames or range(own.tokens.shape[1])
            assert truth.shape == (len(objects), len(chosen), *SIZE) and truth.dtype == torch.bool and truth.any()
            for a, k in enumerate(objects):
                for i, t in enumerate(chosen):
                    np.testing.assert_array_equal(truth[a, i].numpy(), nearest(own.truth.masks.decode(k, t)))


def test_a_selector_without_pixels_has_masks_of_the_size_of_the_video(caches: Caches) -> None:
    sample = load([caches["frames"]], caches["text"], ("truth", "overlap"))[0]
    batch = collate([(sample, 0)], ("truth",), frames=[[0, 1]])
    assert batch.truth is not None and batch.truth[0].shape[2:] == sample.size
    unchanged = load([caches["flow"]], caches["text"])[0]
    batch = collate([(unchanged, 0)], REQUIRES, frames=[[0, 1]])
    assert batch.truth is not None and batch.pixels is not None
    assert batch.truth[0].shape[2:] == unchanged.size == tuple(batch.pixels[0].shape[1:3])


@pytest.mark.parametrize("order", [("flow", "frames"), ("frames", "flow")])
def test_frames_beside_tracks(caches: Caches, order: tuple[str, str]) -> None:
    """Tracks, tokens and features are the flow tracker's alone, pixels those of the cache of frames, in either order."""
    paths = [caches[name] for name in order]
    alone, joined = load([caches["flow"]], caches["text"]), load(paths, caches["text"])
    for own, both in zip(alone, joined):
        for name in ("tokens", "presence", "target", "candidates"):
            assert torch.equal(getattr(own, name), getattr(both, name))
        assert len(own.tokens) and own.overlap is not None and both.overlap is not None
        np.testing.assert_array_equal(own.overlap.inter, both.overlap.inter)
        assert both.pixels is not None and both.pixels.size == SIZE
    source = TrackSource(paths)
    assert source.channels == token_channels(source.cards) == read_card(caches["flow"]).channels > 0
    np.testing.assert_array_equal(
        source.masks(source.video_ids()[0]).area(), TrackSource([caches["flow"]]).masks(source.video_ids()[0]).area()
    )
    assert cached_sets(paths, [caches["text"]])["mevis/train"].tracks.channels == source.channels


def test_a_feature_of_tracks_is_read_beside_frames(tmp_path: Path, caches: Caches) -> None:
    """Its axis N has the tracks of the cache that holds it; of two caches with tracks it would be an error."""
    card = read_card(caches["flow"])
    spec = FeatureSpec("own", ("N", 2), "float32")
    writer = CacheWriter(tmp_path / "own.zarr", card.model_copy(update={"feature_specs": [spec.to_json()]}))
    values = {}
    for video_id in TrackCache(caches["flow"]).video_ids():
        record = TrackCache(caches["flow"]).read(video_id)
        values[video_id] = np.random.default_rng(0).random((len(record.tracks.tokens), 2)).astype(np.float32)
        write_tracks(writer, replace(record, tracks=replace(record.tracks, features={"own": values[video_id]})))
    joined = TrackSource([caches["frames"], tmp_path / "own.zarr"])
    for video_id, expected in values.items():
        np.testing.assert_array_equal(joined.feature(video_id, "own"), expected)
    with pytest.raises(InputError, match="flow.zarr does not hold it"):
        TrackSource([caches["flow"], tmp_path / "own.zarr"]).feature(video_id, "own")


def test_caches_with_tracks_still_need_the_same_channels(tmp_path: Path, caches: Caches) -> None:
    other, text = write(tmp_path, "train", ["v0"], dataset="mevis")
    for read in (TrackSource, lambda paths: cached_sets(paths, [text])):
        with pytest.raises(
            InputError, match="flow.zarr: tokens of 8 channels, .*flow.zarr has .*; caches that are read together"
        ):
            read([caches["frames"], caches["flow"], other])


def test_no_channels_are_for_no_tracks(tmp_path: Path, caches: Caches) -> None:
    writer = CacheWriter(tmp_path / "t.zarr", read_card(caches["flow"]).model_copy(update={"channels": 0}))
    record = TrackCache(caches["flow"]).read(TrackCache(caches["flow"]).video_ids()[0])
    tracks = replace(record.tracks, tokens=record.tracks.tokens[..., :0])
    with pytest.raises(InputError, match=r"flow: declared channels = 0, which is for no tracks, and returned \d"):
        write_tracks(writer, replace(record, tracks=tracks))


def test_a_selector_of_tracks_needs_a_cache_of_them(tmp_path: Path, caches: Caches) -> None:
    with pytest.raises(InputError, match="mean-cosine: selects among tracks, and none of the caches holds any"):
        train(caches["frames"], caches["text"], selector="mean-cosine", out=tmp_path / "run")


class Painter(Selector):
    """Draws where a pixel's colour, mapped by a layer, is above 0: one query, the size of the video."""

    requires = ("pixels", "truth")
    draws = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.layer = nn.Linear(3, 1)

    def maps(self, pixels: Any) -> Tensor:
        return self.layer(pixels[:].float() / 255)[..., 0]

    def forward(self, batch: Any) -> Tensor:
        return self.layer.weight.new_zeros(len(batch), 1) + self.layer.weight.sum() * 0

    def loss(self, batch: Any) -> dict[str, Tensor]:
        each = [
            nn.functional.binary_cross_entropy_with_logits(self.maps(p), t.any(0).float())
            for p, t in zip(batch.pixels, batch.truth)
        ]
        return {"loss": torch.stack(each).mean()}

    def draw(self, batch: Any, queries: Tensor) -> Any:
        maps = self.maps(batch.pixels[0])[None]
        masks = nn.functional.interpolate(maps, batch.sizes[0], mode="bilinear")[0] > 0
        yield masks[None].expand(int(queries.sum()), -1, -1, -1)


@pytest.mark.parametrize("names", [("frames",), ("flow", "frames"), ("frames", "flow")])
def test_a_run_on_frames(tmp_path: Path, caches: Caches, names: tuple[str, ...]) -> None:
    """Training in parts, with an augmentation, validation of whole videos, and prediction at the size of the video."""
    paths = [caches[name] for name in names]
    values = {"batch": "clip", "batch_size": 3, "micro_batch": 2, "clip": {"frames": 2}, "epochs": 1, "optim": {"lr": 1e-2}}
    augment = ["horizontal_flip_frames"]
    run = train(
        paths, caches["text"], selector="test_pixel_sizes:Painter", augment=augment, hold_out=0.4, out=tmp_path / "run", **values
    )
    row = json.loads((run / "metrics.jsonl").read_text())
    assert np.isfinite([row["train/loss"], row["valid/loss"], row["valid/jf"]]).all()
    channels = read_card(caches["flow"]).channels if "flow" in names else 0
    assert json.loads((run / "best" / "config.json").read_text())["token_channels"] == channels
    with pytest.warns(UserWarning, match="trained on"):
        selections = SelectionCache(predict(run, paths, caches["text"], tmp_path / "s.zarr"))
    video_id = selections.video_ids()[0]
    assert TrackSource(paths).info(video_id).size == selections.selections(video_id)[0].masks.size  # type: ignore[union-attr]


def test_images_beside_videos(tmp_path: Path, caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on two datasets with weights, whose frames differ in size; a clip of an image is the image several times."""
    write_refcoco(tmp_path)
    for name in ("refcoco", "text"):
        target = tmp_path / f"{name}.zarr"
        if name == "text":
            extract_text("refcoco", tmp_path, "train", "hashed", target)
        else:
            extract("refcoco", tmp_path, "train", "test_pixel_sizes:NativeFrames", target)
    images, texts = tmp_path / "refcoco.zarr", [caches["text"], tmp_path / "text.zarr"]
    shapes, step = [], loop.Run._add_gradients

    def spied(self: loop.Run, batch: Any, share: float) -> dict[str, Any]:
        assert batch.frame_index.shape == (len(batch), 3)
        for video_id, p, t, frames in zip(batch.video_ids, batch.pixels, batch.truth, batch.frame_index):
            assert p.shape[:3] == t.shape[1:]
            still = video_id.startswith("COCO")
            assert (frames.tolist() == [0, 0, 0]) == still
            assert not still or ((p == p[:1]).all() and (t == t[:, :1]).all() and t.any())
            shapes.append((still, tuple(p.shape[1:3])))
        return step(self, batch, share)

    monkeypatch.setattr(loop.Run, "_add_gradients", spied)
    values = {"batch": "clip", "batch_size": 4, "micro_batch": 3, "clip": {"frames": 3}, "epochs": 1, "hold_out": 0}
    weights = {"refcoco": 2, "mevis/train": 0.5}
    selector = "test_pixel_sizes:Painter"
    run = train([caches["frames"], images], texts, selector=selector, weights=weights, out=tmp_path / "run", **values)
    sets = json.loads((run / "settings.json").read_text())["sets"]
    assert sets["refcoco/train"]["drawn"] == 10 and sets["mevis/train"]["drawn"] == (sets["mevis/train"]["items"] + 1) // 2
    assert {size for still, size in shapes if still} == {(40, 60)} and {size for still, size in shapes if not still} == {SIZE}
    assert sum(still for still, _ in shapes) == 10 and len(shapes) == 10 + sets["mevis/train"]["drawn"]


def test_a_cache_of_frames_has_no_oracle(caches: Caches) -> None:
    with pytest.raises(InputError, match="frames.zarr: tracker .*TinyFrames makes no tracks"):
        oracle([caches["frames"]])
    together, alone = oracle([caches["flow"], caches["frames"]]), oracle([caches["flow"]])
    assert together == alone
