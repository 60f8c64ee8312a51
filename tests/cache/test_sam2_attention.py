"""Attention to memories whose keys and values were made before, against the library's own module on random memories."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_sam2
import torch
from torch import Tensor

from rvos_cache.trackers.sam2.attention import POSITION_SHARE, MemoryAttention

PLACES, POINTERS, MEMORY = 5, 8, 64


@pytest.fixture(scope="module", params=[1, 2], ids=["one head", "two heads"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import Sam2VideoModel

    folder = tiny_sam2.tiny_sam2(tmp_path_factory.mktemp("sam2"), memory_attention_num_attention_heads=request.param)
    return Sam2VideoModel.from_pretrained(str(folder)).eval().memory_attention


class Case:
    """Memories of B objects in a map's every place in time, and pointers."""

    def __init__(self, module: Any, objects: int) -> None:
        draw = torch.Generator().manual_seed(0)
        length, channels = len(module.position_ids), module.layer_norm.weight.shape[0]
        self.top, self.top_positions = (torch.randn(1, length, channels, generator=draw) for _ in range(2))
        self.maps = [torch.randn(length, objects, MEMORY, generator=draw).bfloat16() for _ in range(PLACES)]
        self.places = torch.randn(PLACES, length, MEMORY, generator=draw)
        self.tokens, self.token_places = (torch.randn(POINTERS, objects, MEMORY, generator=draw) for _ in range(2))
        self.module, self.objects = module, objects

    def library(self) -> Tensor:
        positions = [place[:, None].expand(-1, self.objects, -1) for place in self.places]
        found: Tensor = self.module(
            current_vision_features=self.top.transpose(0, 1).expand(-1, self.objects, -1),
            current_vision_position_embeddings=self.top_positions.transpose(0, 1),
            memory=torch.cat([*self.maps, self.tokens]).float(),
            memory_posision_embeddings=torch.cat([*positions, self.token_places]),
            num_object_pointer_tokens=POINTERS,
        )
        return found.reshape(self.objects, *self.top.shape[1:])

    def ours(self) -> Tensor:
        attention = MemoryAttention(self.module)
        keys = attention.place_keys(self.places)
        maps = [(attention.read(m.float()), [layer[i] for layer in keys]) for i, m in enumerate(self.maps)]
        assert {read.keys[0].dtype for read, _ in maps} == {layer.dtype for layer in keys}
        return attention.attend(self.top + POSITION_SHARE * self.top_positions, maps, self.tokens, self.token_places)


@pytest.mark.parametrize("objects", [1, 3])
def test_equals_the_library(module: Any, objects: int) -> None:
    case = Case(module, objects)
    with torch.inference_mode():
        torch.testing.assert_close(case.ours(), case.library(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("objects", [1, 3])
def test_half_precision_is_as_near_to_the_whole_as_the_library_s(module: Any, objects: int) -> None:
    """As on a GPU: adding two rounded keys rounds no more than one projection of a rounded sum; none is kept in float32."""
    case = Case(module, objects)
    with torch.inference_mode():
        whole = case.library()
        with torch.autocast("cpu", torch.bfloat16):
            ours, library = case.ours(), case.library()
    assert ours.dtype == library.dtype
    near, usual = ((half.float() - whole).abs().mean() for half in (ours, library))
    assert 0 < near < 1.2 * usual < 0.05
