"""`rvos-cache pool-clip`: the tracks of a cache are copied as they are, and features are those of the frames that they came from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import EXPRESSIONS, write_split
from PIL import Image
from tiny_clip import write_hub_clip, write_tiny_clip

from rvos_cache.cli import cli
from rvos_cache.clip.pooling import BOX, CLIP, FRAME, POOL, ClipPooling, PoolSettings
from rvos_cache.clip.towers import load_tokenizer
from rvos_cache.corruptions import corrupt_video
from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.exchange.import_masks import import_masks
from rvos_cache.exchange.pool_clip import open_pooling, open_unpooled, pool_clip, pooled_bytes, pooled_card, unpooled_card
from rvos_cache.exchange.relabel import relabel
from rvos_cache.extraction import extract
from rvos_cache.masks import RleMasks
from rvos_cache.store import TrackCache, content_digest, open_backend, verify
from rvos_cache.trackers import Tracker
from rvos_cache.types import Expression, FeatureSpec, GroundTruth, TrackSet, Video

pytestmark = pytest.mark.usefixtures("on_cpu")
SIZES = {"short_side": 64}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving shapes, and `flow` tracks of the three videos of train."""
    out = tmp_path_factory.mktemp("data")
    write_split(out / "shapes/train", dict.fromkeys(("t0", "t1", "t2"), (5, True, EXPRESSIONS)))
    extract("mevis", out / "shapes", "train", "flow", out / "flow.zarr")
    return out


class PixelTracker(Tracker):
    """Two tracks with a whole feature, one that is stored by frame, and a measurement; the second is prompted with the truth."""

    channels = 1
    feature_specs = (FeatureSpec("maps", ("T", "h", 3), "float32", by_frame=True), FeatureSpec("names", ("N",), "int32"))
    measurement_specs = (FeatureSpec("areas", ("A", "T"), "int32"),)

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        dense = np.zeros((2, len(video), *video.size), bool)
        dense[0, :, 2:9, 3:12] = True

        def maps() -> Iterator[Any]:
            for t in range(len(video)):
                yield np.full((2, 3), t, np.float32)

        def measure(truth: GroundTruth) -> dict[str, Any]:
            return {"areas": truth.masks.area()}

        features = {"maps": maps(), "names": np.arange(2, dtype=np.int32)}
        return TrackSet.from_masks(np.ones((2, len(video), 1)), dense, features=features, measure=measure)


class TruthTracker(Tracker):
    """One track, the first object."""

    channels = 1
    wants_ground_truth = True

    def track(self, video: Video, expressions: Sequence[Expression], truth: GroundTruth) -> TrackSet:  # type: ignore[override]
        return TrackSet.from_masks(np.ones((1, len(video), 1)), truth.masks.select([0]))


def expected_features(cache: TrackCache, checkpoint: str, video: Video, **values: Any) -> dict[str, np.ndarray[Any, Any]]:
    pooling = ClipPooling(PoolSettings(checkpoint=checkpoint, **(values or SIZES)))
    features = pooling.features(video, cache.masks(video.video_id))
    return {name: np.stack(list(features[name])) for name in (POOL, FRAME)}


def settings(clip: str, **values: Any) -> dict[str, Any]:
    return {"checkpoint": clip, **(values or SIZES)}


def test_tracks_are_copied_and_features_are_of_the_frames(data: Path, clip: str) -> None:
    report = pool_clip(data / "flow.zarr", overrides=settings(clip))
    source, pooled = TrackCache(data / "flow.zarr"), TrackCache(data / "flow-clip.zarr")
    assert report.done == list(source.video_ids()) and not report.failed and list(verify(data / "flow-clip.zarr")) == []
    dataset = open_dataset("mevis", data / "shapes", "train")
    for video_id in source.video_ids():
        before, after = source.read(video_id), pooled.read(video_id)
        assert after.tracks.masks == before.tracks.masks and after.expressions == before.expressions
        for name in ("tokens", "presence", "prompt", "prompt_frame", "prompt_box"):
            assert np.array_equal(getattr(after.tracks, name), getattr(before.tracks, name))
        assert after.overlap is not None and before.overlap is not None and after.frames_digest == before.frames_digest
        assert np.array_equal(after.overlap.inter, before.overlap.inter) and after.tracks.origin == before.tracks.origin
        expected = expected_features(source, clip, dataset.video(video_id))
        for name, values in expected.items():
            assert np.array_equal(after.tracks.features[name], values)
        absent = before.tracks.masks.area().T == 0
        assert np.array_equal((expected[POOL] == 0).all(-1), absent)
        assert np.array_equal(pooled.feature(video_id, POOL, slice(1, 2))[0], expected[POOL][1])


def test_the_card_keeps_the_tracker_and_names_the_clip(data: Path, clip: str) -> None:
    pool_clip(data / "flow.zarr", overrides=settings(clip))
    source, card = TrackCache(data / "flow.zarr").card, TrackCache(data / "flow-clip.zarr").card
    pooling = open_pooling(settings(clip))
    assert (card.producer, card.settings, card.channels) == ("flow", source.settings, source.channels)
    assert card.weights == {**source.weights, **pooling.image.weights} and list(pooling.image.weights) == ["clip/image"]
    assert card.extra[CLIP] == pooling.record() and card.extra[CLIP]["widths"] == [8, 16, 24, 32]
    assert unpooled_card(card).differences(source) == []
    assert unpooled_card(pooled_card(source, pooling)) == source


@pytest.mark.slow
def test_it_does_what_is_left_and_jobs_and_shards_make_the_same(data: Path, clip: str, tmp_path: Path) -> None:
    values = settings(clip)
    pool_clip(data / "flow.zarr", tmp_path / "whole.zarr", overrides=values)
    report = pool_clip(data / "flow.zarr", tmp_path / "parts.zarr", overrides=values, shard="2/2")
    assert len(report.done) == 1
    report = pool_clip(data / "flow.zarr", tmp_path / "parts.zarr", overrides={**values, "frames_per_pass": 8}, jobs=2)
    assert (len(report.done), len(report.skipped)) == (2, 1)
    assert content_digest(tmp_path / "whole.zarr") == content_digest(tmp_path / "parts.zarr")
    with pytest.raises(InputError, match=r"made with extra.clip"):
        pool_clip(data / "flow.zarr", tmp_path / "parts.zarr", overrides=settings(clip, square=32))
    with pytest.raises(InputError, match=r"--shard wants i/n"):
        pool_clip(data / "flow.zarr", tmp_path / "parts.zarr", overrides=values, shard="3/2")


def test_other_features_and_measurements_stay(data: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract("mevis", data / "shapes", "train", f"{__name__}:PixelTracker", tmp_path / "c.zarr")
    source = TrackCache(tmp_path / "c.zarr")
    reads: list[tuple[str, slice | None]] = []
    feature = TrackCache.feature
    monkeypatch.setattr(
        TrackCache,
        "feature",
        lambda self, v, name, frames=None: (reads.append((name, frames)), feature(self, v, name, frames))[1],
    )
    pool_clip(tmp_path / "c.zarr", overrides=settings(clip))
    monkeypatch.undo()
    # What is stored by frame is copied frame by frame.
    assert {name for name, frames in reads if frames is None} == {"names"}
    pooled = TrackCache(tmp_path / "c-clip.zarr")
    assert [spec["name"] for spec in pooled.card.feature_specs] == ["maps", "names", POOL, FRAME, BOX]
    for video_id in source.video_ids():
        for name in ("maps", "names"):
            assert np.array_equal(pooled.feature(video_id, name), source.feature(video_id, name))
        assert np.array_equal(pooled.measurement(video_id, "areas"), source.measurement(video_id, "areas"))
        assert (pooled.feature(video_id, POOL)[:, 1] == 0).all() and (pooled.feature(video_id, POOL)[:, 0] != 0).any(-1).all()
    assert list(verify(tmp_path / "c-clip.zarr")) == []


def test_caches_for_training_only_and_of_corrupted_frames(data: Path, clip: str, tmp_path: Path) -> None:
    extract("mevis", data / "shapes", "train", f"{__name__}:TruthTracker", tmp_path / "gt.zarr")
    pool_clip(tmp_path / "gt.zarr", overrides=settings(clip))
    assert TrackCache(tmp_path / "gt-clip.zarr").card.training_only
    extract("mevis", data / "shapes", "train", "flow", tmp_path / "noisy.zarr", corrupt="gaussian_noise:5", limit=1)
    pool_clip(tmp_path / "noisy.zarr", overrides=settings(clip))
    pooled = TrackCache(tmp_path / "noisy-clip.zarr")
    video = open_dataset("mevis", data / "shapes", "train").video(pooled.video_ids()[0])
    noisy, clean = (expected_features(pooled, clip, v)[FRAME] for v in (corrupt_video(video, "gaussian_noise:5"), video))
    stored = pooled.feature(video.video_id, FRAME)
    assert np.array_equal(stored, noisy) and not np.array_equal(stored, clean)


def test_imported_masks_and_a_vit(data: Path, clip: str, tmp_path: Path) -> None:
    """A track without a pixel, a video without a track, and a ViT whose patches are the only map."""
    dataset = open_dataset("mevis", data / "shapes", "train")
    first, second, *_ = dataset.video_ids()
    video = dataset.video(first)
    dense = np.zeros((2, len(video), *video.size), bool)
    dense[0, 1, 5:9, 4:20] = True
    masks = RleMasks.from_dense(dense)
    rows = {
        str(k): [{"size": list(video.size), "counts": masks.bytes_at(k, t).decode()} for t in range(len(video))] for k in (0, 1)
    }
    (tmp_path / "masks").mkdir()
    (tmp_path / f"masks/{first}.json").write_text(json.dumps(rows))
    (tmp_path / f"masks/{second}").mkdir()
    import_masks(tmp_path / "masks", "mevis", data / "shapes", "train", tmp_path / "c.zarr", videos=[first, second])
    hub = write_hub_clip(tmp_path / "hub", load_tokenizer(clip))
    report = pool_clip(tmp_path / "c.zarr", overrides=settings(str(hub), square=32))
    assert sorted(report.done) == sorted([first, second])
    pooled = TrackCache(tmp_path / "c-clip.zarr")
    values = pooled.feature(first, POOL)
    present = (values != 0).any(-1)
    assert values.shape == (len(video), 2, 24) and present[1, 0] and present.sum() == 1
    assert pooled.feature(second, POOL).shape == (len(dataset.video(second)), 0, 24)
    assert pooled.feature(second, FRAME).any() and pooled.card.settings["masks"] == "imported"


def test_bytes_are_known_before(data: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "copy.zarr"
    shutil.copytree(data / "flow.zarr", cache)
    planned = pooled_bytes(open_unpooled(cache), open_pooling(settings(clip)))
    with pytest.raises(InputError, match=r"the pooled cache needs .* are clip_pool, the budget is 1.00 kB"):
        pool_clip(cache, overrides=settings(clip), budget=1000)
    assert not (tmp_path / "copy-clip.zarr").exists()
    pool_clip(cache, overrides=settings(clip), budget=planned.total)
    measured = open_backend(tmp_path / "copy-clip.zarr").size()
    assert abs(planned.total / measured - 1) < 0.01
    source = TrackCache(cache)
    infos = [source.info(v) for v in source.video_ids()]
    assert (planned.videos, planned.frames, planned.tracks) == (3, sum(i.frames for i in infos), sum(i.tracks for i in infos))
    # At the sizes of real CLIPs nothing but the values counts.
    values = sum(i.frames * i.tracks for i in infos) * 80 * 2
    assert planned.arrays[POOL] - values < 80 * planned.frames + 1000 * 3


def test_the_command(data: Path, clip: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    shutil.copytree(data / "flow.zarr", tmp_path / "flow.zarr")
    code, out = run("pool-clip", tmp_path / "flow.zarr", "--set", f"checkpoint={clip}", "--set", "short_side=64", "--plan")
    assert code == 0 and re.search(r"clip_pool\W+[\d.]+ [kM]B", out) and "total" in out and "3 videos" in out
    assert not (tmp_path / "flow-clip.zarr").exists()
    code, out = run("pool-clip", tmp_path / "flow.zarr", "--set", f"checkpoint={clip}", "--set", "short_side=64")
    assert code == 0 and f"{tmp_path / 'flow-clip.zarr'}: 3 done, 0 were there, 0 failed" in out
    assert content_digest(tmp_path / "flow-clip.zarr")
    code, out = run("settings", "pool-clip")
    assert code == 0 and "short_side" in out and "frames_per_pass" in out


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    from click.testing import CliRunner

    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
        return result.exit_code, result.output

    return call


def test_what_cannot_be_pooled_is_one_line(data: Path, clip: str, tmp_path: Path) -> None:
    cache = tmp_path / "c.zarr"
    shutil.copytree(data / "flow.zarr", cache)
    values = settings(clip)
    with pytest.raises(InputError, match=r"which CLIP\? give the folder"):
        pool_clip(cache)
    with pytest.raises(InputError, match=r"pool-clip: .*no_such"):
        pool_clip(cache, overrides={**values, "no_such": 1})
    with pytest.raises(InputError, match=r"is the cache to pool; give another --out"):
        pool_clip(cache, cache, overrides=values)
    with pytest.raises(InputError, match=r"nowhere"):
        pool_clip(cache, overrides=values, root=tmp_path / "nowhere")
    pool_clip(cache, overrides=values)
    with pytest.raises(
        InputError, match=rf"its tracks are pooled already \({re.escape(clip)}\); pool the cache that it was made"
    ):
        pool_clip(tmp_path / "c-clip.zarr", overrides=values)
    # Other tracks under the same path.
    shutil.rmtree(cache)
    shutil.copytree(data / "shapes", tmp_path / "shapes")
    extract("mevis", tmp_path / "shapes", "train", "flow", cache, overrides={"max_tracks": 1})
    with pytest.raises(InputError, match="made with settings.max_tracks"):
        pool_clip(cache, overrides=values)


def test_frames_that_have_changed_fail_and_relabelled_tracks_are_others(data: Path, clip: str, tmp_path: Path) -> None:
    shutil.copytree(data / "shapes", tmp_path / "shapes")
    extract("mevis", tmp_path / "shapes", "train", "flow", tmp_path / "c.zarr")
    first, second, *_ = TrackCache(tmp_path / "c.zarr").video_ids()
    pool_clip(tmp_path / "c.zarr", overrides=settings(clip), shard="1/3")
    path = sorted((tmp_path / f"shapes/train/JPEGImages/{second}").iterdir())[0]
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    report = pool_clip(tmp_path / "c.zarr", overrides=settings(clip))
    assert list(report.failed) == [second] and "its frames are other pictures; extract it again" in report.failed[second]
    assert report.skipped == [first]
    # Another sentence of the first video.
    meta = tmp_path / "shapes/train/meta_expressions.json"
    text = TrackCache(tmp_path / "c.zarr").info(first).expressions[0].text
    meta.write_text(meta.read_text().replace(f'"{text}"', '"another sentence"'))
    relabel(tmp_path / "c.zarr", tmp_path / "l.zarr")
    with pytest.raises(InputError, match=rf"video {first}: pooled from other tracks than .*l.zarr holds now"):
        pool_clip(tmp_path / "l.zarr", tmp_path / "c-clip.zarr", overrides=settings(clip))
    # A pooled cache is relabelled like any other.
    relabel(tmp_path / "c-clip.zarr", tmp_path / "lc.zarr")
    relabelled = TrackCache(tmp_path / "lc.zarr")
    assert "another sentence" in {e.text for e in relabelled.info(first).expressions}
    assert np.array_equal(relabelled.feature(first, POOL), TrackCache(tmp_path / "c-clip.zarr").feature(first, POOL))
