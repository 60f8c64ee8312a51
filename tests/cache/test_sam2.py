"""SAM 2 in batches, with features read once, against plain runs of transformers, which do neither."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from numpy.typing import NDArray
from plain_sam2 import pixel_values, plain_tracks

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.trackers.sam2.attention import Read
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, prompts_of
from rvos_cache.trackers.sam2.features import Features, FeatureStore
from rvos_cache.trackers.sam2.memory import MemoryBank
from rvos_cache.trackers.sam2.preprocess import mask_prompts, normalised, resized, scaled
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

SIZE = (60, 84)
FRAMES = 18
"""More than the pointers that are read, and than the maps."""


def moving(frames: int) -> NDArray[np.uint8]:
    """Noise, and two squares that cross it."""
    pictures = np.random.default_rng(0).integers(0, 255, (frames, *SIZE, 3), np.uint8)
    for t in range(frames):
        pictures[t, 10:30, 5 + 2 * t : 25 + 2 * t] = (220, 40, 40)
        pictures[t, 35:50, 60 - 2 * t : 75 - 2 * t] = (20, 240, 40)
    return pictures


def shown(pictures: NDArray[np.uint8]) -> Video:
    return Video("v", tuple(f"{t:05d}" for t in range(len(pictures))), SIZE, pictures.__getitem__)


def squares(t: int) -> NDArray[np.bool_]:
    """Three masks of frame t: the squares, and a corner."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 10:30, 5 + 2 * t : 25 + 2 * t] = masks[1, 35:50, 60 - 2 * t : 75 - 2 * t] = masks[2, :20, :40] = True
    return masks


def asked(masks: NDArray[np.bool_], t: int) -> list[Prompt]:
    return prompts_of(RleMasks.from_dense(masks[:, None]), t)


def backend(**settings: Any) -> TransformersBackend:
    return TransformersBackend(GridSettings(checkpoint=tiny_sam2.shared_checkpoint(), **settings))


def propagated(frames: int, t: int, masks: NDArray[np.bool_], made: TransformersBackend | None = None) -> Propagated:
    with (made or backend()).open(shown(moving(frames))) as session:
        return session.propagate(t, asked(masks, t))


@pytest.fixture
def precise_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories in float32 in both runs: their rounding to bfloat16 makes a difference of 1e-7 one of 1e-3."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


@pytest.mark.usefixtures("precise_memories")
@pytest.mark.parametrize("t", [0, 7, FRAMES - 1])
def test_a_batch_equals_the_library_s_loop_over_objects_that_encodes_again(t: int) -> None:
    made = backend()
    found = propagated(FRAMES, t, squares(t), made)
    tokens, scores, pixels = plain_tracks(made.network.model, list(moving(FRAMES)), t, squares(t))
    np.testing.assert_allclose(found.tokens, tokens, atol=1e-5)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert np.array_equal(found.masks.dense(), pixels)
    # Were objects or frames all alike, a wrong memory would pass: they are not.
    others = np.delete(tokens, t, 1)
    assert others.std(0).max() > 0.1 and others.std(1).max() > 0.1
    assert (scores < 0).any() and (np.delete(scores, t, 1) > 0).any()


@pytest.mark.usefixtures("precise_memories")
def test_a_batch_equals_its_objects_alone() -> None:
    together = propagated(9, 4, squares(4))
    for b in range(3):
        alone = propagated(9, 4, squares(4)[b : b + 1])
        np.testing.assert_allclose(alone.tokens[0], together.tokens[b], atol=1e-5)
        assert alone.masks == together.masks.select([b])


FEWER = {
    "num_maskmem": 3, "max_object_pointers_in_encoder": 4, "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False, "multimask_output_for_tracking": False,
}  # fmt: skip


@pytest.mark.usefixtures("precise_memories")
@pytest.mark.parametrize("changes", [FEWER, {"memory_attention_num_attention_heads": 2}])
def test_other_configurations_equal_the_library_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = TransformersBackend(GridSettings(checkpoint=str(tiny_sam2.tiny_sam2(tmp_path, **changes))))
    found = propagated(9, 3, squares(3), made)
    tokens, scores, pixels = plain_tracks(made.network.model, list(moving(9)), 3, squares(3))
    np.testing.assert_allclose(found.tokens, tokens, atol=1e-5)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert np.array_equal(found.masks.dense(), pixels)
    assert np.delete(tokens[0], 3, 0).std(0).max() > 0.1


def test_features_that_are_read_again_give_the_very_same_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that encodes a frame each time it looks at it. Both encode frames one by one: kernels differ between batches."""
    made = TransformersBackend(GridSettings(checkpoint=tiny_sam2.shared_checkpoint(), encoder_batch=1, host_memory=0))
    pictures, looks = moving(9), 0

    def naive(self: FeatureStore, t: int) -> Features:
        nonlocal looks
        looks += 1
        small = resized(pictures[t], made.network.side)[None]
        *fine, top = made.network.encode(normalised(small))
        return Features(tuple(fine), top)

    with made.open(shown(pictures)) as session:
        found = [session.propagate(t, asked(squares(t), t)) for t in (3, 8)]
        monkeypatch.setattr(FeatureStore, "get", naive)
        again = [session.propagate(t, asked(squares(t), t)) for t in (3, 8)]
    assert looks == 18
    for a, b in zip(found, again):
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.scores, b.scores) and a.masks == b.masks


def test_a_video_of_one_frame_gives_its_prompts_back() -> None:
    found = propagated(1, 0, squares(0))
    assert found.tokens.shape == (3, 1, tiny_sam2.WIDTH) and (found.scores == 10).all()
    areas, wanted = found.masks.area()[:, 0], squares(0).sum((1, 2))
    assert (np.abs(areas - wanted) < 0.25 * wanted).all()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that image encoders read."""
    from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

    read: list[int] = []
    forward = Sam2VisionModel.forward

    def counted(self: Any, pixel_values: Any, *rest: Any, **more: Any) -> Any:
        read.append(len(pixel_values))
        return forward(self, pixel_values, *rest, **more)

    monkeypatch.setattr(Sam2VisionModel, "forward", counted)
    return read


def test_each_frame_is_encoded_and_decoded_once_whatever_is_asked_of_it(encoded: list[int]) -> None:
    pictures, decoded = moving(7), []
    video = Video("v", tuple("0123456"), SIZE, lambda t: decoded.append(t) or pictures[t])
    made = backend(encoder_batch=3, **{**tiny_sam2.GRID, "points_per_side": 2})
    with made.open(video) as session:
        assert not encoded
        session.grid_masks(0, made.settings)
        session.grid_masks(3, made.settings)
        session.box_masks(6, np.array([[3, 3, 40, 40]], np.float32), 1.0)
        session.propagate(3, asked(squares(3), 3))
        session.propagate(0, asked(squares(0)[:2], 0))
    assert encoded == [3, 3, 1] and decoded == list(range(7))


def test_the_library_s_own_run_encodes_a_frame_for_each_batch(encoded: list[int]) -> None:
    made = backend()
    for part in (slice(0, 2), slice(2, 3)):
        plain_tracks(made.network.model, list(moving(5)), 2, squares(2)[part])
    assert sum(encoded) >= 2 * 5


@pytest.mark.parametrize("frames_in_host", [0, 2, 4.5, 9])
def test_where_features_lie_changes_nothing(frames_in_host: float) -> None:
    whole = propagated(9, 4, squares(4))
    frame = 4 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 128)
    made = backend(host_memory=int(frames_in_host * frame), gpu_memory=0)
    with made.open(shown(moving(9))) as session:
        found = session.propagate(4, asked(squares(4), 4))
        store = session.features
        assert (store.frame_bytes, store.in_host, store.on_disk) == (frame, int(frames_in_host), 9 - int(frames_in_host))
        assert len(store.held) == store.in_host
    assert np.array_equal(found.tokens, whole.tokens) and np.array_equal(found.scores, whole.scores)
    assert found.masks == whole.masks


def test_a_store_fills_the_device_then_the_host_then_a_file_that_has_no_name(
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
        for t, read in zip(order, store.read(order)):
            assert torch.equal(read.fine[0][0], levels[t][0]) and torch.equal(read.top[0], levels[t][1])


def test_features_are_kept_in_the_precision_of_the_store() -> None:
    level = torch.randn(2, 4, 4)
    with FeatureStore(1, [(2, 4, 4)], torch.bfloat16, torch.device("cpu"), 0, 0) as store:
        store.put(0, [level])
        assert store.frame_bytes == 64 and torch.equal(store.get(0).top[0], level.to(torch.bfloat16))


def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rvos_cache.trackers.sam2.features.os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), backend(host_memory=0).open(shown(moving(3))):
        pass


@pytest.mark.parametrize("prompt", [0, 3, 11, 19])
def test_a_bank_gives_what_sam_2_reads_and_forgets_the_rest(prompt: int) -> None:
    """Against the rule as it is published, on everything that was ever found."""
    frames, maps_read, pointers_read = 20, 4, 6
    bank = MemoryBank(prompt, maps_read, pointers_read)
    everything: dict[int, torch.Tensor] = {}

    def add(t: int, backward: bool) -> None:
        everything[t] = torch.tensor([float(t)])
        bank.add(t, Read((everything[t],), ()), everything[t], backward)

    add(prompt, False)
    for backward, order in ((False, range(prompt + 1, frames)), (True, range(prompt - 1, -1, -1))):
        for t in order:
            sign = -1 if backward else 1
            maps = [(0, prompt)] + [(k, t - sign * k) for k in range(maps_read - 1, 0, -1)]
            maps = [(k, s) for k, s in maps if s in everything and (s != prompt or k == 0)]
            pointers = [(sign * (t - prompt), prompt)] + [(k, t - sign * k) for k in range(1, pointers_read)]
            pointers = [(k, s) for i, (k, s) in enumerate(pointers) if s in everything and (s != prompt or i == 0)]
            read = bank.before(t, backward)
            assert [(k, int(m.keys[0])) for k, m in read.maps] == maps
            assert [(k, int(p)) for k, p in read.pointers] == pointers
            add(t, backward)
            assert len(bank.maps) <= 2 * maps_read and len(bank.pointers) <= 2 * pointers_read


def test_what_the_device_holds_does_not_grow_with_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    add = MemoryBank.add

    def watched(self: MemoryBank, *given: Any) -> None:
        add(self, *given)
        maps = [part for m in self.maps.values() for part in (*m.keys, *m.values)]
        held.append(sum(part.untyped_storage().nbytes() for part in [*maps, *self.pointers.values()]))

    monkeypatch.setattr(MemoryBank, "add", watched)
    most = []
    frame = 4 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 128)
    # Both are longer than twice the pointers that are read, behind the prompt.
    for frames in (45, 60):
        held.clear()
        made = backend(host_memory=2 * frame)
        pictures = np.repeat(moving(1), frames, 0)
        with made.open(shown(pictures)) as session:
            session.propagate(10, asked(squares(0)[:1], 10))
            assert len(session.features.held) == 2
        most.append(max(held))
    assert most[0] == most[1]


def test_a_frame_is_prepared_as_the_library_prepares_it() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    ours = normalised(resized(frame, 128)[None])[0]
    np.testing.assert_allclose(ours, pixel_values(frame, 128), atol=1e-6)
    from PIL import Image

    # Pillow's bilinear filter is the one that both follow; it rounds once for each axis.
    theirs = np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resized(frame, 32).numpy().transpose(1, 2, 0) - theirs).max() <= 1


def test_places_are_scaled_along_each_axis() -> None:
    assert scaled(np.array([[10, 5], [20, 50]]), (50, 100), 200).tolist() == [[20, 20], [40, 200]]
    assert scaled(np.array([[10, 5, 20, 50]]), (50, 100), 200).tolist() == [[20, 20, 40, 200]]


def test_a_mask_is_cut_at_one_half_and_never_to_nothing() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    masks[1, 40, 40] = True
    small = mask_prompts(masks, 16)
    assert small.shape == (2, 1, 16, 16) and small[0].sum() == 16 and small[0, 0, 2:6, 2:6].all()
    assert small[1, 0, 10, 10] == 1 and small[1].sum() == 1


def test_half_precision_gives_nearly_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, on the CPU: every part takes bfloat16, and the prompted frame, which no memory reaches, is the same."""
    whole = propagated(4, 1, squares(1))
    monkeypatch.setattr("rvos_cache.trackers.sam2.transformers_backend.native_dtype", lambda device: torch.bfloat16)
    made = backend(**tiny_sam2.GRID)
    with made.open(shown(moving(4))) as session:
        half = session.propagate(1, asked(squares(1), 1))
        assert session.features.held[0].dtype == torch.bfloat16
        assert session.grid_masks(1, made.settings).shape[0] > 0
        assert session.box_masks(1, np.array([[3, 3, 40, 40]], np.float32), 1.0)[0].shape == (1, 1)
    spread = whole.tokens[:, 1].std()
    assert np.abs(half.tokens[:, 1] - whole.tokens[:, 1]).max() < 0.2 * spread
    assert half.tokens.dtype == np.float32 and np.isfinite(half.tokens).all()
    assert half.masks.frames(1, 2) == whole.masks.frames(1, 2)


def test_a_compiled_encoder_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or (lambda *given: f(*given)))
    made = backend(compile=True)
    assert len(compiled) == 1 and made.weight_hashes() == backend().weight_hashes()
    assert propagated(2, 0, squares(0), made).masks == propagated(2, 0, squares(0)).masks


def test_a_frame_that_cannot_be_read_is_its_own_error() -> None:
    def source(t: int) -> NDArray[np.uint8]:
        if t == 3:
            raise InputError("00003.jpg: not a whole image")
        return moving(5)[t]

    with backend().open(Video("v", tuple("01234"), SIZE, source)) as session, pytest.raises(InputError, match="00003.jpg"):
        session.propagate(0, asked(squares(0), 0))


def test_a_checkpoint_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SAM 2 checkpoint") as caught:
        TransformersBackend(GridSettings(checkpoint=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"prompt_every": 0}, {"prompt_every": "third"}, {"gpu_memory": "lots"}, {"same_iou": 2}, {"batch": 0}]
)
def test_a_setting_that_makes_no_sense_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        build(GridSettings, wrong, "--set")


def test_sizes_are_said_as_people_write_them() -> None:
    assert build(GridSettings, {"gpu_memory": "8GB", "host_memory": "1.5 GiB"}, "--set").gpu_memory == 8 * 10**9
