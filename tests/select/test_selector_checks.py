"""The contract tests that `rvos-select check-selector` runs: built-in selectors and the README's pass, broken ones fail by name."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from rvos_cache.contracts.checks import CheckSkipped
from rvos_cache.errors import InputError
from rvos_cache.types import FeatureSpec
from rvos_select.cli import cli
from rvos_select.contracts import SELECTOR_CHECKS, SelectorCase, run_selector_checks
from rvos_select.data.batch import Batch
from rvos_select.selectors import SELECTORS, Selector, SelectorConfig, selector_class

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"width": 16, "heads": 4, "negatives": 3, "layers": 1, "motion_dropout": 0.0, "attention_dropout": 0.0}
DERVOS = {
    "understanding": "words", "match_cost": "counts", "width": 16, "hidden": 24, "sem_layers": 1, "cfma_layers": 1,
    "mgis_layers": 1, "motion_queries": 3, "dropout": 0.0, "clip_frames": 4,
}  # fmt: skip
BUILT_IN: list[tuple[str, dict[str, Any]]] = [
    ("sola", SMALL),
    ("sola", {**SMALL, "variant": "paper"}),
    ("mean-cosine", {"width": 16}),
    ("dervos", DERVOS),
]
# Of caches of VITA, of pooled ones and of ReferDINO's queries: tests of their own run the same checks.
TESTED_ELSEWHERE = {"dmvs", "all-tracks", "clip-zero-shot", "ssa", "referdino"}


def test_every_selector_is_tested() -> None:
    assert {name for name, _ in BUILT_IN} | TESTED_ELSEWHERE == set(SELECTORS)


@pytest.fixture(
    scope="module", params=BUILT_IN, ids=lambda case: "-".join([case[0], *(v for v in case[1].values() if type(v) is str)])
)
def case(request: pytest.FixtureRequest) -> SelectorCase:
    return SelectorCase(*request.param)


@pytest.mark.parametrize("check", SELECTOR_CHECKS.values(), ids=lambda check: check.__name__)
def test_contract(case: SelectorCase, check: Callable[[SelectorCase], None]) -> None:
    with contextlib.suppress(CheckSkipped):
        check(case)


def failures(selector: str, **arguments: Any) -> dict[str, str]:
    return {r.title: r.message for r in run_selector_checks(SelectorCase(selector, **arguments)) if r.status == "FAILED"}


class Base(Selector):
    """A selector that passes; each class below breaks one thing."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.token_channels, config.word_channels)

    def mean_token(self, batch: Batch) -> Tensor:
        return batch.tokens.masked_fill(~batch.frame_mask[:, None, :, None], 0).sum(2) / batch.frame_mask.sum(1)[:, None, None]

    def forward(self, batch: Batch) -> Tensor:
        words = batch.words.masked_fill(~batch.word_mask[..., None], 0).sum(1) / batch.word_mask.sum(1)[:, None]
        return (self.layer(self.mean_token(batch)) * words[:, None]).sum(-1)


class PaddingCounts(Base):
    def mean_token(self, batch: Batch) -> Tensor:
        return batch.tokens.mean(2)


class TrackPositionCounts(Base):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch) + torch.arange(batch.track_mask.shape[1], device=batch.track_mask.device)


class RowPositionCounts(Base):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch) + torch.arange(len(batch), device=batch.track_mask.device)[:, None]


class SummedLoss(Base):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().loss(batch)["loss"] * len(batch)}


class HiddenIsNegative(Base):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        logits = self(batch)
        target = torch.zeros_like(logits) if batch.target is None else batch.target
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, target)}


class UnusedParameter(Base):
    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class WrongShape(Base):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch)[:, :1]


class StaticInName(Base):
    static_shapes = True

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": super().loss(batch)["loss"] * batch.tokens.shape[2]}


class StaticButReads(Base):
    static_shapes = True

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return super().loss(batch) if bool(batch.frame_mask.any()) else {}


class NotANumber(Base):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch) / 0 * 0


class OwnRandomNumbers(Base):
    def forward(self, batch: Batch) -> Tensor:
        noise = random.gauss(1, 0.5) if self.training else 1
        return super().forward(batch) * noise


class StateOutsideTheModule(Base):
    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        self.offset = torch.randn(()).item()

    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch) + self.offset


class ReadsEverything(Base):
    """Features by frame, of tracks, of expressions and of objects, and a measurement."""

    requires = ("presence", "features.quality", "features.text_score", "frames.maps", "measured.soft", "spans")

    def forward(self, batch: Batch) -> Tensor:
        frames = batch.frame_mask.sum(1)
        maps = torch.stack([array[:].float().sum((0, 1, 2)) for array in batch.frames["maps"]])
        score = batch.features["text_score"].sum((1, 2)) / (frames * batch.lengths["r"])
        assert batch.spans is not None and batch.spans.shape[:2] == batch.word_mask.shape
        return super().forward(batch) + batch.features["quality"] + (score + 0.1 * maps / (frames * 4))[:, None]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if batch.target is not None:
            soft = batch.measured["soft"]
            assert soft.shape == (len(batch), batch.tokens.shape[1], int(batch.lengths["A"].max()), batch.tokens.shape[2])
        return super().loss(batch)


FEATURES = (
    FeatureSpec("quality", ("N",), "float32"),
    FeatureSpec("text_score", ("E", "T", "r"), "float32"),
    FeatureSpec("maps", ("T", "h", 4), "float16", by_frame=True),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selector", "title"),
    [
        (PaddingCounts, "padding changes nothing"),
        (TrackPositionCounts, "scores follow their tracks"),
        (RowPositionCounts, "expressions together equal each alone"),
        (SummedLoss, "the loss is a mean over expressions"),
        (HiddenIsNegative, "hidden ground truth has scores but no loss"),
        (UnusedParameter, "the loss is finite and trains every parameter"),
        (WrongShape, "forward returns logits"),
        (NotANumber, "forward returns logits"),
        (StaticInName, "padded batches have the same loss (static_shapes)"),
        (StaticButReads, "padded batches have the same loss (static_shapes)"),
        (OwnRandomNumbers, "train, resume, predict"),
        (StateOutsideTheModule, "saved and read back"),
    ],
)
def test_a_broken_selector_fails_the_check_of_that_name(selector: type[Selector], title: str) -> None:
    assert failures(f"{__name__}:Base") == {}
    messages = failures(f"{__name__}:{selector.__name__}")
    assert title in messages, messages
    assert all("\n" not in message for message in messages.values())


def test_named_arrays_of_every_axis_reach_a_selector() -> None:
    name = f"{__name__}:ReadsEverything"
    measurements = (FeatureSpec("soft", ("N", "A", "T"), "float32"),)
    assert failures(name, features=FEATURES, measurements=measurements) == {}
    with pytest.raises(InputError, match=r"requires features.quality, .*declare them, --feature NAME:DIMS"):
        list(run_selector_checks(SelectorCase(name)))


class NoForward(Selector):
    pass


class MisspeltPart(Base):
    requires = ("presense",)


class PlainConfig(Base):
    Config = dict  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoForward", "has no method forward; see rvos_select.Selector.forward"),
        ("MisspeltPart", "requires 'presense', which is no part of a batch; there are: presence, spans"),
        ("PlainConfig", "Config is <class 'dict'>; derive it from rvos_select.SelectorConfig"),
        ("EXAMPLES", "is not a subclass of rvos_select.Selector"),
        ("Absent", "has no 'Absent'"),
    ],
)
def test_a_class_without_a_part_is_one_line_at_load(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        selector_class(f"{__name__}:{name}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_a_line_per_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    result = CliRunner().invoke(cli, ["check-selector", "my_selector:MySelector", "--set", "width=8"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == len(SELECTOR_CHECKS) + 1 and lines[-1] == "selector my_selector:MySelector passes"
    skipped = [line for line in lines[:-1] if not line.startswith("ok ")]
    assert len(skipped) == 1 and skipped[0].startswith("skipped") and "static_shapes is not declared" in skipped[0]
    result = CliRunner().invoke(cli, ["check-selector", f"{__name__}:WrongShape"])
    assert isinstance(result.exception, InputError) and "tests failed" in str(result.exception)
    assert "FAILED  forward returns logits: forward returns (4, 1), expected" in result.output


def test_settings_lists_every_setting_of_a_selector_and_of_train() -> None:
    for name, model in (("sola", selector_class("sola").Config), ("train", None)):
        output = CliRunner().invoke(cli, ["settings", name]).output
        assert "default" in output and "Source: " in output
        for field in model.model_fields if model else ("optim.lr", "batch", "label_rule"):
            assert f"  {field} " in output
