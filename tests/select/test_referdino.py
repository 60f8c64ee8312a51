"""ReferDINO's selector: released values, padding, GroundingDINO's own logits, and other alignments of the same queries."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tiny_referdino import SMALL, write_caches

from rvos_cache.contracts.checks import CheckSkipped
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase
from rvos_select.selectors.referdino import ReferDino, ReferDinoConfig


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_caches(tmp_path_factory.mktemp("caches"))


def test_the_published_module_has_its_parameters() -> None:
    model = ReferDino(ReferDinoConfig())
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in (("enhancer", model.enhancer), ("box", model.box))
    }
    assert counts == {"enhancer": 5_528_832, "box": 132_612}
    assert sum(p.numel() for p in model.parameters()) == 5_661_444


CASES = {
    "default": {},
    "none": {"tracker": "none", "target_mode": "multi_positive", "sentence_feature": "mean_tokens"},
    "retrack": {"tracker": "retrack", "logit_affine": True, "sentence_feature": "both", "box_frames": "visible"},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, caches: tuple[Path, Path]) -> SelectorCase:
    return SelectorCase("referdino", {**SMALL, **CASES[request.param]}, tracks=caches[0], texts=caches[1])


@pytest.mark.parametrize("title", SELECTOR_CHECKS)
def test_the_contract(case: SelectorCase, title: str) -> None:
    # A clip is of an expression with a visible object, so there is no check without objects.
    with contextlib.suppress(CheckSkipped):
        SELECTOR_CHECKS[title](case)
