"""Track the prompts of one frame through the whole video, forward and then backward, as one batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rvos_cache.trackers.sam2.backend import Propagated
from rvos_cache.trackers.sam2.features import FeatureStore
from rvos_cache.trackers.sam2.follow import Controls, Follower
from rvos_cache.trackers.sam2.network import Network
from rvos_cache.trackers.sam2.preprocess import resize_logits
from rvos_cache.trackers.sam2.schedule import schedule
from rvos_cache.trackers.sam2.track_writer import TrackWriter

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of objects that have buffers and graphs of their own on a GPU; a batch of another size is filled up with empty masks."""


class Followers:
    """The buffers and graphs of each number of objects, reused by all batches of all videos with as many pointers."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.by_size: dict[tuple[int, int], Follower] = {}

    def get(self, objects: int, store: FeatureStore, slots: int, num_pointers: int) -> Follower:
        """A follower of at least `objects` objects. On a CPU its buffers are not kept."""
        if not self.network.model.device.type == "cuda":
            return Follower(self.network, objects, store.shapes, slots, num_pointers)
        objects = next((size for size in SIZES if size >= objects), objects)
        key = (objects, num_pointers)
        if key not in self.by_size:
            self.by_size[key] = Follower(self.network, objects, store.shapes, slots, num_pointers)
        return self.by_size[key]

    def clear(self) -> None:
        """Free their memory."""
        self.by_size.clear()


def propagate(followers: Followers, store: FeatureStore, frames: int, size: tuple[int, int], t: int, masks: Tensor) -> Propagated:
    """Tracks of the objects that the mask prompts (B, 1, S, S) show in frame t of a video of `frames` frames of `size` (H, W)."""
    network, config, count = followers.network, followers.network.model.config, len(masks)
    num_pointers = min(frames, int(config.max_object_pointers_in_encoder))
    plan = schedule(t, frames, int(config.num_maskmem), num_pointers)
    follower = followers.get(count, store, plan.slots, num_pointers)
    masks = pad(masks, (0, 0) * 3 + (0, follower.objects - count))
    controls = Controls(network, (*plan.forward, *plan.backward), plan.slots, num_pointers)
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
        return writer.tracks()
