"""Track the prompts of one frame through the whole video, forward and then backward, as one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rvos_cache.trackers.sam2.backend import Propagated
from rvos_cache.trackers.sam2.features import FeatureStore
from rvos_cache.trackers.sam2.follow import Controls, Follower
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.preprocess import resize_logits
from rvos_cache.trackers.sam2.ring import MemoryRing
from rvos_cache.trackers.sam2.schedule import schedule
from rvos_cache.trackers.sam2.track_writer import TrackWriter

STEP = 4
"""On a GPU a batch is filled up with empty masks to a multiple of this. An object's attention takes 32 of a GPU's 132 multiprocessors,
so 1 to 4 objects take the same time, and few sizes need few buffers, graphs and plans of cuDNN."""


class Followers:
    """The buffers and graphs of each number of objects, reused by all batches of all videos; only one of them is in use at a time.

    largest: objects of the largest batch, whose memory the others use too.
    """

    def __init__(self, network: Network, largest: int) -> None:
        self.network, self.largest = network, _size(largest)
        self.by_size: dict[int, Follower] = {}
        self.storage: MemoryRing | None = None
        self.pool: Any = None

    def get(self, objects: int, store: FeatureStore) -> Follower:
        """A follower of at least `objects` objects. On a CPU its buffers are not kept."""
        if self.network.model.device.type != "cuda":
            return Follower(self.network, objects, store.shapes)
        size = _size(objects)
        if size not in self.by_size:
            if self.storage is None:
                self.storage = self.network.attention.make_ring(self.largest, self.network.slots)
                self.pool = torch.cuda.graph_pool_handle()
            storage = self.storage if size <= self.largest else None
            self.by_size[size] = Follower(self.network, size, store.shapes, storage, self.pool)
        return self.by_size[size]

    def clear(self) -> None:
        """Free their memory; the next batches are smaller."""
        self.largest = _size(max(self.by_size, default=self.largest) // 2)
        self.by_size.clear()
        self.storage = self.pool = None


def _size(objects: int) -> int:
    """Objects of the batch that is computed."""
    return -(-objects // STEP) * STEP


def propagate(followers: Followers, store: FeatureStore, frames: int, size: tuple[int, int], t: int, masks: Tensor) -> Propagated:
    """Tracks of the objects that the mask prompts (B, 1, S, S) show in frame t of a video of `frames` frames of `size` (H, W)."""
    network, config, count = followers.network, followers.network.model.config, len(masks)
    num_pointers = min(frames, int(config.max_object_pointers_in_encoder))
    plan = schedule(t, frames, network.num_maps, num_pointers)
    follower = followers.get(count, store)
    masks = pad(masks, (0, 0) * 3 + (0, follower.objects - count))
    known = len(follower.graphs.graphs)
    controls = Controls(network, (*plan.forward, *plan.backward), plan.slots, follower.num_pointers, num_pointers)
    pointers = torch.zeros(frames, follower.objects, network.channels, device=masks.device)
    scores = torch.zeros(frames, follower.objects, device=masks.device)
    behind: list[Tensor] = []
    with TrackWriter(frames, size) as writer:

        def store_frame(s: int) -> None:
            pointers[s], scores[s] = follower.pointers, follower.scores
            writer.put(s, pointers[s, :count], scores[s, :count], resize_logits(follower.low[:count, 0], size))

        follower.prompt(store.flat(t), masks)
        store_frame(t)
        for i, (step, flat) in enumerate(zip(plan.forward, store.read([step.frame for step in plan.forward]))):
            follower.follow(step, i, controls, flat, pointers)
            store_frame(step.frame)
            if step.frame in plan.behind:
                behind.append(follower.memory.clone())
        follower.load(behind)
        for i, (step, flat) in enumerate(zip(plan.backward, store.read([step.frame for step in plan.backward]))):
            follower.follow(step, len(plan.forward) + i, controls, flat, pointers)
            store_frame(step.frame)
        tracks = writer.tracks()
    if len(follower.graphs.graphs) > known:
        # What ran before it was captured used other memory than the graphs do.
        torch.cuda.empty_cache()
    return tracks
