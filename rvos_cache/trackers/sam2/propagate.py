"""Track the prompts of one frame through the whole video, forward and then backward, as one batch."""

from __future__ import annotations

from torch import Tensor

from rvos_cache.trackers.sam2.backend import Propagated
from rvos_cache.trackers.sam2.features import Features, FeatureStore
from rvos_cache.trackers.sam2.memory import MemoryBank
from rvos_cache.trackers.sam2.network import Network, Segmented
from rvos_cache.trackers.sam2.preprocess import resize_logits
from rvos_cache.trackers.sam2.track_writer import TrackWriter


def propagate(network: Network, store: FeatureStore, frames: int, size: tuple[int, int], t: int, masks: Tensor) -> Propagated:
    """Tracks of the objects that the mask prompts (B, 1, S, S) show in frame t of a video of `frames` frames of `size` (H, W)."""
    config = network.model.config
    bank = MemoryBank(t, int(config.num_maskmem), min(frames, int(config.max_object_pointers_in_encoder)))
    multimask = bool(network.model._use_multimask(False, None))
    with TrackWriter(frames, size) as writer:

        def store_frame(s: int, features: Features, segmented: Segmented, backward: bool) -> None:
            bank.add(s, network.encode_memory(features, segmented, s == t), segmented.pointers, backward)
            writer.put(s, segmented.pointers, segmented.scores[:, 0, 0], resize_logits(segmented.low[:, 0], size))

        features = store.get(t)
        store_frame(t, features, network.from_mask_prompts(features, masks), False)
        for backward, order in ((False, range(t + 1, frames)), (True, range(t - 1, -1, -1))):
            for s, features in zip(order, store.read(order)):
                top = network.condition(features, bank.before(s, backward), bank.num_pointers)
                store_frame(s, features, network.segment(features, top, multimask=multimask), backward)
        return writer.tracks()
