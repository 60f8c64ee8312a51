"""BEiT-3 as a frozen part of a selector: the one that a text cache's card names, for frames of any side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_beit3 import WIDTH, write_tiny_beit3
from torch import nn

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.text.beit3 import Beit3, digest, load
from rvos_select.data.cards import CacheCards
from rvos_select.selectors.base import Selector
from rvos_select.selectors.frozen import FrozenPart


class Online(Selector):
    """Reads frames of 96 pixels by the BEiT-3 of its words."""

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.head = nn.Linear(WIDTH, 1)

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        card = cards.text[0]
        checkpoint = str(card.settings["checkpoint"])
        expected = card.weights[Path(checkpoint).name]
        return (FrozenPart("beit3", checkpoint, lambda name: load(name, 96), digest, expected, "the text cache"),)


def card_of(folder: Path, weights: str) -> CacheCards:
    settings = {"checkpoint": str(folder)}
    text = Card(
        kind="text", dataset="d", split="s", producer="beit3", channels=WIDTH, settings=settings, weights={folder.name: weights}
    )
    return CacheCards((), (text,))


def test_it_is_bound_by_the_digest_of_the_text_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_beit3(tmp_path / "TINY")
    recorded, selector = digest(load(str(folder))), Online()
    own = set(selector.state_dict())
    selector.bind(card_of(folder, recorded))
    part = selector.frozen["beit3"]
    assert isinstance(part, Beit3) and part.side == 96 and set(selector.state_dict()) == own
    assert {name for name, _ in selector.named_parameters()} == {"head.weight", "head.bias"}
    selector.train()
    assert not part.training and selector.training
    output = part(torch.zeros(1, 3, 96, 96), torch.tensor([[0, 7, 2]]), torch.ones(1, 3, dtype=torch.bool))
    selector.head(output.words).sum().backward()
    assert selector.head.weight.grad is not None and output.vision.shape == (1, 36, WIDTH)
    with pytest.raises(InputError, match=f"beit3 has digest {recorded}, the text cache was made with 00"):
        Online().bind(card_of(folder, "00"))
    # Moved with its caches to another machine.
    monkeypatch.setenv("RVOS_CHECKPOINTS", str(tmp_path))
    Online().bind(card_of(Path("/gone/TINY"), recorded))
