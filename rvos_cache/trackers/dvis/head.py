"""DVIS++ behind its segmenter: the parts that make tracks of frame queries, and the scores of the tracks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.trackers.dvis import queries, referring, refiner
from rvos_cache.trackers.dvis.queries import ReidQueries, is_reid
from rvos_cache.trackers.dvis.referring import ReferringTracker
from rvos_cache.trackers.dvis.refiner import TemporalRefiner


class DvisHead(nn.Module):
    """The frozen re-identification, tracker and refiner of one checkpoint."""

    def __init__(self, reid: ReidQueries, tracker: ReferringTracker, refiner: TemporalRefiner) -> None:
        super().__init__()
        self.reid, self.tracker, self.refiner = reid, tracker, refiner

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> DvisHead:
        """The parts of the released tensors; tensors of other names are ignored.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        head = cls(
            ReidQueries.from_official(state_dict),
            ReferringTracker.from_official(state_dict),
            TemporalRefiner.from_official(state_dict),
        )
        width = 2 * len(head.reid.decoder_norm.weight)
        for name, part in (("tracker", head.tracker), ("refiner", head.refiner)):
            if part.channels != width:
                raise InputError(
                    f"the {name} has {part.channels} channels, and the queries with their embeddings {width}; give a complete "
                    f"{queries.KIND}"
                )
        classes = [len(part.class_embed.bias) - 1 for part in (head.tracker, head.refiner)]
        if classes[0] != classes[1]:
            raise InputError(f"the tracker has {classes[0]} classes, the refiner {classes[1]}; give a complete {queries.KIND}")
        return head

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names, without those that are not read."""
        return {**self.reid.official(), **self.tracker.official(), **self.refiner.official()}


def is_head(name: str) -> bool:
    """Whether the released tensor `name` is one of the head's, or of its parts that are not read."""
    return is_reid(name) or name.startswith((referring.PREFIX, refiner.PREFIX))


def is_unread(name: str) -> bool:
    """Whether the released tensor `name` is a part of the head that the offline model does not read."""
    return name.startswith(tuple(referring.PREFIX + part for part in referring.UNREAD))


def track_scores(refiner_logits: Tensor, tracker_logits: Tensor) -> Tensor:
    """Scores (B, N) in [0, 1] of refiner logits (B, N, K + 1) and tracker logits (B, T, N, K + 1), the void class last.

    Per class the larger of the refiner's probability and that of the tracker's mean logits; of these the best class that is not
    void. Source: the released code's answer is the best of all pairs of a query and a class; here each query has its best.
    """
    both = torch.maximum(refiner_logits.softmax(-1), tracker_logits.mean(1).softmax(-1))
    return both[..., :-1].amax(-1)
