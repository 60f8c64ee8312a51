"""One frame's step of following: attend to memory, segment, encode the new memory. A function of buffers that never move.

Nothing in it waits for the GPU or depends on values, so on a GPU it is captured as a CUDA graph for each number of occupied slots;
the frame, the distances and the slot to write are tensors.
Letters: B objects, C channels of a pointer, P pointers, D channels of a memory, L cells of a map, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rvos_cache.system.cuda_graphs import Graphs
from rvos_cache.trackers.sam2.attention import merges_pointers
from rvos_cache.trackers.sam2.features import Features, Shape
from rvos_cache.trackers.sam2.network import Network, Segmented
from rvos_cache.trackers.sam2.ring import MemoryRing
from rvos_cache.trackers.sam2.schedule import Step


class Controls:
    """What each step attends to, as tensors on the device: uploaded once for all steps.

    most: P; num_pointers: frames of this video whose pointers are attended to at most.
    slots: int64 (N, 1); distances: int64 (N, S); frames: int64 (N, P), whose pointers; positions: (N, P, D); bias: (N, P).
    """

    def __init__(self, network: Network, steps: Sequence[Step], slots: int, most: int, num_pointers: int) -> None:
        def padded(rows: list[list[int]], width: int) -> Tensor:
            table = torch.tensor([row + [0] * (width - len(row)) for row in rows]).view(len(rows), width)
            return table.to(network.model.device)

        self.slots = padded([[step.slot] for step in steps], 1)
        self.distances = padded([list(step.distances) for step in steps], slots)
        self.frames = padded([[t for t, _ in step.pointers] for step in steps], most)
        away = padded([[distance for _, distance in step.pointers] for step in steps], most)
        counts = padded([[len(step.pointers)] for step in steps], 1)
        self.positions = network.pointer_positions(away, num_pointers)
        there = torch.arange(most, device=away.device) < counts
        self.bias = torch.zeros(there.shape, device=away.device).masked_fill(~there, float("-inf"))


class Follower:
    """Buffers and graphs of B objects; `prompt` and then `follow` for each frame, in the order of a Schedule.

    storage: a ring of at least as many objects, whose memory is used; pool: of the graphs' intermediate results.
    low, pointers, scores, memory: outputs of the last call, overwritten by the next.
    """

    def __init__(
        self, network: Network, objects: int, shapes: Sequence[Shape], storage: MemoryRing | None = None, pool: Any = None
    ) -> None:
        model, device, dtype = network.model, network.model.device, network.dtype
        slots, num_pointers = network.slots, int(model.config.max_object_pointers_in_encoder)
        self.network, self.objects, self.num_pointers = network, objects, num_pointers
        self.multimask = bool(model._use_multimask(False, None))
        self.ring = network.attention.make_ring(objects, slots, storage)
        self.flat = torch.zeros(sum(c * h * w for c, h, w in shapes), dtype=dtype, device=device)
        self.features = Features.unpack(self.flat, shapes)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.distances = torch.zeros(slots, dtype=torch.int64, device=device)
        self.attended = torch.zeros(num_pointers, objects, network.channels, device=device)
        self.positions = torch.zeros(num_pointers, model.mem_dim, dtype=dtype, device=device)
        self.bias = torch.zeros(num_pointers, device=device)
        side, (_, h, w) = network.model.prompt_encoder.mask_input_size, shapes[-1]
        self.low = torch.zeros(objects, 1, *side, device=device)
        self.pointers = torch.zeros(objects, network.channels, device=device)
        self.scores = torch.zeros(objects, device=device)
        self.memory = torch.zeros(objects, h * w, model.mem_dim, dtype=torch.bfloat16, device=device)
        self.graphs = Graphs(pool)

    def prompt(self, flat: Tensor, masks: Tensor) -> None:
        """The frame with features `flat` in which the objects are prompted with masks (B, 1, S, S)."""
        self.flat.copy_(flat, non_blocking=True)
        self.slot.zero_()
        self._write(self.network.from_mask_prompts(self.features, masks), prompted=True)

    def load(self, memories: Sequence[Tensor]) -> None:
        """Write memory maps, each as `memory` was, into the slots from 1."""
        for i, memory in enumerate(memories):
            self.network.attention.store(memory, self.ring, self.slot.fill_(i + 1))

    def follow(self, step: Step, i: int, controls: Controls, flat: Tensor, pointers: Tensor) -> None:
        """Step i of `controls`, with the features `flat` of its frame. pointers: float32 (T, B, C), those of each frame so far."""
        self.flat.copy_(flat, non_blocking=True)
        self.slot.copy_(controls.slots[i])
        self.distances.copy_(controls.distances[i])
        self.positions.copy_(controls.positions[i])
        self.bias.copy_(controls.bias[i])
        torch.index_select(pointers, 0, controls.frames[i], out=self.attended)
        # Where pointers are not attended to apart, their number is that of the kernel's keys.
        count = self.num_pointers if merges_pointers(self.flat) else len(step.pointers)
        key = (len(step.distances), count)
        if self.flat.is_cuda and self.flat.dtype != torch.float32:
            self.graphs.run(key, lambda: self.step(*key))
        else:
            self.step(*key)

    def step(self, maps: int, pointers: int) -> None:
        """Attend to the first `maps` slots and the first `pointers` pointers, and write the outputs and the slot."""
        memories: dict[str, Any] = {"ring": self.ring, "distances": self.distances, "count": maps}
        top = self.network.condition(
            self.features, self.attended[:pointers], self.positions[:pointers], self.bias[:pointers], memories
        )
        self._write(self.network.segment(self.features, top, multimask=self.multimask), prompted=False)

    def _write(self, segmented: Segmented, prompted: bool) -> None:
        self.low.copy_(segmented.low)
        self.pointers.copy_(segmented.pointers)
        self.scores.copy_(segmented.scores[:, 0, 0])
        self.memory.copy_(self.network.encode_memory(self.features, segmented, prompted))
        self.network.attention.store(self.memory, self.ring, self.slot)
