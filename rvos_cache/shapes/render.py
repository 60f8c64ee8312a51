"""Rendering of a scene: frames, and the visible mask of every object, from front to back.

Letters: T frames, A objects, H W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.shapes.motion import HEIGHT, WIDTH
from rvos_cache.shapes.scene import COLOURS, Post, Scene, Thing

FINE = 4
"""Sub-pixels per pixel and axis. A pixel belongs to an object if the shape covers half of it or more."""
_SHIFT = 8


def _polygon(shape: str) -> NDArray[np.float64]:
    """Return the outline (P, 2) of a shape of radius 1; all shapes have about the same area."""
    if shape == "circle":
        angle, reach = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.full(48, 0.92)
    elif shape == "square":
        angle, reach = np.pi / 4 + np.arange(4) * np.pi / 2, np.full(4, 1.15)
    elif shape == "triangle":
        angle, reach = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3, np.full(3, 1.3)
    elif shape == "diamond":
        angle, reach = np.arange(4) * np.pi / 2, np.array([0.8, 1.3, 0.8, 1.3])
    elif shape == "star":
        angle, reach = -np.pi / 2 + np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.55, 1.3)
    else:
        arm = 0.38
        outline = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        outline += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
        return np.array(outline) * 1.1
    return np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return a textured background (height, width, 3) RGB: three octaves of smooth noise with low saturation."""
    base = rng.uniform(75, 135) + rng.uniform(-14, 14, 3)
    ground = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    for cells, strength in ((6, 20), (24, 13), (80, 8)):
        coarse = rng.normal(0, strength, (max(2, cells * height // width), cells, 3)) * [1, 0.9, 0.85]
        coarse = 0.75 * coarse.mean(2, keepdims=True) * 1.7 + 0.25 * coarse
        ground = ground + cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(ground, 25, 190).astype(np.float32)


def _coverage(thing: Thing, centre: NDArray[np.float64], scale: float) -> tuple[slice, slice, NDArray[np.float32]] | None:
    """Return the window (rows, columns) around a shape and the share of each pixel that it covers; None outside the frame."""
    reach = int(np.ceil(thing.radius * scale * 1.35)) + 2
    left, top = int(np.floor(centre[0])) - reach, int(np.floor(centre[1])) - reach
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + 2 * reach, WIDTH), min(top + 2 * reach, HEIGHT)
    if x1 <= x0 or y1 <= y0:
        return None
    outline = (_polygon(thing.appearance.shape) * thing.radius * scale + centre - [x0, y0]) * FINE - 0.5
    fine = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE), np.uint8)
    cv2.fillPoly(fine, [np.rint(outline * 2**_SHIFT).astype(np.int32)], 1, shift=_SHIFT)
    share = cv2.resize(fine.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return slice(y0, y1), slice(x0, x1), share


def _shade(
    thing: Thing, centre: NDArray[np.float64], rows: slice, columns: slice, grain: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the colour (h, w, 3): lit from the upper left, with grain that moves with the object."""
    y = (np.arange(rows.start, rows.stop) - centre[1])[:, None] / thing.radius
    x = (np.arange(columns.start, columns.stop) - centre[0])[None] / thing.radius
    light = 1.0 - 0.10 * np.clip(x + y, -1.5, 1.5)
    iy = np.clip((y * 8 + 20).astype(int), 0, 39)
    ix = np.clip((x * 8 + 20).astype(int), 0, 39)
    colour = np.array(COLOURS[thing.appearance.colour], np.float32)
    return np.asarray(colour * light[..., None] + grain[iy, ix][..., None], np.float32)


def _post(frame: NDArray[np.float32], post: Post, shift: float, pattern: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Draw the post into `frame`; return bool (W,), the columns that it covers."""
    left = post.x - post.width / 2 - shift
    columns = np.arange(WIDTH)
    covered = (columns + 0.5 >= left) & (columns + 0.5 < left + post.width)
    inside = np.clip(columns[covered] - left, 0, pattern.shape[1] - 1).astype(int)
    frame[:, covered] = pattern[:, inside]
    return covered


def render(scene: Scene, rng: np.random.Generator) -> tuple[list[NDArray[np.uint8]], NDArray[np.bool_], NDArray[np.float64]]:
    """Return T frames (H, W, 3) uint8 RGB, visible masks bool (A, T, H, W), and the visible share of each shape (A, T)."""
    ground = _texture(rng, HEIGHT + 16, WIDTH + 24)
    grain = cv2.GaussianBlur(rng.normal(0, 22, (len(scene.things), 40, 40)).astype(np.float32).transpose(1, 2, 0), (0, 0), 1)
    grain = grain.reshape(40, 40, len(scene.things))
    pattern = _texture(rng, HEIGHT, 48) * np.array([0.62, 0.5, 0.4], np.float32)
    pattern[:, ::6] *= 0.6
    masks = np.zeros((len(scene.things), scene.frames, HEIGHT, WIDTH), bool)
    visible = np.zeros((len(scene.things), scene.frames))
    frames = []
    for t in range(scene.frames):
        shift = scene.camera[t]
        move = np.array([[1, 0, 12 + shift[0]], [0, 1, 8 + shift[1]]])
        frame = cv2.warpAffine(ground, move, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        rendered = []
        for a, thing in reversed(list(enumerate(scene.things))):
            centre, scale = thing.path.position[t] - shift, float(thing.path.scale[t])
            part = _coverage(thing, centre, scale)
            if part is None:
                continue
            rows, columns, share = part
            colour = _shade(thing, centre, rows, columns, grain[..., a])
            frame[rows, columns] += share[..., None] * (colour - frame[rows, columns])
            rendered.append((a, rows, columns, share >= 0.5, scale))
        free = np.ones((HEIGHT, WIDTH), bool)
        if scene.post is not None:
            free[:, _post(frame, scene.post, float(shift[0]), pattern)] = False
        for a, rows, columns, shape, scale in reversed(rendered):
            masks[a, t, rows, columns] = shape & free[rows, columns]
            free[rows, columns] &= ~shape
            whole = cv2.contourArea(
                (_polygon(scene.things[a].appearance.shape) * scene.things[a].radius * scale).astype(np.float32)
            )
            visible[a, t] = masks[a, t].sum() / whole
        noisy = frame + rng.normal(0, 1.5, frame.shape)
        frames.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return frames, masks, visible
