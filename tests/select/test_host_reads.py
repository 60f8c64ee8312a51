"""Training reads nothing of the device between two log lines: counted on a CPU, where a read is free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_selector_contract import batch
from tiny_caches import numbers, run
from tiny_dmvs import batch as dmvs_batch
from tiny_dmvs import dmvs

from rvos_cache.errors import InputError
from rvos_select.contracts.host_reads import HostReads
from rvos_select.data.batch import Batch
from rvos_select.data.mask_facts import MaskFacts
from rvos_select.data.micro_batches import MicroBatch
from rvos_select.data.transfer import HostCopy
from rvos_select.inference.infer import encoded
from rvos_select.selectors.sola import Sola, SolaConfig
from rvos_select.training import train as loop
from rvos_select.training.step_losses import StepLosses


@pytest.fixture
def step_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Host reads of each step of a run, from the batch on the CPU to the optimiser's step."""
    counts: list[int] = []
    original = loop.Run._step

    def counted(self: Any, parts: Iterator[MicroBatch], name: str, step: int) -> None:
        ready = list(parts)
        for part in ready:
            _ = part.batch.mask_facts  # what `Batch.to` reads while the masks are on the host
        self.losses.seconds = math.inf
        with HostReads() as reads:
            original(self, iter(ready), name, step)
        counts.append(reads.total)

    monkeypatch.setattr(loop.Run, "_step", counted)
    return counts


@pytest.mark.parametrize(
    "values",
    [
        {"batch": "video"},
        {"batch": "single"},
        {"batch": "single", "batch_size": 4, "micro_batch": 3},
        {"batch": "video", "precision": "bf16"},
        {"selector": "mean-cosine", "config": {"width": 8}},
    ],
    ids=["video", "single", "micro", "bf16", "mean-cosine"],
)
def test_a_step_reads_nothing(tmp_path: Path, caches: tuple[Path, ...], step_reads: list[int], values: dict[str, Any]) -> None:
    run(caches, tmp_path / "run", epochs=1, **values)
    assert len(step_reads) >= 3 and set(step_reads) == {0}


def test_a_padded_step_reads_nothing() -> None:
    """Expressions of one video with other candidates, words and frames than each other."""
    torch.manual_seed(0)
    model = Sola(SolaConfig(token_channels=12, word_channels=16, width=16, heads=4, negatives=5))
    x = batch(shared=True)
    x.frame_mask[0, -3:], x.word_mask[0, -2:], x.track_mask[1, :2], x.track_mask[:, 4] = False, False, False, False
    for each in (x, batch()):
        moved = each.to("cpu")
        with HostReads() as reads:
            model.loss(moved)["loss"].backward()  # type: ignore[no-untyped-call]
        assert reads.counts == {}


def test_every_kind_of_read_is_counted() -> None:
    x, at = torch.arange(4.0), torch.tensor([True, False, True, False])
    kinds = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(at.all()),
        "float": lambda: float(x[0]),
        "nonzero": lambda: at.nonzero(),
        "index": lambda: x[at],
        "unique": lambda: torch.unique(x[None], dim=0),
        "cpu": lambda: x.cpu(),
        "numpy": lambda: x.numpy(),
        "tolist": lambda: x.tolist(),
        "copy": lambda: torch.tensor(1.0, device=x.device),
    }
    for name, read in kinds.items():
        with HostReads() as reads:
            read()
        assert reads.total == 1, (name, reads.counts)
    with HostReads() as reads:
        (x * 2)[1:].sum()
    assert reads.total == 0


@pytest.mark.parametrize(("layers", "expressions"), [(1, 1), (3, 5)])
def test_dmvs_reads_twice_whatever_its_size(layers: int, expressions: int) -> None:
    """Which objects are visible, and the costs; the third is a tensor of the host, of the matched queries."""
    model, x = dmvs(layers=layers).train(), dmvs_batch(expressions)
    for each in (x, replace(x, truth=tuple(masks[:0] for masks in x.truth or ()))):
        moved = each.to("cpu")
        with HostReads() as reads:
            model.loss(moved)["loss"].backward()  # type: ignore[no-untyped-call]
        assert reads.counts == ({"tolist": 2, "tensor": 1} if each is x else {"tolist": 1})


def test_dmvs_reads_the_lengths_of_padded_clips() -> None:
    model, x = dmvs(sentence="roberta_pooler").train(), dmvs_batch(4)
    x.frame_mask[1, 5:], x.word_mask[2, 3:] = False, False
    moved = x.to("cpu")
    with HostReads() as reads:
        model.loss(moved)["loss"].backward()  # type: ignore[no-untyped-call]
    # Beside those of a batch without padding: the lengths, and whether texts begin as the pooler expects.
    assert reads.counts == {"tolist": 3, "tensor": 1, "aten::_local_scalar_dense": 1}


def test_dmvs_reads_once_to_match_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the matching does on the host is not counted: its copy of the costs has been waited for."""
    model, x = dmvs(masks="frozen").train(), dmvs_batch(4).to("cpu")
    labels, copies = torch.ones(model.config.layers, 4, model.config.motion_queries, dtype=torch.int64), []
    monkeypatch.setattr("rvos_select.selectors.dmvs.selector.query_labels", lambda *_: labels)
    read = HostCopy.read
    monkeypatch.setattr(HostCopy, "read", lambda self: copies.append(1) or read(self))
    with HostReads() as reads:
        model.loss(x)["loss"].backward()  # type: ignore[no-untyped-call]
    assert reads.counts == {} and len(copies) == 1


@pytest.mark.parametrize("ahead", [0, 1])
def test_parts_are_requested_before_those_before_them_are_used(ahead: int) -> None:
    events: list[str] = []

    def parts() -> Iterator[torch.Tensor]:
        for i in range(3):
            events.append(f"compute {i}")
            yield torch.arange(4).view(1, 1, 2, 2) < i

    for part in encoded(parts(), ahead):
        events.append(f"use {part.area().item()}")
    order = {0: "compute 0, use 0, compute 1, use 1, compute 2, use 2", 1: "compute 0, compute 1, use 0, compute 2, use 1, use 2"}
    assert ", ".join(events) == order[ahead]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_on_while_its_copy_is_on_the_way() -> None:
    """Also where the tensor is changed behind the copy, and freed."""
    parts = [torch.full((1000, 1000), i, device="cuda") for i in range(4)]
    copies = [HostCopy(part) for part in parts]
    for part in parts:
        part.add_(100)
    parts.clear()
    assert [int(copy.read().unique()) for copy in copies] == [0, 1, 2, 3]


def test_facts_follow_the_masks() -> None:
    """They are those of the tensors, they move with them, and another mask has its own."""
    x = batch(shared=True)
    assert x.mask_facts == MaskFacts(True, True, True, True, None, None, None)
    x = Batch(x.tokens, x.frame_mask, x.track_mask.clone(), x.words, x.word_mask, x.target)
    x.track_mask[0, 1], x.track_mask[:, 3] = False, False
    facts = x.to("cpu").mask_facts
    assert facts.used is not None and facts.used.tolist() == [0, 1, 2, 4] and not facts.tracks_real
    assert facts.candidate_sets is not None and facts.set_of is not None
    assert torch.equal(facts.candidate_sets[facts.set_of], x.track_mask) and len(facts.candidate_sets) == 2
    moved = x.to("meta")
    assert moved.mask_facts.used is not None and moved.mask_facts.used.is_meta and not moved.mask_facts.tracks_real


def test_losses_are_read_together_and_in_order() -> None:
    losses = StepLosses(seconds=math.inf)
    norm = torch.tensor(1.0)
    for i in range(3):
        losses.add(f"a{i}", {"loss": torch.tensor(float(i)), "count": torch.tensor(i, dtype=torch.int64)})
        losses.add(f"b{i}", {"loss": torch.tensor(0.5)})
        losses.end_step(f"a{i}", norm)
    assert losses.steps == 0 and losses.sums == {}
    with HostReads() as reads:
        losses.read()
    assert reads.counts["tolist"] == 2  # one copy for each dtype
    assert (losses.steps, losses.sums) == (3, {"loss": 4.5, "count": 3.0})


@pytest.mark.parametrize(
    ("loss", "norm", "message"), [(math.nan, 1.0, "first: the loss is nan"), (1.0, math.inf, "first: the gradient is inf")]
)
def test_the_first_step_that_is_not_finite_is_named(loss: float, norm: float, message: str) -> None:
    """Later ones follow from it, and so does an error that they cause before anything is read."""

    def steps() -> None:
        with StepLosses(seconds=math.inf).explaining() as losses:
            losses.add("zero", {"loss": torch.tensor(1.0), "share": torch.tensor(math.nan)})
            losses.end_step("zero", torch.tensor(1.0))
            losses.add("first", {"loss": torch.tensor(loss)})
            losses.end_step("first", torch.tensor(norm))
            losses.add("second", {"loss": torch.tensor(math.nan)})
            raise ValueError("matrix contains invalid numeric entries")

    with pytest.raises(InputError, match=message):
        steps()


def test_an_infinite_gradient_ends_the_run(tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """No epoch of it is stored."""
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", lambda parameters, _: parameters[0].new_full((), math.inf))
    with pytest.raises(InputError, match="v[012]: the gradient is inf"):
        run(caches, tmp_path / "run", epochs=1)
    assert not (tmp_path / "run/last").exists() and not (tmp_path / "run/metrics.jsonl").exists()


def test_numbers_do_not_depend_on_when_they_are_read(
    tmp_path: Path, caches: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"epochs": 2, "batch": "single", "batch_size": 3, "micro_batch": 2}
    late = numbers(run(caches, tmp_path / "late", **values))
    monkeypatch.setattr(loop, "StepLosses", lambda: StepLosses(seconds=0))
    assert numbers(run(caches, tmp_path / "each", **values)) == late
