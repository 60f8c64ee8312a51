"""The features of SAM 2's frames: how often they are encoded, where they are stored, and in which precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from numpy.typing import NDArray
from plain_sam2 import plain_tracks
from sam2_video import SIZE, as_video, make_backend, moving, prompts_of, propagate, squares

from rvos_cache.settings import build
from rvos_cache.trackers.sam2.features import Features, FeatureStore
from rvos_cache.trackers.sam2.follow import Follower
from rvos_cache.trackers.sam2.preprocess import normalise, video_pixels
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings
from rvos_cache.types import Video

FRAME_BYTES = 4 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 128)
"""Features of a frame of the tiny model."""


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


def test_stored_features_give_the_same_tracks_as_encoding_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encode frames one by one, since kernels differ between batch sizes; so the tracks are equal to the last bit."""
    backend = make_backend(encoder_batch=1, host_memory=0)
    pictures, encodings = moving(9), 0

    def encode(self: FeatureStore, t: int) -> torch.Tensor:
        nonlocal encodings
        encodings += 1
        levels = backend.network.encode(normalise(video_pixels(pictures[t], backend.network.side)[None]))
        return Features.pack([level[0] for level in levels])

    with backend.open(as_video(pictures)) as session:
        stored = [session.propagate(t, prompts_of(squares(t), t)) for t in (3, 8)]
        monkeypatch.setattr(FeatureStore, "flat", encode)
        again = [session.propagate(t, prompts_of(squares(t), t)) for t in (3, 8)]
    assert encodings == 18
    for a, b in zip(stored, again):
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.scores, b.scores) and a.masks == b.masks


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of the image encoder's calls."""
    from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

    sizes: list[int] = []
    forward = Sam2VisionModel.forward

    def counted(self: Any, pixel_values: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(pixel_values))
        return forward(self, pixel_values, *rest, **more)

    monkeypatch.setattr(Sam2VisionModel, "forward", counted)
    return sizes


def run_all(frames: int, **settings: Any) -> list[int]:
    """A grid in frames 0 and 3, boxes in frame 6 and two batches of tracks; returns the frames that were read."""
    pictures: NDArray[np.uint8] = moving(frames)
    reads: list[int] = []
    video = Video("v", tuple(map(str, range(frames))), SIZE, lambda t: reads.append(t) or pictures[t])
    backend = make_backend(encoder_batch=3, **{**tiny_sam2.GRID, "points_per_side": 2, **settings})
    box_settings = BoxSettings(prompt_features=backend.settings.prompt_features)
    with backend.open(video) as session:
        assert not reads
        session.grid_masks(0, backend.settings)
        session.grid_masks(3, backend.settings)
        session.box_masks(6, np.array([[3, 3, 40, 40]], np.float32), box_settings)
        session.propagate(3, prompts_of(squares(3), 3))
        session.propagate(0, prompts_of(squares(0)[:2], 0))
    return reads


def test_each_frame_is_encoded_once_and_each_prompt_frame_once_more(encodings: list[int]) -> None:
    """The image predictor resizes frames in another way than the video predictor."""
    reads = run_all(7)
    assert sum(encodings) == 7 + 3 and encodings == [1, 1, 1, 3, 3, 1]
    assert sorted(reads) == sorted([*range(7), 0, 3, 6])


def test_prompts_from_the_video_s_features_need_no_second_encoding(encodings: list[int]) -> None:
    reads = run_all(7, prompt_features="video")
    assert sum(encodings) == 7 and reads == list(range(7))


def test_mask_prompts_need_no_second_encoding(encodings: list[int]) -> None:
    propagate(7, 3, squares(3))
    assert sum(encodings) == 7


def test_a_plain_run_encodes_a_frame_for_each_batch(encodings: list[int]) -> None:
    backend = make_backend()
    for part in (slice(0, 2), slice(2, 3)):
        plain_tracks(backend.network.model, list(moving(5)), 2, squares(2)[part])
    assert sum(encodings) >= 2 * 5


@pytest.mark.slow
@pytest.mark.parametrize("frames_in_host", [0, 2, 4.5, 9])
def test_where_features_are_stored_changes_nothing(frames_in_host: float) -> None:
    whole = propagate(9, 4, squares(4))
    backend = make_backend(host_memory=int(frames_in_host * FRAME_BYTES), gpu_memory=0)
    with backend.open(as_video(moving(9))) as session:
        tracks = session.propagate(4, prompts_of(squares(4), 4))
        store = session.features
        in_host = int(frames_in_host)
        assert (store.frame_bytes, store.in_host, store.on_disk) == (FRAME_BYTES, in_host, 9 - in_host)
        assert len(store.in_memory) == store.in_host
    assert np.array_equal(tracks.tokens, whole.tokens) and np.array_equal(tracks.scores, whole.scores)
    assert tracks.masks == whole.masks


def test_a_store_fills_the_device_then_the_host_then_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shapes = [(2, 4, 4), (3, 2, 2)]
    levels = [[torch.randn(shape) for shape in shapes] for _ in range(6)]
    frame = 4 * (32 + 12)
    with FeatureStore(6, shapes, torch.float32, torch.device("cpu"), 2 * frame + 5, frame) as store:
        assert (store.on_device, store.in_host, store.on_disk) == (2, 1, 3)
        for t in range(6):
            store.put(t, levels[t])
        assert not list(tmp_path.iterdir())
        order = [5, 0, 3, 2, 2, 1, 4]
        for t, flat in zip(order, store.read(order)):
            features = Features.unpack(flat, shapes)
            assert torch.equal(features.fine[0][0], levels[t][0]) and torch.equal(features.top[0], levels[t][1])


def test_features_are_stored_in_the_precision_of_the_store() -> None:
    level = torch.randn(2, 4, 4)
    with FeatureStore(1, [(2, 4, 4)], torch.bfloat16, torch.device("cpu"), 0, 0) as store:
        store.put(0, [level])
        assert store.frame_bytes == 64 and torch.equal(store.get(0).top[0], level.to(torch.bfloat16))


def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rvos_cache.trackers.sam2.features.os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), make_backend(host_memory=0).open(as_video(moving(3))):
        pass


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    follow = Follower.follow

    def measured(self: Follower, *inputs: Any) -> None:
        follow(self, *inputs)
        tensors = [value for value in vars(self).values() if isinstance(value, torch.Tensor)]
        sizes.append(sum(part.untyped_storage().nbytes() for part in [*tensors, self.ring.keys, self.ring.values]))

    monkeypatch.setattr(Follower, "follow", measured)
    largest = []
    # Behind the prompt, both are longer than twice the pointers that are attended to.
    for frames in (45, 60):
        sizes.clear()
        backend = make_backend(host_memory=2 * FRAME_BYTES)
        pictures = np.repeat(moving(1), frames, 0)
        with backend.open(as_video(pictures)) as session:
            session.propagate(10, prompts_of(squares(0)[:1], 10))
            assert len(session.features.in_memory) == 2
        largest.append(max(sizes))
    assert largest[0] == largest[1]


def test_sizes_are_written_with_units() -> None:
    assert build(GridSettings, {"gpu_memory": "8GB", "host_memory": "1.5 GiB"}, "--set").gpu_memory == 8 * 10**9


def test_pictures_are_read_in_threads_and_ahead_with_the_same_masks(tmp_path: Path) -> None:
    from PIL import Image

    from rvos_cache.media.frames import folder_video

    pictures = moving(7)
    for t, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{t:05d}.png")
    backend = make_backend(**tiny_sam2.GRID)
    results = []
    for video in (as_video(pictures), folder_video(tmp_path, "v")):
        with backend.open(video) as session:
            grids = [session.grid_masks(t, backend.settings) for t in (0, 3, 6)]
            results.append((*grids, session.propagate(3, prompts_of(squares(3), 3)).masks))
    assert results[0] == results[1] and results[0][0].shape[0] > 0


def test_an_error_of_reading_ahead_is_that_of_its_frame(tmp_path: Path) -> None:
    from PIL import Image

    from rvos_cache.errors import InputError
    from rvos_cache.media.frames import folder_video

    for t, picture in enumerate(moving(4)):
        Image.fromarray(picture).save(tmp_path / f"{t:05d}.png")
    backend = make_backend(**tiny_sam2.GRID)
    with backend.open(folder_video(tmp_path, "v")) as session:
        (tmp_path / "00003.png").write_bytes(b"no picture")
        session.grid_masks(0, backend.settings)
        with pytest.raises(InputError, match="00003.png"):
            session.grid_masks(3, backend.settings)
