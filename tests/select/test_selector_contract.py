"""What training, prediction and merging assume of every selector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.data.batch import Batch
from rvos_select.selectors import SELECTORS, selector_class

SMALL = {"token_channels": 12, "word_channels": 16}
# These read more than tokens and words, so tests of their own hold them to the same.
ELSEWHERE = {"dmvs", "all-tracks", "clip-zero-shot", "ssa", "referdino", "dervos"}
CASES = [(name, {}) for name in SELECTORS if name not in ELSEWHERE] + [("sola", {"variant": "paper"})]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def make(name: str, extra: dict[str, object]) -> torch.nn.Module:
    torch.manual_seed(3)
    cls = selector_class(name)
    small = {"width": 16} | ({"heads": 4, "negatives": 5} if name == "sola" else {})
    model = cls(cls.Config(**SMALL, **small, **extra)).eval()
    with torch.no_grad():  # weights and biases of norms away from 1 and 0
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(b: int = 3, n: int = 5, t: int = 11, length: int = 4, shared: bool = False, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    lead = 1 if shared else b
    return Batch(
        torch.randn(lead, n, t, 12, generator=g),
        torch.ones(lead, t, dtype=torch.bool),
        torch.ones(b, n, dtype=torch.bool),
        torch.randn(b, length, 16, generator=g),
        torch.ones(b, length, dtype=torch.bool),
        (torch.rand(b, n, generator=g) < 0.4).float(),
    )


def single(x: Batch, i: int) -> Batch:
    at = 0 if len(x.tokens) == 1 else i
    one = slice(i, i + 1)
    kept = x.track_mask[i]
    words = x.word_mask[i]
    return Batch(
        x.tokens[at : at + 1, kept],
        x.frame_mask[at : at + 1],
        x.track_mask[one, kept],
        x.words[one, words],
        x.word_mask[one, words],
        x.target[one, kept] if x.target is not None else None,
    )


def padded(x: Tensor, sizes: tuple[int, ...], fill: float) -> Tensor:
    out = torch.full(sizes, fill, dtype=x.dtype)
    out[tuple(slice(0, s) for s in x.shape)] = x
    return out


@pytest.fixture(params=CASES, ids=[f"{n}-{'-'.join(map(str, e.values()))}" for n, e in CASES])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return make(*request.param)


@pytest.mark.parametrize("t", [1, 7, 8, 11])
def test_padding_changes_nothing(model: torch.nn.Module, t: int) -> None:
    x = batch(t=t)
    big = Batch(
        padded(x.tokens, (4, 8, t + 13, 12), 9.0),
        padded(x.frame_mask, (4, t + 13), False),
        padded(x.track_mask, (4, 8), False),
        padded(x.words, (4, 9, 16), -7.0),
        padded(x.word_mask, (4, 9), False),
        padded(x.target, (4, 8), 1.0),
    )
    torch.testing.assert_close(model(big)[:3, :5], model(x), **CLOSE)
    assert model(big).isfinite().all()
    for name, value in model.loss(x).items():
        torch.testing.assert_close(model.loss(big)[name], value, **CLOSE)


def test_expressions_of_different_sizes_in_one_batch(model: torch.nn.Module) -> None:
    a, b = batch(1, 5, 11, 4, seed=1), batch(1, 3, 6, 7, seed=2)
    joint = Batch(
        *(
            torch.cat([padded(getattr(y, f), (1, *s), 0) for y in (a, b)])
            for f, s in (
                ("tokens", (5, 11, 12)), ("frame_mask", (11,)), ("track_mask", (5,)), ("words", (7, 16)),
                ("word_mask", (7,)), ("target", (5,)),
            )
        )
    )  # fmt: skip
    logits = model(joint)
    torch.testing.assert_close(logits[:1], model(a), **CLOSE)
    torch.testing.assert_close(logits[1:, :3], model(b), **CLOSE)
    wanted = (model.loss(a)["loss"] + model.loss(b)["loss"]) / 2
    torch.testing.assert_close(model.loss(joint)["loss"], wanted, **CLOSE)


def test_scores_follow_their_tracks(model: torch.nn.Module) -> None:
    x = batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = replace(x, tokens=x.tokens[:, order], track_mask=x.track_mask[:, order], target=x.target[:, order])
    torch.testing.assert_close(model(turned), model(x)[:, order], **CLOSE)
    torch.testing.assert_close(model.loss(turned)["loss"], model.loss(x)["loss"], **CLOSE)


@pytest.mark.parametrize("candidates", ["equal", "different", "some unused", "one without"])
def test_expressions_of_a_video_together_equal_one_by_one(model: torch.nn.Module, candidates: str) -> None:
    x = batch(4, shared=True)
    x.word_mask[1, 3:] = False
    if candidates == "different":
        x.track_mask[0, 1] = x.track_mask[2, 4] = False
    elif candidates == "some unused":
        x.track_mask[:, 2] = False
        x.track_mask[3, 0] = False
    elif candidates == "one without":
        x.track_mask[2] = False
    model.zero_grad()
    logits, losses = model(x), model.loss(x)
    losses["loss"].backward()
    grouped = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    totals = dict.fromkeys(losses, 0.0)
    for i in range(4):
        one = single(x, i)
        if one.track_mask.shape[1]:
            torch.testing.assert_close(logits[i, x.track_mask[i]][None], model(one), **CLOSE)
            each = model.loss(one)
            (each["loss"] / 4).backward()
            totals = {k: totals[k] + each[k].item() / 4 for k in totals}
    assert logits.isfinite().all()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(totals, abs=1e-5)
    for ours, p in zip(grouped, model.parameters()):
        torch.testing.assert_close(ours, p.grad, atol=1e-4, rtol=1e-4)


def test_saves_and_reads_back(model: torch.nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config
    assert not again.training
    assert {f.name for f in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert not list(tmp_path.glob("*.bin"))
    torch.testing.assert_close(again(batch()), model(batch()), atol=0, rtol=0)
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_damaged_or_missing_weights_are_one_line(model: torch.nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="safetensors") as damaged:
        type(model).from_pretrained(tmp_path)
    assert "\n" not in str(damaged.value)
    weights.unlink()
    with pytest.raises(InputError, match="no such file"):
        type(model).from_pretrained(tmp_path)


def test_gradient_reaches_every_parameter(model: torch.nn.Module) -> None:
    model.train()
    torch.manual_seed(0)
    model.loss(batch(t=17))["loss"].backward()
    # softmax does not see a shift of all keys: the gradient of a key's bias is zero but for rounding
    expected = {name: p for name, p in model.named_parameters() if not name.endswith("k_proj.bias")}
    without = [name for name, p in expected.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_hidden_answer_has_no_loss(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="target"):
        model.loss(replace(batch(), target=None))


def test_no_candidate_anywhere_gives_numbers(model: torch.nn.Module) -> None:
    x = batch(2, shared=True)
    x.track_mask[:] = False
    losses = model.loss(x)
    losses["loss"].backward()
    assert model(x).tolist() == [[0.0] * 5] * 2
    assert all(value.item() == 0 for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_a_video_without_tracks_gives_numbers(model: torch.nn.Module, shared: bool) -> None:
    """N = 0 is legal: a tracker may find nothing. Nothing is learnt of it, weight decay apart."""
    x = batch(2, n=0, shared=shared)
    x.frame_mask[:, 7:] = False
    assert model(x).shape == (2, 0)
    losses = model.loss(x)
    losses["loss"].backward()
    assert all(value.item() == 0 for value in losses.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_bfloat16_autocast_stays_near(model: torch.nn.Module) -> None:
    x = batch(3, shared=True)
    x.track_mask[1, 2] = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, losses = model(x), model.loss(x)
    exact = model(x)
    assert logits.dtype == losses["loss"].dtype == torch.float32
    assert (logits - exact).norm() < 0.05 * exact.norm()
