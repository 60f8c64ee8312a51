"""`gdino-queries` on single images: resized, padded and drawn as A2D-Sentences and JHMDB-Sentences are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_sam2
import torch
from PIL import Image
from released_referdino import SMALL, live_modules, shared_grounding, shared_upstream
from torch.nn import functional as F
from transformers import AutoTokenizer

from rvos_cache.contracts.scene import make_scene
from rvos_cache.settings import build
from rvos_cache.trackers.referdino import frame_maps, image_masks, prune_decoder
from rvos_cache.trackers.referdino.frame_maps import input_sizes
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.types import Expression, Video

TEXT = "the red square"


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


def make_tracker(**settings: Any) -> GdinoQueries:
    values = {"checkpoint": shared_upstream(), "masks": "head", "resizing": "image", **SMALL, "short_side": 40, **settings}
    return GdinoQueries(build(GdinoQueriesSettings, values, "gdino-queries"))


def image(size: tuple[int, int]) -> Video:
    return make_scene(1, True, size)[0]


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((320, 480), (360, 540), (384, 544)),  # a film of A2D
        ((240, 320), (360, 480), (384, 480)),  # JHMDB
        ((240, 560), (274, 639), (288, 640)),  # 360 would make the other side longer than 640
        ((560, 240), (639, 274), (640, 288)),
        ((320, 320), (360, 360), (384, 384)),
    ],
)
def test_images_have_the_sizes_of_the_released_evaluation(
    size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert input_sizes(size, 360, "image") == (resized, padded)
    video = input_sizes(size, 360, "video")
    assert video[0] == video[1] and min(video[0]) == 360


@torch.inference_mode()
def padded_masks(video: Video, resized: tuple[int, int], padded: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The released evaluation on one image, plainly: queries (Q, C) and masks bool (Q, H, W)."""
    model, head = live_modules()
    ids = AutoTokenizer.from_pretrained(shared_grounding())(f"{TEXT}.", return_tensors="pt")["input_ids"]
    pixels = np.asarray(Image.fromarray(video.read(0)).resize(resized[::-1], Image.Resampling.BILINEAR)) / 255
    normal = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    batch, real = torch.zeros(1, 3, *padded), torch.zeros(1, *padded, dtype=torch.long)
    batch[0, :, : resized[0], : resized[1]], real[0, : resized[0], : resized[1]] = torch.from_numpy(normal).permute(2, 0, 1), 1
    calls: list[dict[str, Any]] = []
    hook = model.model.decoder.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True)
    model(batch, ids, pixel_mask=real)
    hook.remove()
    inputs = calls[0]
    text, shapes = inputs["text_encoder_hidden_states"], inputs["spatial_shapes_list"]
    layer = prune_decoder(
        model.model.decoder,
        hidden=inputs["inputs_embeds"],
        memory=inputs["vision_encoder_hidden_states"],
        real=inputs["vision_encoder_attention_mask"],
        reference=inputs["reference_points"],
        shapes=shapes,
        valid_ratios=inputs["valid_ratios"],
        text=text,
        text_mask=~inputs["text_encoder_attention_mask"],
        keep=SMALL["keep_ratio"],
    )[-1]
    parts = torch.split(inputs["vision_encoder_hidden_states"], [h * w for h, w in shapes], 1)
    levels = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts[:3], shapes)]
    features = head.features([model.stage1, *levels])
    cells = F.interpolate(real[None].float(), size=model.stage1.shape[2:])[0].bool()
    words = torch.ones(text.shape[:2], dtype=torch.bool)
    logits = head.mask_logits(layer.hs, layer.reference, features, cells, text, words)[0]
    return layer.hs[0], image_masks(logits, padded, resized, video.size)


@pytest.mark.parametrize("size", [(40, 61), (63, 41), (41, 90)])
def test_an_image_gives_the_masks_of_the_released_evaluation(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_maps, "LONGEST", 80)
    video = image(size)
    resized, padded = input_sizes(size, 40, "image")
    assert resized != padded and max(resized) <= 80
    tracks = make_tracker().track(video, [Expression("v", "0", TEXT, ())])
    queries, masks = padded_masks(video, resized, padded)
    np.testing.assert_allclose(tracks.tokens[:, 0], queries.numpy(), rtol=2e-3, atol=2e-3)
    own = tracks.masks.dense()[:, 0]
    # Pixels whose logit is 0 but for rounding.
    assert (own != masks.numpy()).mean() < 1e-3 and 0.005 < masks.float().mean() < 0.98


def test_padding_is_not_the_video_s_way() -> None:
    video, expressions = image((41, 90)), [Expression("v", "0", TEXT, ())]
    padded, plain = make_tracker().track(video, expressions), make_tracker(resizing="video").track(video, expressions)
    assert not np.allclose(padded.tokens, plain.tokens, atol=1e-2)


def test_what_pads_hold_reaches_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """More padding changes queries by no more than the bias of Swin's windows does."""
    size, own = (40, 64), make_tracker()
    video = image(size)
    resized, padded = input_sizes(size, 40, "image")
    assert (resized, padded) == ((40, 64), (64, 64))
    maps = frame_maps.FrameMaps(own.upstream, video, 40, 1, True, "image")
    assert maps.real.shape == (16, 16) and maps.real.sum() == 10 * 16 and bool(maps.real[:10].all())
    levels = [level for level, _ in own.upstream.shared.levels]
    masks = [mask for _, mask in own.upstream.shared.levels]
    assert int(masks[0].sum()) == 5 * 8
    first = own.upstream.read(levels, f"{TEXT}.")
    noisy = [level + 100 * (~mask)[:, None] for level, mask in zip(levels, masks)]
    second = own.upstream.read(noisy, f"{TEXT}.")
    torch.testing.assert_close(second.hs, first.hs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.reference, first.reference, rtol=1e-4, atol=1e-4)
