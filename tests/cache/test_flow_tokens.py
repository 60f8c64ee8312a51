"""Tokens of the flow tracker against values computed by hand."""

from __future__ import annotations

import cv2
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


def one_track(frame: NDArray[np.uint8], mask: NDArray[np.bool_], frames: int = 3) -> NDArray[np.float64]:
    """Token (C,) of a mask (h, w) that does not move over still frames, without the gains."""
    codes, _ = tokens.describe(lambda t: frame, RleMasks.from_dense(np.repeat(mask[None, None], frames, 1)))
    token = codes[0, 1].astype(float)
    for part, gain in tokens.GAINS.items():
        token[tokens.SLICES[part]] /= gain
    return token


def test_tokens_of_colour() -> None:
    """Red on blue, whose 8-bit Lab values in OpenCV are (136, 208, 195) and (82, 207, 20)."""
    frame = np.full((H, W, 3), (0, 0, 255), np.uint8)
    mask = np.zeros((H, W), bool)
    mask[30:50, 60:80] = True
    frame[mask] = (255, 0, 0)
    token = one_track(frame, mask)
    colour = token[tokens.SLICES["colour"]].reshape(3, 12)
    for soft, value in zip(colour, (8, 80, 67), strict=True):
        assert value_of(soft, -0.9, 0.9) == pytest.approx(value / 128, abs=5e-3)
    # The first hue is red.
    assert token[tokens.SLICES["palette"]].tolist() == [1] + [0] * 15
    np.testing.assert_allclose(token[tokens.SLICES["texture"]], [0, 0, 0, 54 / 128, 1 / 128, 175 / 128], atol=2e-3)
    frame[30:40, 60:80] = (0, 255, 0)
    frame[40:45, 60:80] = (150, 150, 150)
    token = one_track(frame, mask)
    # A quarter of the pixels is red, half is green, a quarter is grey.
    palette = np.zeros(16)
    palette[[0, 4, 14]] = np.sqrt([0.25, 0.5, 0.25])
    np.testing.assert_allclose(token[tokens.SLICES["palette"]], palette, atol=1e-3)
    assert (token[tokens.SLICES["texture"]][:3] > 0.5).all()


def test_tokens_of_border_contacts() -> None:
    grey = np.full((H, W, 3), 128, np.uint8)
    for rows, columns, contacts in (
        (slice(0, 20), slice(40, 60), [0, 1, 0, 0]),
        (slice(30, 50), slice(0, 20), [1, 0, 0, 0]),
        (slice(70, H), slice(130, W), [0, 0, 1, 1]),
        (slice(30, 50), slice(60, 80), [0, 0, 0, 0]),
    ):
        mask = np.zeros((H, W), bool)
        mask[rows, columns] = True
        assert one_track(grey, mask)[tokens.SLICES["border"]].tolist() == contacts


def test_tokens_of_outlines() -> None:
    grey = np.full((H, W, 3), 128, np.uint8)
    ys, xs = np.mgrid[0:H, 0:W] - np.array([48, 80]).reshape(2, 1, 1)
    disk, square, bar = ys**2 + xs**2 <= 400, np.maximum(abs(ys), abs(xs)) <= 20, (abs(ys) <= 5) & (abs(xs) <= 30)
    rings = [one_track(grey, mask)[tokens.SLICES["ring"]] for mask in (disk, square, bar)]
    # Terms 1 .. 8: a disk has a constant radius, a square four corners, a bar two ends.
    assert rings[0].max() < 0.15 and rings[1].argmax() == 3 and rings[2].argmax() == 1
    profiles = [one_track(grey, mask)[tokens.SLICES["profile"]] for mask in (disk, square, bar)]
    assert np.abs(profiles[0]).max() < 0.1
    # The sectors of a square are equal; of a bar those next to its ends have the largest radius.
    assert np.ptp(profiles[1]) < 0.1
    assert set(np.argsort(profiles[2])[-4:].tolist()) == {0, 3, 4, 7}
    shapes = [one_track(grey, mask)[tokens.SLICES["shape"]] for mask in (disk, square, bar)]
    share_of_box = [value_of(shape[20:], 0.4, 1) for shape in shapes]
    assert share_of_box == pytest.approx([disk.sum() / 41**2, 1, 1], abs=5e-3)
    assert shapes[2][0] == pytest.approx(np.log(61 / 11), abs=1e-2)


def test_tokens_of_local_flow() -> None:
    rng = np.random.default_rng(0)
    blurred = cv2.GaussianBlur(rng.integers(0, 255, (H, W, 3)).astype(np.float32), (0, 0), 1.5)
    background = (blurred - blurred.min()) / np.ptp(blurred) * 255
    frames, masks = [], np.zeros((1, 4, H, W), bool)
    for t in range(4):
        frame = background.copy()
        masks[0, t, 20:60, 30 + 2 * t : 80 + 2 * t] = True
        frame[20:60, 30 + 2 * t : 80 + 2 * t] = background[50:90, 90:140][::-1]
        frames.append(frame.astype(np.uint8))
    codes, _ = tokens.describe(frames.__getitem__, RleMasks.from_dense(masks))
    speed = np.tanh(2 / (0.02 * np.hypot(H, W)))
    local = codes[0, :, tokens.SLICES["flow"]].astype(float)
    np.testing.assert_allclose(local[:, 0], speed, atol=0.08)
    np.testing.assert_allclose(local[:, 1], 0, atol=0.08)
    assert (local[:, 2] < 0.3).all() and np.abs(local[:, 4:]).max() < 0.1


def test_presence_grows_with_the_visible_area() -> None:
    masks = np.zeros((1, 5, H, W), bool)
    for t, width in enumerate((20, 20, 10, 0, 40)):
        masks[0, t, 10:30, 50 : 50 + width] = True
    grey = np.full((H, W, 3), 128, np.uint8)
    _, presence = tokens.describe(lambda t: grey, RleMasks.from_dense(masks))
    # The median of the visible areas is that of a width of 20.
    assert presence[0].tolist() == [1, 1, 0.75, 0, 1]
