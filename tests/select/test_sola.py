"""SOLA against an implementation without masks, written track by track and frame by frame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_select.data.batch import Batch
from rvos_select.selectors.sola import Sola, SolaConfig
from rvos_select.selectors.sola.layers import StandardConv1d, WhitenedProjection

SMALL = SolaConfig(token_channels=12, word_channels=32, width=16, heads=4, negatives=5)
CONVOLUTIONS = {0: (2, 1), 4: (2, 1), 8: (2, 1), 12: (1, 1), 16: (1, 1), 20: (1, 0)}  # place: stride, padding


def released(c: SolaConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names of the released checkpoint; of one kind of attention, without those of the other."""
    g = torch.Generator().manual_seed(seed)
    d, w = c.word_channels, c.width
    outs = {0: (c.token_channels, w, 3), 4: (w, w, 3), 8: (w, w, 3), 12: (w, d, 3), 16: (d, d, 3), 20: (d, d, 1)}
    shapes: dict[str, tuple[int, ...]] = {"positional_encoding_gaussian_matrix": (1, d // 2)}
    shapes["negative_token.weight"] = (c.negatives, d)
    for i, (before, after, kernel) in outs.items():
        shapes[f"short_motion_encoder.{i}.weight"] = (after, before, kernel)
        shapes[f"short_motion_encoder.{i}.bias"] = (after,)
        if i != 20:
            shapes[f"short_motion_encoder.{i + 1}.weight"] = shapes[f"short_motion_encoder.{i + 1}.bias"] = (after,)
    for i in range(c.layers):
        layer = f"object_lang_align_layers.{i}"
        for attention in ("obj_attn", "motion_attn", "object2lang_attn"):
            for part in "q_proj", "k_proj", "v_proj", "out_proj":
                shapes[f"{layer}.{attention}.{part}.weight"] = (d, d)
                shapes[f"{layer}.{attention}.{part}.bias"] = (d,)
        for j in range(3):
            shapes[f"{layer}.norm.{j}.weight"] = shapes[f"{layer}.norm.{j}.bias"] = (d,)
    unused = {"both": (), "objects": ("motion_attn", "norm.1"), "motion": ("obj_attn", "norm.0")}[c.attention]
    tensors = {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor for name, tensor in tensors.items() if not any(f".{part}." in name for part in unused)}


def attention(s: dict[str, Tensor], name: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (K, D), k and v (K′, D) through torch's own multi-head attention."""
    module = nn.MultiheadAttention(q.shape[-1], heads, batch_first=True)
    parts = ("q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([s[f"{name}.{p}.weight"] for p in parts]))
        module.in_proj_bias.copy_(torch.cat([s[f"{name}.{p}.bias"] for p in parts]))
        module.out_proj.weight.copy_(s[f"{name}.out_proj.weight"])
        module.out_proj.bias.copy_(s[f"{name}.out_proj.bias"])
        return module(q[None], k[None], v[None])[0][0]


def norm(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x (K, D) -> GroupNorm(8) with statistics over all K."""
    return F.group_norm(x.T[None], 8, s[f"{name}.weight"], s[f"{name}.bias"])[0].T


def encode(s: dict[str, Tensor], track: Tensor) -> Tensor:
    """One track (T, C) -> (T′, D)."""
    x = track.T[None]
    for i, (stride, padding) in CONVOLUTIONS.items():
        name = f"short_motion_encoder.{i}"
        filters = []
        for f in s[f"{name}.weight"]:
            filters.append((f - f.mean()) / (f.std() + 1e-5))
        x = F.conv1d(x, torch.stack(filters), s[f"{name}.bias"], stride, padding)
        if i != 20:
            after = f"short_motion_encoder.{i + 1}"
            x = F.leaky_relu(F.group_norm(x, 8, s[f"{after}.weight"], s[f"{after}.bias"]), 0.01)
    return x[0].T


def reference(s: dict[str, Tensor], c: SolaConfig, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """tokens (N, T, C), words (L, D) -> logits (N,), objects (N, D)."""
    x = torch.stack([encode(s, track) for track in tokens])
    n, t, d = x.shape
    code = torch.zeros(t, d)
    for i in range(t):
        angle = 2 * math.pi * (i / 100) * s["positional_encoding_gaussian_matrix"][0]
        code[i] = torch.cat([angle.sin(), angle.cos()])
    memory = torch.cat([words, s["negative_token.weight"]]) if c.variant == "code" else words
    for i in range(c.layers):
        name = f"object_lang_align_layers.{i}"
        for j in range(t if c.attention != "motion" else 0):
            y = x[:, j]
            x[:, j] = norm(s, f"{name}.norm.0", y + attention(s, f"{name}.obj_attn", c.heads, y, y, y))
        for j in range(n if c.attention != "objects" else 0):
            y = x[j]
            moved = attention(s, f"{name}.motion_attn", c.heads, y + code, y + code, y)
            x[j] = norm(s, f"{name}.norm.1", y + moved)
        y = x.reshape(n * t, d)
        read = attention(s, f"{name}.object2lang_attn", c.heads, y, memory, memory)
        x = norm(s, f"{name}.norm.2", y + read).reshape(n, t, d)
    scores = (x @ memory.T).mean(-1)
    weighted = scores.softmax(1)[..., None] * x
    if c.variant == "code":
        objects = weighted.sum(1)
        return (objects @ memory.T).mean(-1), objects
    return scores.mean(1), weighted.mean(1)


def one(tokens: Tensor, words: Tensor) -> Batch:
    """A batch of one expression without padding."""
    real = [torch.ones(1, size, dtype=torch.bool) for size in (tokens.shape[1], len(tokens), len(words))]
    return Batch(tokens[None], real[0], real[1], words[None], real[2])


@pytest.mark.parametrize(("variant", "kinds"), [("code", "both"), ("paper", "both"), ("code", "objects"), ("code", "motion")])
@pytest.mark.parametrize(("n", "t", "length"), [(4, 19, 6), (1, 1, 1), (3, 8, 2)])
def test_equals_the_plain_implementation(variant: str, kinds: str, n: int, t: int, length: int) -> None:
    c = SMALL.model_copy(update={"variant": variant, "attention": kinds})
    state = released(c)
    model = Sola(c).eval()
    model.load_official(state)
    g = torch.Generator().manual_seed(t)
    tokens, words = torch.randn(n, t, 12, generator=g), torch.randn(length, 32, generator=g)
    logits, objects = reference(state, c, tokens, words)
    with torch.no_grad():
        aligned = model.align(one(tokens, words))
    torch.testing.assert_close(aligned.logits[0], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aligned.objects[0], objects, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aligned.anchor[0], words.mean(0), atol=1e-5, rtol=1e-5)


def test_the_paper_settings_have_its_size_and_names() -> None:
    with torch.device("meta"):
        model = Sola(SolaConfig())
        names = released_names(SolaConfig())
    assert sum(p.numel() for p in model.parameters()) == 32_980_480
    assert [name for name, _ in model.named_buffers()] == ["positional_encoding_gaussian_matrix"]
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == names


def released_names(c: SolaConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("cpu"):
        return {name: tuple(x.shape) for name, x in released(c).items()}


def test_official_weights_load_in_place_or_not_at_all() -> None:
    model, state = Sola(SMALL), released(SMALL)
    weight = model.negative_token.weight
    model.load_official(state)
    assert model.negative_token.weight is weight
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    for spoil, words in (
        (lambda s: s.pop("negative_token.weight"), "missing 1 .negative_token.weight"),
        (lambda s: s.update(temperature=torch.ones(1)), "unexpected 1 .temperature"),
        (
            lambda s: s.update({"short_motion_encoder.0.weight": torch.ones(2, 2)}),
            r"short_motion_encoder.0.weight .*\(2, 2\)",
        ),
    ):
        other = released(SMALL, seed=1)
        spoil(other)
        with pytest.raises(InputError, match=words) as fault:
            model.load_official(other)
        assert "\n" not in str(fault.value)
        assert torch.equal(model.state_dict()["short_motion_encoder.20.bias"], state["short_motion_encoder.20.bias"])


def test_loss_joins_its_parts() -> None:
    for variant, positive in (("code", 1.5), ("paper", 1.0)):
        c = SMALL.model_copy(update={"variant": variant, "align_weight": 0.25})
        model = Sola(c).eval()
        x = one(torch.randn(3, 9, 12), torch.randn(4, 32))
        x = Batch(x.tokens, x.frame_mask, x.track_mask, x.words, x.word_mask, torch.tensor([[1.0, 0.0, 0.0]]))
        losses, logits = model.loss(x), model(x)[0]
        by_hand = (positive * F.softplus(-logits[0]) + F.softplus(logits[1]) + F.softplus(logits[2])) / 3
        torch.testing.assert_close(losses["bce"], by_hand)
        torch.testing.assert_close(losses["loss"], losses["bce"] + 0.25 * losses["align"])


def test_frames_must_come_first() -> None:
    x = one(torch.randn(2, 9, 12), torch.randn(4, 32))
    x.frame_mask[0, 0] = False
    with pytest.raises(ValueError, match="come first"):
        Sola(SMALL)(x)


def test_a_width_that_cannot_be_split_is_one_line() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        build(SolaConfig, {"width": 20}, "settings")


@pytest.mark.parametrize(("taps", "stride", "frames"), [(3, 2, 9), (3, 2, 1), (3, 1, 4), (1, 1, 5)])
def test_windows_times_filters_are_the_convolution(taps: int, stride: int, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = StandardConv1d(16, 24, taps, stride, padding=taps // 2), torch.randn(5, frames, 16)
    weight = layer.weight.detach()
    flat = weight.flatten(1)
    standard = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(weight)
    wanted = torch.nn.functional.conv1d(x.transpose(1, 2), standard, layer.bias, stride, taps // 2).transpose(1, 2)
    for small in (0, 1 << 20):
        monkeypatch.setattr("rvos_select.selectors.sola.layers.SMALL", small)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_projected_words_are_aligned_as_words_of_that_width() -> None:
    """Two routes: words of 40 channels through the projection, and the projected words in a module without one."""
    torch.manual_seed(0)
    model = Sola(SMALL.model_copy(update={"word_channels": 40, "align_width": 24})).eval()
    plain = Sola(SMALL.model_copy(update={"word_channels": 24})).eval()
    training = torch.randn(500, 40) @ torch.randn(40, 40) + 3
    model.word_projection.fit(training.split(7))
    state = model.state_dict()
    projection = {name.partition(".")[2]: state.pop(name) for name in list(state) if name.startswith("word_projection.")}
    assert set(projection) == {"mean", "matrix", "linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    plain.load_official(state)
    tokens, words = torch.randn(4, 19, 12), training[:6]
    white = (words - projection["mean"]) @ projection["matrix"]
    linear = white @ projection["linear.weight"].T + projection["linear.bias"]
    normal = (linear - linear.mean(1, keepdim=True)) / linear.std(1, correction=0, keepdim=True)
    expected = plain(one(tokens, normal))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(model(one(tokens, words)), expected, rtol=1e-4, atol=1e-4)


def test_whitened_training_words_have_the_identity_as_covariance() -> None:
    """Except directions of hardly any variance, which whitening would fill with noise."""
    g = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.logspace(1, 2, 9), torch.tensor([1e-4])])
    mixed = torch.randn(5000, 10, generator=g) * scales @ torch.linalg.qr(torch.randn(10, 10, generator=g))[0] + 50
    projection = WhitenedProjection(10, 8)
    assert torch.equal(projection.matrix, torch.eye(10))
    projection.fit(mixed.split(11))
    white = ((mixed - projection.mean) @ projection.matrix).double()
    assert white.mean(0).abs().max() < 1e-3
    values = torch.linalg.eigvalsh(white.T.cov())
    assert values[0] < 1e-6 and values[1] > 0.3 and values[-1] == pytest.approx(1, abs=0.02)


def test_the_projected_width_must_fit_the_heads() -> None:
    with pytest.raises(InputError, match=r"align_width = 20 is not a multiple of 8"):
        build(SolaConfig, {"align_width": 20, "heads": 4}, "test")
    assert build(SolaConfig, {"word_channels": 50, "align_width": 24, "heads": 4}, "test").aligned == 24
