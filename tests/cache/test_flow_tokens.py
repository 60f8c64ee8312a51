"""Tokens of the flow tracker against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_flow import H, W, value_of

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import tokens
from rvos_cache.trackers.flow.trajectory import velocity


def described(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Tokens of masks (N, T, H, W) over still grey frames, without the gains of the parts."""
    grey = np.full((*masks.shape[2:], 3), 128, np.uint8)
    codes, presence = tokens.describe(lambda t: grey, RleMasks.from_dense(masks))
    assert ((presence >= 0) & (presence <= 1)).all()
    out = codes.astype(float)
    for part, gain in tokens.GAINS.items():
        out[..., tokens.SLICES[part]] /= gain
    return out


def test_token_parts_fill_256_channels_in_the_documented_order() -> None:
    assert sum(tokens.PARTS.values()) == tokens.CHANNELS == 256
    assert [s.start for s in tokens.SLICES.values()] == [0, *np.cumsum(list(tokens.PARTS.values()))[:-1]]
    for name, size in tokens.PARTS.items():
        assert f"| {name:9s} | {size:<2d} |" in (tokens.__doc__ or "")


def test_tokens_of_a_translating_square() -> None:
    masks = np.zeros((1, 12, H, W), bool)
    for t in range(12):
        masks[0, t, 40:56, 20 + 3 * t : 36 + 3 * t] = True
    token = described(masks)[0]
    d = np.hypot(H, W)
    speed = np.tanh(3 / (0.02 * d))
    for part in ("velocity", "screen"):
        for at in token[:, tokens.SLICES[part]]:
            assert value_of(at[:11], -0.95, 0.95) == pytest.approx(speed, abs=2e-3)
            assert value_of(at[11:22], -0.95, 0.95) == pytest.approx(0, abs=2e-3)
            assert value_of(at[22:30], 0, 0.95) == pytest.approx(speed, abs=2e-3)
    np.testing.assert_allclose(token[:, tokens.SLICES["heading"]], [[1, 0.5, 0, 0, 0, 0, 0, 0.5]] * 12, atol=2e-3)
    # The centre of pixels 20..35 is at 28 of 160 in the first frame, rows 40..55 at 48 of 96.
    position = token[:, tokens.SLICES["position"]]
    assert value_of(position[0, :12], -1, 1) == pytest.approx(28 / 160 * 2 - 1, abs=2e-3)
    assert value_of(position[5, :12], -1, 1) == pytest.approx(43 / 160 * 2 - 1, abs=2e-3)
    assert value_of(position[0, 12:], -1, 1) == pytest.approx(0, abs=2e-3)
    size = token[0, tokens.SLICES["size"]]
    assert value_of(size[:15], -8, -0.5) == pytest.approx(np.log(256 / (H * W)), abs=5e-3)
    assert value_of(size[15:23], -4, 0) == pytest.approx(np.log(0.1), abs=5e-3)
    assert value_of(size[23:], -4, 0) == pytest.approx(np.log(1 / 6), abs=5e-3)
    for at in token[:, tokens.SLICES["growth"]]:
        assert value_of(at, -0.95, 0.95) == pytest.approx(0, abs=2e-3)
    when = [value_of(at, 0, 1) for at in token[:, tokens.SLICES["time"]]]
    np.testing.assert_allclose(when, np.linspace(0, 1, 12), atol=2e-3)
    form = token[0, tokens.SLICES["shape"]]
    np.testing.assert_allclose(form[[0, 3]], 0, atol=0.05)
    assert value_of(form[4:12], 0.4, 1) == value_of(form[20:], 0.4, 1) == 1


def test_tokens_of_a_growing_square() -> None:
    """Sides of 30, 31 ... 41 pixels: the log area grows by 2 / side per frame; the fit runs over seven frames."""
    masks = np.zeros((1, 12, H, W), bool)
    for t in range(12):
        masks[0, t, 30 : 60 + t, 20 : 50 + t] = True
    token = described(masks)[0]
    growth = np.array([np.arctanh(value_of(at, -0.95, 0.95)) * 0.05 for at in token[:, tokens.SLICES["growth"]]])
    sides = np.arange(30, 42)
    np.testing.assert_allclose(growth[3:-3], 2 / sides[3:-3], rtol=0.05)


def test_tokens_of_a_hidden_and_of_a_never_visible_track() -> None:
    masks = np.zeros((2, 9, H, W), bool)
    for t in range(9):
        masks[0, t, 70:80, 100 + t : 110 + t] = t not in (3, 4)
    token = described(masks)
    assert token[0][:, tokens.SLICES["visible"]].tolist() == [[v, 1 - v] for v in (1, 1, 1, 0, 0, 1, 1, 1, 1)]
    x = [value_of(at[:12], -1, 1) for at in token[0][:, tokens.SLICES["position"]]]
    np.testing.assert_allclose(np.diff(x), 2 / W, atol=4e-3)
    assert (token[1] == 0).all()


def test_a_token_does_not_depend_on_frames_beyond_its_neighbours() -> None:
    masks = np.zeros((2, 12, H, W), bool)
    for t in range(12):
        for k in range(2):
            x = 20 + 3 * t if k == 0 or t < 8 else 41 - 5 * (t - 8)
            masks[k, t, 40:52, x : x + 12] = True
    token = described(masks)
    np.testing.assert_array_equal(token[0, :7], token[1, :7])
    assert np.abs(token[0, 8] - token[1, 8]).max() > 0.1


def test_tokens_do_not_depend_on_the_order_of_tracks() -> None:
    rng = np.random.default_rng(1)
    masks = np.zeros((4, 6, H, W), bool)
    for k in range(4):
        x, y = rng.integers(10, 70, 2)
        for t in range(6):
            masks[k, t, y : y + 12, x + k * t : x + k * t + 15] = True
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(described(masks[order]), described(masks)[order], atol=2e-3)


def test_velocity_is_central_within_the_life_and_zero_outside() -> None:
    x = np.array([0.0, 0, 0, 2, 6, 12, 12, 12])
    values = velocity(np.stack([x, -x], 1), 2, 5)
    np.testing.assert_allclose(values[:, 0], [0, 0, 2, 3, 5, 6, 0, 0])
    np.testing.assert_allclose(values[:, 1], -values[:, 0])
