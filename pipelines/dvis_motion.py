"""Where an object is and how it moves: what a linear head of training tells from each token of a track of moving shapes.

Every quantity is told as a distribution over bins, as in the tokens of `flow`, from which DeRVOS does learn motion; a quantity between
the centres of two bins is of both.

Letters: A objects, T frames, h w cells, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dvis_segmenter import places_of
from rvos_cache.shapes.scene import SIZE

PLACES = {"x": (12, -1.0, 1.0), "y": (12, -1.0, 1.0), "size": (12, -4.0, -0.5)}
"""Quantity of `places_of` -> number of its bins, and the centres of the first and the last."""
CHANGES = dict.fromkeys(PLACES, (11, -0.95, 0.95))
"""The same of its change from frame to frame, after `compressed`."""
BINS = [count for count, *_ in (*PLACES.values(), *CHANGES.values())]
REACH = 2
"""Frames before and after a frame that its changes are measured over."""
FASTEST = (3.7 * 2 / SIZE[1], 3.7 * 2 / SIZE[0], 0.025)
"""Changes of x, y and size per frame at which tanh is 0.76: 3.7 pixels, and 2.5 % of the root of the area."""


class MotionHead(nn.Linear):
    """Linear: tokens of C channels to the logits of all bins."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, sum(BINS))

    def loss(self, tokens: Tensor, shares: Tensor, covers: Tensor) -> Tensor:
        """Cross-entropy of the bins: the sum over the quantities of means over frames, divided by three.

        Places count in the frames that show the object; changes where another frame within REACH shows it too and the track has it
        in all frames within REACH: from a token of something else no change can be told, and such tokens hide those that can.
        tokens: (A, T, C), of the tracks of the objects; shares: (A, T, h, w), of each cell that an object covers; covers: bool
        (A, T), where the track has the object.
        """
        places, visible = places_of(shares)
        changes, known = changes_of(places, visible)
        known = known & (_windows((~covers).float()[..., None]).sum(-1)[..., 0] == 0)
        quantities = [
            *((soft_bins(value, *bins), visible) for value, bins in zip(places.unbind(-1), PLACES.values())),
            *((soft_bins(value, *bins), known) for value, bins in zip(compressed(changes).unbind(-1), CHANGES.values())),
        ]
        total = tokens.new_zeros(())
        for logits, (truth, counted) in zip(self(tokens).split(BINS, -1), quantities):
            each = -(truth * logits.log_softmax(-1)).sum(-1)
            total = total + each[counted].sum() / counted.sum().clamp(min=1)
        return total / len(PLACES)


def changes_of(places: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Change per frame of places (A, T, 3): the slope of the line of least squares through the frames within REACH that show the
    object, (A, T, 3); and where there are two of them and the frame itself is one, bool (A, T). visible: bool (A, T)."""
    weight = _windows(visible.float()[..., None])
    offset = torch.arange(-REACH, REACH + 1.0)
    count = weight.sum(-1).clamp(min=1)
    centred = weight * (offset - (weight * offset).sum(-1, keepdim=True) / count[..., None])
    slope = (centred * _windows(places)).sum(-1) / (centred * offset).sum(-1).clamp(min=1e-6)
    return slope, visible & (weight.sum(-1)[..., 0] >= 2)


def slope_taps() -> Tensor:
    """The kernel (2 · REACH + 1,) of a convolution over time that gives the slope of `changes_of` where all its frames are known."""
    offset = torch.arange(-REACH, REACH + 1.0)
    return offset / (offset**2).sum()


def compressed(changes: Tensor) -> Tensor:
    """Changes (..., 3) as numbers between -1 and 1, by tanh."""
    return torch.tanh(changes / torch.tensor(FASTEST))


def soft_bins(values: Tensor, count: int, low: float, high: float) -> Tensor:
    """values (...) as distributions over `count` bins (..., count) whose centres go from low to high, by linear interpolation."""
    position = ((values - low) / (high - low) * (count - 1)).clamp(0, count - 1)
    return (1 - (position[..., None] - torch.arange(count)).abs()).clamp(min=0)


def _windows(values: Tensor) -> Tensor:
    """values (A, T, K) of the frames within REACH of each, zero beyond the ends: (A, T, K, 2 · REACH + 1)."""
    return F.pad(values, (0, 0, REACH, REACH)).unfold(1, 2 * REACH + 1, 1)
