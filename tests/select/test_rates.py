"""Learning rates of parts of a module: which parameters a name means, each step's rates, resuming, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import numbers, run, settings
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.store import read_card
from rvos_select.data.cards import CacheCards
from rvos_select.runs.checkpoint import load_selector
from rvos_select.training import train as loop
from rvos_select.training.optim import learning_rate, make_optimizer, set_learning_rate
from rvos_select.training.settings import OptimSettings
from rvos_select.training.train import make_selector


def module() -> nn.Module:
    """Parts "adapters", "video" and "scale"; norms and embeddings among them."""
    torch.manual_seed(0)
    adapter = nn.ModuleDict({"conv1": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
    video = nn.ModuleDict({"decoder": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "query": nn.Embedding(4, 2)})
    out = nn.Module()
    out.adapters, out.video = nn.ModuleList([adapter]), video
    out.scale = nn.Parameter(torch.ones(()))
    return out


def groups(**optim: Any) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> its rate of a run whose rate is 1, and its weight decay."""
    model = module()
    optimizer = make_optimizer(model, OptimSettings(lr=1.0, weight_decay=0.5, **optim))
    set_learning_rate(optimizer, 1.0)
    name_of = {id(p): name for name, p in model.named_parameters()}
    by_name = {name_of[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(by_name) == len(name_of)
    return by_name


def test_which_parameters_a_name_means() -> None:
    for name, members in (
        ("adapters", {"adapters.0.conv1.weight", "adapters.0.conv1.bias", "adapters.0.norm.weight", "adapters.0.norm.bias"}),
        ("norm", {"adapters.0.norm.weight", "adapters.0.norm.bias"}),
        ("video.decoder.1", {"video.decoder.1.weight", "video.decoder.1.bias"}),
        ("scale", {"scale"}),
        ("query", {"video.query.weight"}),
        ("video.query.weight", {"video.query.weight"}),
    ):
        by_name = groups(rates={name: 0.1})
        assert {own for own, (rate, _) in by_name.items() if rate == 0.1} == members
        assert {rate for own, (rate, _) in by_name.items() if own not in members} == {1.0}


def test_rates_of_a_recorded_step_change_in_place() -> None:
    """A graph reads them where they are: the tensors of the device stay the same."""
    optimizer = make_optimizer(module(), OptimSettings(lr=1.0, rates={"adapters": 0.1}), rate_on=torch.device("cpu"))
    rates = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, 0.5)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates))
    assert sorted(rate.item() for rate in rates) == pytest.approx([0.05, 0.5])


def test_decay_and_no_decay_are_kept_apart() -> None:
    by_name = groups(rates={"adapters": 0.1, "query": 3}, decay_all=False)
    assert by_name["adapters.0.conv1.weight"] == (0.1, 0.5) and by_name["adapters.0.norm.weight"] == (0.1, 0.0)
    assert by_name["video.query.weight"] == (3.0, 0.0) and by_name["video.decoder.0.weight"] == (1.0, 0.5)
    assert {decay for _, decay in groups(rates={"adapters": 0.1}).values()} == {0.5}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"adapter": 0.1}, r"no parameter of Module belongs to 'adapter'; its parts are: scale, adapters, video$"),
        ({"video.dec": 0.1}, "no parameter of Module belongs to 'video.dec'"),
        ({"decoder.1": 0.1}, "no parameter of Module belongs to 'decoder.1'"),
        (
            {"adapters": 0.1, "norm": 0.2},
            r"adapters.0.norm.weight belongs to 'adapters' and to 'norm', .*: scale, adapters, video$",
        ),
        ({"video": 0.1, "video.query": 0.1}, "video.query.weight belongs to 'video' and to 'video.query'"),
    ],
)
def test_names_that_do_not_fit(rates: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"optim.rates: {message}"):
        groups(rates=rates)
    with pytest.raises(ValueError, match="greater than 0"):
        OptimSettings(rates={"adapters": 0})


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "step", "constant"])
def test_each_step_of_each_schedule_is_multiplied(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """The recorded rate is that of the run."""
    step, steps = loop.Run._step, list[tuple[float, list[float]]]()

    def spied(self: loop.Run, parts: Any, name: str, at: int) -> dict[str, float]:
        out = step(self, parts, name, at)
        expected = learning_rate(self.settings.optim, at, 9, float(self.state["rate"]))
        steps.append((expected, [float(g["lr"]) for g in self.optimizer.param_groups]))
        return out

    monkeypatch.setattr(loop.Run, "_step", spied)
    optim = {"lr": 1e-2, "schedule": schedule, "warmup": 2, "rates": {"word_map": 0.1, "token_map": 2, "bias": 4, "scale": 3}}
    out = run(caches, tmp_path / "run", selector="mean-cosine", config={}, optim=optim)
    assert len(steps) == 9
    for expected, rates in steps:
        assert rates == pytest.approx([expected * factor for factor in (4, 3, 2, 0.1)])
    assert [row["lr"] for row in numbers(out)] == pytest.approx([steps[i][0] for i in (2, 5, 8)])


def changes(caches: tuple[Path, ...], out: Path, **optim: Any) -> dict[str, Tensor]:
    """How far one step moves each parameter. With Adam that is the rate, whatever the gradient."""
    values = settings(selector="mean-cosine", config={}, optim=optim)
    before = make_selector(values, CacheCards(*([read_card(path)] for path in caches[:2]))).state_dict()
    whole = run((caches[2], caches[3], *caches[2:]), out, selector="mean-cosine", config={}, optim=optim, epochs=1)
    after = load_selector(whole).state_dict()
    return {name: (after[name] - before[name]).abs().max() for name in before}


@pytest.mark.filterwarnings("ignore:1 videos to validate with")
def test_a_part_moves_by_its_share(tmp_path: Path, caches: tuple[Path, ...]) -> None:
    plain = {"lr": 1e-3, "schedule": "constant", "weight_decay": 0.0}
    base, slow = changes(caches, tmp_path / "a", **plain), changes(caches, tmp_path / "b", rates={"token_map": 0.1}, **plain)
    assert base["token_map.weight"].item() == pytest.approx(1e-3, rel=1e-2)
    assert slow["token_map.weight"].item() == pytest.approx(1e-4, rel=1e-2)
    assert slow["word_map.weight"].item() == pytest.approx(base["word_map.weight"].item(), rel=1e-6)


@pytest.mark.parametrize("decay_all", [True, False])
def test_a_run_with_rates_is_resumed(tmp_path: Path, caches: tuple[Path, ...], decay_all: bool) -> None:
    optim = {"lr": 1e-2, "rates": {"token_map": 0.1}, "decay_all": decay_all, "schedule": "constant"}
    values: dict[str, Any] = {"selector": "mean-cosine", "config": {}, "optim": optim}
    whole = run(caches, tmp_path / "whole", epochs=3, **values)
    part = run(caches, tmp_path / "part", epochs=1, **values)
    assert numbers(run(caches, part, resume=True, epochs=3, **values)) == numbers(whole)
    for name in ("last/model.safetensors", "last/optimizer.safetensors"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(InputError, match=r"optim.rates.token_map = 0.1, now it is 0.2"):
        run(caches, part, resume=True, epochs=3, **{**values, "optim": {**optim, "rates": {"token_map": 0.2}}})
