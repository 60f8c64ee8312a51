"""A frame's step: nothing in it waits for a GPU, its buffers do not move, and its parts are transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_sam2
import numpy as np
import pytest
import tiny_sam2
import torch
from sam2_half import HalfTracks
from sam2_video import as_video, make_backend, moving, prompts_of, squares
from torch.overrides import TorchFunctionMode

from rvos_cache.trackers.sam2 import fused
from rvos_cache.trackers.sam2.backend import Propagated
from rvos_cache.trackers.sam2.follow import Follower
from rvos_cache.trackers.sam2.hiera import ImageEncoder
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.propagate import Followers
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_select.contracts.host_reads import HostReads


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


class HostScalars(TorchFunctionMode):
    """Counts calls of torch.where with a number: its copy to a GPU waits."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "where" and any(isinstance(arg, (int, float)) for arg in args):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_reads_nothing_and_its_buffers_stay(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """What a CUDA graph needs, counted where there is no GPU."""
    reads, scalars = HostReads(), HostScalars()
    places: list[set[int]] = []
    step = Follower.step

    def counted(self: Follower, *shape: int) -> None:
        with reads, scalars:
            step(self, *shape)
        places.append({value.data_ptr() for value in vars(self).values() if isinstance(value, torch.Tensor)})

    monkeypatch.setattr(Follower, "step", counted)
    monkeypatch.setattr("rvos_cache.trackers.sam2.transformers_backend.native_dtype", lambda device: dtype)
    with make_backend().open(as_video(moving(9))) as session:
        session.propagate(2, prompts_of(squares(2), 2))
    assert len(places) == 8 and all(place == places[0] for place in places)
    assert reads.total == 0 and scalars.count == 0, reads.counts


def test_buffers_that_batches_share_and_fill_up_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: batches of 3, 5 and 2 objects, prompted in the middle, the last and the first frame, in the same memory."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    backend = make_backend(batch=5)
    batches = [(4, 3), (8, 5), (0, 2), (4, 3)]

    def run() -> list[Propagated]:
        with backend.open(as_video(moving(9))) as session:
            return [session.propagate(t, (prompts_of(squares(t), t) * 2)[:count]) for t, count in batches]

    alone = run()

    def shared(self: Followers, objects: int, store: Any) -> Follower:
        size = -(-objects // 4) * 4
        if self.storage is None:
            self.storage = self.network.attention.make_ring(8, self.network.slots)
        return self.by_size.setdefault(size, Follower(self.network, size, store.shapes, self.storage))

    monkeypatch.setattr(Followers, "get", shared)
    for a, b in zip(alone, run(), strict=True):
        np.testing.assert_allclose(a.tokens, b.tokens, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-4)
        assert (a.masks.dense() != b.masks.dense()).mean() < 1e-4
    assert sorted(backend.followers.by_size) == [4, 8]
    rings = [follower.ring.keys.data_ptr() for follower in backend.followers.by_size.values()]
    assert rings[0] == rings[1]


@pytest.mark.slow
def test_whole_tracks_in_bfloat16_are_as_near_to_float32_as_the_library_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    video = HalfTracks(tmp_path)
    monkeypatch.setattr("rvos_cache.trackers.sam2.transformers_backend.native_dtype", lambda device: torch.bfloat16)
    backend = TransformersBackend(video.settings)
    library = video.library(backend)
    for count in (3, 5):
        video.check(video.run(backend, count), library)
    assert 0.01 < library.tokens < 0.5 * video.wrong.tokens


def inputs(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def model_of(name: str) -> Any:
    """tiny: windows fill its maps; golden: they do not, as in Hiera-T."""
    from transformers import Sam2VideoModel

    if name == "golden":
        return golden_sam2.golden_model("sam2.1")
    return Sam2VideoModel.from_pretrained(tiny_sam2.shared_checkpoint()).eval()


@pytest.mark.parametrize("name", ["tiny", "golden"])
def test_the_encoder_of_a_gpu_equals_transformers_and_rounds_no_more(name: str) -> None:
    model, (pixels,) = model_of(name), inputs((2, 3, 128, 128))
    network, half = Network(model), Network(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = network.encode(pixels)
        torch.testing.assert_close(ImageEncoder(model, model)(pixels), expected, rtol=1e-4, atol=1e-4)
        ours = half.encode(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            library = network.encode(pixels)
    assert_as_close(ours, library, expected)


def test_gelu_within_a_matrix_product_rounds_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes it by a hyperbolic tangent."""
    model, (pixels,) = model_of("tiny"), inputs((2, 3, 128, 128))
    network, half, calls = Network(model), Network(model, dtype=torch.bfloat16), 0

    def counted(*values: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return fused.expand_in_one(values[0], values[1], True)

    monkeypatch.setattr("rvos_cache.trackers.sam2.hiera.expand", counted)
    with torch.inference_mode():
        ours, expected = half.encode(pixels), network.encode(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            library = network.encode(pixels)
    assert calls == 5
    assert_as_close(ours, library, expected)


def assert_as_close(ours: Any, library: Any, exact: Any, factor: float = 1.1) -> None:
    """Results in bfloat16 are as near to float32's as the library's under autocast."""
    for a, b, c in zip(ours, library, exact, strict=True):
        our_error, library_error = ((x.float() - c).abs().mean() for x in (a, b))
        assert 0 < our_error < factor * library_error < 0.1 * c.abs().mean()


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
def test_the_mask_decoder_equals_transformers_and_rounds_no_more(prompts: int, multimask: bool) -> None:
    """Several objects with an image each, and several prompts of one image."""
    model = model_of("tiny")
    network, half = Network(model), Network(model, dtype=torch.bfloat16)
    fine = tuple(inputs((1, 16, 32, 32), (1, 32, 16, 16)))
    for images in {1, prompts}:
        top, sparse, dense = inputs((images, 128, 8, 8), (prompts, 2, 128), (1, 128, 8, 8))
        together = images == prompts

        def library(
            top: torch.Tensor = top, sparse: torch.Tensor = sparse, dense: torch.Tensor = dense, together: bool = together
        ) -> list[torch.Tensor]:
            outputs = model.mask_decoder(
                image_embeddings=top,
                image_positional_embeddings=model.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=sparse[:, None] if together else sparse[None],
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                high_resolution_features=[level.expand(len(top), -1, -1, -1) for level in fine],
            )
            return [output.flatten(0, 1) for output in outputs]

        image = (top + dense).flatten(2).transpose(1, 2).contiguous()
        with torch.inference_mode():
            expected, ours = library(), network.decoder(fine, image, sparse, multimask)  # type: ignore[arg-type]
            torch.testing.assert_close(list(ours), expected, rtol=1e-4, atol=1e-4)
            rounded = half.decoder(tuple(f.bfloat16() for f in fine), image.bfloat16(), sparse.bfloat16(), multimask)  # type: ignore[arg-type]
            with torch.autocast("cpu", torch.bfloat16):
                autocast = library()
            chosen = network.decoder(fine, image, sparse, multimask, best=True)  # type: ignore[arg-type]
        # Logits and tokens; of the other two there are too few numbers to compare.
        assert_as_close(rounded[::2], autocast[::2], expected[::2], 1.3)
        best = expected[1].argmax(1)
        rows = torch.arange(prompts)
        torch.testing.assert_close(chosen[0][:, 0], expected[0][rows, best], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompted", [True, False])
def test_the_memory_encoder_equals_transformers_and_rounds_no_more(prompted: bool) -> None:
    model = model_of("tiny")
    half = Network(model, dtype=torch.bfloat16)
    top, low = inputs((1, 128, 8, 8), (3, 1, 32, 32))
    features = top.flatten(2).permute(2, 0, 1).expand(-1, 3, -1)
    high = torch.nn.functional.interpolate(low, (128, 128), mode="bilinear", align_corners=False)

    def library() -> torch.Tensor:
        # Its rounding to bfloat16 is left out, and so is the term of hidden objects.
        model.occlusion_spatial_embedding_parameter, occluded = None, model.occlusion_spatial_embedding_parameter
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "bfloat16", torch.float32)
            memory = model._encode_new_memory(features, high, torch.ones(3, 1, 1), prompted)[0].transpose(0, 1)
        model.occlusion_spatial_embedding_parameter = occluded
        return memory  # type: ignore[no-any-return]

    with torch.inference_mode():
        expected = library()
        torch.testing.assert_close(Network(model).memory_encoder(top, low, prompted), expected, rtol=1e-4, atol=1e-4)
        ours = half.memory_encoder(top.bfloat16(), low, prompted)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = library()
    assert_as_close([ours], [rounded], [expected], 1.4)
