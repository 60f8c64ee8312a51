"""Attention to memories whose keys and values were computed before, against transformers' own module on random memories."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_sam2
import torch
from torch import Tensor

from rvos_cache.trackers.sam2.attention import POSITION_SCALE, MemoryAttention

POSITIONS, POINTERS, MEMORY = 5, 8, 64
ORDER = [0, 3, 1, 4, 2]
"""The temporal position of the map in each slot."""


@pytest.fixture(autouse=True, scope="module")
def cpu() -> Iterator[None]:
    with tiny_sam2.without_gpu():
        yield


@pytest.fixture(scope="module", params=[1, 2], ids=["one head", "two heads"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import Sam2VideoModel

    folder = tiny_sam2.tiny_sam2(tmp_path_factory.mktemp("sam2"), memory_attention_num_attention_heads=request.param)
    return Sam2VideoModel.from_pretrained(str(folder)).eval().memory_attention


class Case:
    """Random memories of B objects, a map at each temporal position, and pointers."""

    def __init__(self, module: Any, objects: int) -> None:
        generator = torch.Generator().manual_seed(0)
        length, channels = len(module.position_ids), module.layer_norm.weight.shape[0]
        self.top, self.top_positions = (torch.randn(1, length, channels, generator=generator) for _ in range(2))
        self.maps = [torch.randn(length, objects, MEMORY, generator=generator).bfloat16() for _ in range(POSITIONS)]
        self.positions = torch.randn(POSITIONS, length, MEMORY, generator=generator)
        self.tokens, positions = (torch.randn(POINTERS, n, MEMORY, generator=generator) for n in (objects, 1))
        self.token_positions = positions.expand(-1, objects, -1)
        self.module, self.objects = module, objects

    def transformers(self) -> Tensor:
        positions = [position[:, None].expand(-1, self.objects, -1) for position in self.positions]
        output: Tensor = self.module(
            current_vision_features=self.top.transpose(0, 1).expand(-1, self.objects, -1),
            current_vision_position_embeddings=self.top_positions.transpose(0, 1),
            memory=torch.cat([*self.maps, self.tokens]).float(),
            memory_posision_embeddings=torch.cat([*positions, self.token_positions]),
            num_object_pointer_tokens=POINTERS,
        )
        return output.reshape(self.objects, *self.top.shape[1:])

    def ours(self, dtype: Any = torch.float32) -> Tensor:
        attention = MemoryAttention(copy.deepcopy(self.module).to(dtype), self.module)
        keys = attention.position_keys(self.positions)
        ring = attention.make_ring(self.objects, POSITIONS)
        distances = torch.tensor(ORDER)
        # The last slot is written twice: first with another map.
        for slot, distance in [(POSITIONS - 1, 0), *enumerate(ORDER)]:
            attention.store(self.maps[distance].transpose(0, 1), ring, torch.tensor([slot]))
        assert {ring.keys.dtype, ring.values.dtype, *(layer.dtype for layer in keys)} == {dtype}
        top = (self.top + POSITION_SCALE * self.top_positions).to(dtype)
        tokens, positions = self.tokens.transpose(0, 1).to(dtype), self.token_positions[:, 0].to(dtype)
        return attention.attend(top, ring, keys, distances, POSITIONS, tokens, positions, torch.zeros(POINTERS))


@pytest.mark.parametrize("objects", [1, 3])
def test_equals_transformers(module: Any, objects: int) -> None:
    case = Case(module, objects)
    with torch.inference_mode():
        torch.testing.assert_close(case.ours(), case.transformers(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objects", [1, 3])
def test_half_precision_is_as_close_to_float32_as_transformers_is(module: Any, objects: int) -> None:
    """With weights cast once, and keys added to their positions after rounding both, against the library's autocast."""
    case = Case(module, objects)
    with torch.inference_mode():
        whole, ours = case.transformers(), case.ours(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = case.transformers()
    our_error, their_error = ((half.float() - whole).abs().mean() for half in (ours, theirs))
    assert 0 < our_error < 1.3 * their_error < 0.05
