"""SSA's live losses: what is a target, and what the sums are divided by."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from rvos_select.selectors.ssa import SsaConfig
from rvos_select.selectors.ssa.losses import ClipOutput, losses, normalisers, terms


def random_output(seed: int = 0) -> ClipOutput:
    """Outputs of one clip of two frames and five queries."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return ClipOutput(
        random(4, 1, 2, 5, 2), random(4, 1, 2, 5, 4, 4), random(2, 3, 1, 5, 2), random(2, 3, 1, 5, 8), random(1, 2, 8, 4, 4),
        random(3, 1, 2, 5, 8), random(3, 1, 5, 8),
    )  # fmt: skip


def random_truth(objects: int = 2) -> Tensor:
    return torch.rand(objects, 2, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5


CONFIG = SsaConfig(points=16)


def test_an_object_that_no_frame_shows_is_no_target() -> None:
    """Also not of the video queries."""
    truth = random_truth()
    unseen = torch.cat([truth, torch.zeros_like(truth[:1])])
    values = []
    for masks in (truth, unseen):
        torch.manual_seed(0)
        values.append(terms(random_output(), [masks], CONFIG))
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert torch.equal(value, values[1][name]), name


def test_counts_by_hand() -> None:
    """Three objects, of which two are in the first frame and one in the second: five queries match 2, 1 and, in the clip, 2."""
    truth = torch.zeros(3, 2, 4, 4)
    truth[0] = 1
    truth[1, 0] = 1
    expected = {"clips": 1, "object_frames": 3, "objects": 2, "pairs": 3 * (2 + 1 + 2) ** 2}
    assert normalisers([truth], 5, 3) == expected
    assert normalisers([truth, truth.bool()], 1, 1) == {
        "clips": 2,
        "object_frames": 6,
        "objects": 4,
        "pairs": 2 * (1 + 1 + 1) ** 2,
    }


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_sums_are_divided_by_the_counts_of_the_whole_step(factor: float) -> None:
    """Class losses by clips, those of frames by objects in frames, of videos by objects, the similarity by pairs."""
    truth = [random_truth()]
    values = []
    counts = normalisers(truth, 5, 3)
    for divide_by in (None, {name: count * factor for name, count in counts.items()}):
        torch.manual_seed(0)
        values.append(losses(random_output(), truth, CONFIG, divide_by))
    for name, value in values[0].items():
        assert values[1][name].item() == pytest.approx(value.item() / factor, rel=1e-5), name
    parts = {"clips": "class", "object_frames": "frame_(bce|dice)", "objects": "video_(bce|dice)", "pairs": "similarity"}
    for count, changed in parts.items():
        torch.manual_seed(0)
        own = losses(random_output(), truth, CONFIG, {**counts, count: 2 * counts[count]})
        torch.manual_seed(0)
        same = losses(random_output(), truth, CONFIG, counts)
        for name in own.keys() - {"loss"}:
            share = 0.5 if re.search(changed, name) else 1.0
            assert own[name].item() == pytest.approx(share * same[name].item(), rel=1e-5), (count, name)
