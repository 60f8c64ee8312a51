"""The measures of DAVIS's unsupervised protocol: the toolkit's plain code written out again, hand-counted cases, real tracks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from davis_fixtures import SIZE, real_split
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from plain_scores import plain_davis

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, from_coco
from rvos_select.evaluation.ref_davis import davis_truth
from rvos_select.merging.label_maps import Answer, label_map
from rvos_select.metrics.davis import DavisTruth, score_maps


def truth_of(pixels: np.ndarray) -> DavisTruth:
    """From label maps (T, H, W)."""
    count = int(pixels[0][pixels[0] != 255].max(initial=0))
    masks = RleMasks.from_dense(np.stack([pixels == n for n in [*range(1, count + 1), 255]]))
    return DavisTruth("v", tuple(map(str, range(len(pixels)))), masks.select(range(count)), masks.select([count]))


def scored(maps: np.ndarray, pixels: np.ndarray, strict: bool = False) -> np.ndarray:
    return score_maps(maps, truth_of(pixels), strict)


def blobs(rng: np.random.Generator, objects: int, void: bool, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Label maps (T, H, W) of smooth shapes, some cut by others or the border, some absent; then 255 along some edges."""
    out = np.zeros((3, *size), np.uint8)
    for t, number in itertools.product(range(3), range(1, objects + 1)):
        noise = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), rng.uniform(2, 8))
        out[t][noise > np.quantile(noise, rng.choice([0.7, 0.9, 1.0]))] = number
    if void:
        out[cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), 3) > 0.2 * rng.random((3, 1, 1))] = 255
    return out


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_the_plain_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = [(40, 60), (130, 90), (31, 47)][seed % 3]
    pixels, maps = blobs(rng, seed % 4, seed % 2 == 1, size), blobs(rng, (seed + seed // 4) % 5, False, size)
    if seed % 2:
        maps = np.where(rng.random(maps.shape) < 0.8, np.where(pixels == 255, 1, (pixels * 2) % 5), maps).astype(np.uint8)
    for strict in (False, True):
        scores = scored(maps, pixels, strict).sum(axis=0)
        assert scores == pytest.approx(plain_davis(maps, pixels, strict), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, (2, 2, 6, 7), elements=st.sampled_from([0, 0, 1, 2, 3, 255])))
def test_equal_to_the_plain_code_in_odd_cases(pair: np.ndarray) -> None:
    pixels, maps = pair[0], np.where(pair[1] == 255, 4, pair[1])
    assert scored(maps, pixels, True).sum(axis=0) == pytest.approx(plain_davis(maps, pixels, True), abs=1e-9)
    # Of equal sums of both measures, any may be taken.
    assert scored(maps, pixels).sum() == pytest.approx(sum(plain_davis(maps, pixels)), abs=1e-9)


def row(*values: int) -> np.ndarray:
    """A frame of one column of 12 pixels per value."""
    return np.repeat(np.array([values], np.uint8), 12, axis=1).repeat(30, axis=0)


@settings(max_examples=20, deadline=None)
@given(st.permutations([1, 2, 3]), st.integers(0, 99))
def test_exchanged_numbers_are_forgiven(order: list[int], seed: int) -> None:
    pixels = blobs(np.random.default_rng(seed), 3, True)
    # Every object is one of the first frame: else its proposal may take another's place.
    pixels[0, :3, :3] = [1, 2, 3]
    truth = truth_of(pixels)
    maps = np.array([0, *order], np.uint8)[np.where(pixels == 255, 0, pixels)]
    assert (score_maps(maps, truth) == 1).all()
    fixed = score_maps(maps, truth, strict=True)
    # Two objects that no frame tells apart, being absent, may be exchanged.
    same = [np.array_equal(maps == n, np.where(pixels == 255, 0, pixels) == n) for n in range(1, len(fixed) + 1)]
    assert [bool((s == 1).all()) for s in fixed] == same


def test_the_best_assignment_is_of_both_measures_together() -> None:
    """J of three columns of twelve pixels: proposal 1 is the first two, so it shares half with each."""
    truth, maps = row(1, 2, 0)[None], row(1, 1, 0)[None]
    ((one, _), (two, _)) = scored(maps, truth)
    assert sorted([one, two]) == pytest.approx([0.0, 0.5])
    # The third column is nobody's: proposal 2 takes it, and 1 has nothing of object 2.
    assert scored(row(0, 1, 2)[None], truth, strict=True)[:, 0].tolist() == [0.0, 0.0]
    assert sorted(scored(row(0, 1, 2)[None], truth)[:, 0]) == [0.0, 1.0]


def test_void_pixels_count_for_nobody() -> None:
    truth = row(1, 255, 0)[None]
    for second in (0, 1, 2):
        assert scored(row(1, second, 0)[None], truth).tolist() == [[1.0, 1.0]]
    assert scored(row(1, 0, 1)[None], truth)[0, 0] == 0.5


def test_objects_are_those_of_the_first_frame() -> None:
    """Number 2 is absent there but below 3: it is scored. Number 4 comes later: it is not, and 255 is no number."""
    truth = np.stack([row(1, 3, 255, 0), row(1, 3, 4, 2)])
    maps = np.where(truth == 255, 0, truth)
    assert scored(maps, truth).tolist() == [[1, 1]] * 3
    assert scored(np.where(maps == 4, 0, maps), truth).tolist() == [[1, 1]] * 3
    # Without proposal 2 its object is right in the frame where it is absent.
    assert scored(np.where(maps == 2, 0, maps), truth, strict=True).tolist() == [[1, 1], [0.5, 0.5], [1, 1]]


def test_nothing_in_the_first_frame_is_no_object() -> None:
    truth = np.stack([row(0, 0), row(1, 0)])
    assert scored(truth, truth).shape == (0, 2)
    assert scored(np.zeros_like(truth), truth).shape == (0, 2)


def test_an_empty_prediction() -> None:
    """Right where the object is absent, wrong where it is there."""
    truth = np.stack([row(1, 0), row(0, 0), row(1, 0)])
    assert scored(np.zeros_like(truth), truth).tolist() == [[pytest.approx(1 / 3)] * 2]


def test_more_than_twenty_proposals_are_refused() -> None:
    truth = row(1, 0)[None]
    assert scored(row(20, 1)[None], truth).shape == (1, 2)
    with pytest.raises(InputError, match="video v, frame 0: proposal 21, the DAVIS protocol takes 20"):
        scored(row(21, 1)[None], truth)


def test_label_maps_of_other_frames_or_sizes() -> None:
    truth = truth_of(row(1, 0)[None])
    for maps in (row(1, 0, 0)[None], np.stack([row(1, 0)] * 2), np.zeros((0, 30, 24), np.uint8)):
        with pytest.raises(ValueError, match="expected"):
            score_maps(maps, truth)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_those_of_the_published_argmax(seed: int) -> None:
    """Planes of probabilities of 0.5 and more beside a background of 0.1, the largest of which wins; ties too."""
    rng = np.random.default_rng(seed)
    masks, scores = rng.random((4, 9, 11)) < 0.6, rng.choice([0.5, 0.7, 0.9], 4)
    planes = np.concatenate([np.full((1, 9, 11), 0.1), masks * scores[:, None, None]])
    answers = [Answer(i + 1, lambda t, i=i: masks[i], float(scores[i])) for i in rng.permutation(4).tolist()]
    assert np.array_equal(label_map(answers, 0, (9, 11)), planes.argmax(0))


def test_real_tracks_equal_the_plain_code(real_data: Path, tmp_path: Path) -> None:
    """OSVOS's masks of two objects over ten frames, given in the wrong order."""
    data = RefDavis17(real_split(real_data, tmp_path / "data", "meta_expressions.json", ["scooter-black"]), "valid")
    tracks = real_data / "davis17-osvos-tracks/valid_u"
    meta = json.loads((tracks / "meta_expressions.json").read_text())["videos"]["scooter-black"]["expressions"]
    keys = sorted({str(i) for e in meta.values() for i in e["anno_id"]}, key=int)
    truth, rows = davis_truth(data, "scooter-black"), json.loads((tracks / "mask_dict.json").read_text())
    size, frames = truth.objects.size, range(0, 40, 4)
    masks = RleMasks.from_bytes([[from_coco(rows[k][t], size, k) for t in frames] for k in keys], len(frames), size)
    only = DavisTruth("x", tuple(map(str, frames)), *(
        RleMasks.from_bytes([[m.bytes_at(k, t) for t in frames] for k in range(m.shape[0])], len(frames), size)
        for m in (truth.objects, truth.void)
    ))  # fmt: skip
    maps = np.zeros((len(frames), *size), np.uint8)
    for t, k in itertools.product(range(len(frames)), range(masks.shape[0])):
        maps[t][masks.decode(k, t)] = masks.shape[0] - k
    pixels = np.stack([np.asarray(Image.open(tmp_path / f"data/valid/Annotations/scooter-black/{t:05d}.png")) for t in frames])
    assigned = score_maps(maps, only)
    assert assigned.sum(axis=0) == pytest.approx(plain_davis(maps, pixels), abs=1e-9)
    fixed = score_maps(maps, only, strict=True)
    assert fixed.sum(axis=0) == pytest.approx(plain_davis(maps, pixels, strict=True), abs=1e-9)
    assert assigned.mean() > 0.4 > 0.2 > fixed.mean()
