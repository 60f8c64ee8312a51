"""Ref-DAVIS17's scores: the DAVIS toolkit's plain code written out again, hand-counted cases, holes, both routes, real videos."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plain_scores
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.morphology import disk

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.frames import write_mask_png
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackCache, TrackRecord, write_selections, write_tracks
from rvos_cache.types import Selection, TrackSet
from rvos_select.evaluate.ref_davis import davis_truth, evaluate_ref_davis_pngs, evaluate_ref_davis_selections
from rvos_select.label_maps import Answer, label_map
from rvos_select.merge import merge
from rvos_select.metrics.davis import DavisTruth, score_maps

SIZE, FRAMES = (40, 60), 4
NAMES = tuple(f"{t:05d}" for t in range(FRAMES))


def plain_frame(mask: np.ndarray, truth: np.ndarray, void: np.ndarray) -> tuple[float, float]:
    """`db_eval_iou` and `f_measure` of one frame with void pixels, as published."""
    union = ((mask | truth) & ~void).sum()
    region = 1.0 if union == 0 else float(((mask & truth) & ~void).sum() / union)
    element = disk(np.ceil(0.008 * np.linalg.norm(mask.shape))).astype(np.uint8)
    ours, theirs = plain_scores.boundary(mask & ~void), plain_scores.boundary(truth & ~void)
    ours_wide, theirs_wide = (cv2.dilate(b.astype(np.uint8), element) for b in (ours, theirs))
    n, m = ours.sum(), theirs.sum()
    if n == 0 or m == 0:
        return region, float(n == m)
    precision, recall = (ours * theirs_wide).sum() / float(n), (theirs * ours_wide).sum() / float(m)
    return region, 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def plain_davis(maps: np.ndarray, truth: np.ndarray, strict: bool = False) -> tuple[float, float]:
    """The sums of J and of F over the objects, from label maps (T, H, W): `get_all_masks`, `read_masks`,
    `_evaluate_unsupervised`; the assignment by trying all."""
    void = truth == 255
    objects = [np.where(void, 0, truth) == i + 1 for i in range(int(truth[0][~void[0]].max(initial=0)))]
    found = [maps == i + 1 for i in range(int(maps.max()))]
    found += [np.zeros_like(void)] * (len(objects) - len(found))
    frames = range(len(truth))
    table = np.array([
        [np.mean([plain_frame(p[t], o[t], void[t]) for t in frames], axis=0) for o in objects] for p in found
    ]).reshape(len(found), len(objects), 2)  # fmt: skip
    columns = np.arange(len(objects))
    orders = [tuple(columns)] if strict else list(itertools.permutations(range(len(found)), len(objects)))
    best = max(orders, key=lambda rows: table[list(rows), columns].mean(axis=1).sum() if rows else 0.0)
    region, contour = table[list(best), columns].sum(axis=0) if best else (0.0, 0.0)
    return float(region), float(contour)


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
        found = scored(maps, pixels, strict).sum(axis=0)
        assert found == pytest.approx(plain_davis(maps, pixels, strict), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, (2, 2, 6, 7), elements=st.sampled_from([0, 0, 1, 2, 3, 255])))
def test_equal_to_the_plain_code_in_odd_cases(held: np.ndarray) -> None:
    pixels, maps = held[0], np.where(held[1] == 255, 4, held[1])
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
    truth, found = row(1, 2, 0)[None], row(1, 1, 0)[None]
    ((one, _), (two, _)) = scored(found, truth)
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
        with pytest.raises(ValueError, match="wanted"):
            score_maps(maps, truth)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_those_of_the_published_argmax(seed: int) -> None:
    """Planes of probabilities of 0.5 and more beside a background of 0.1, the largest of which wins; ties too."""
    rng = np.random.default_rng(seed)
    masks, scores = rng.random((4, 9, 11)) < 0.6, rng.choice([0.5, 0.7, 0.9], 4)
    planes = np.concatenate([np.full((1, 9, 11), 0.1), masks * scores[:, None, None]])
    answers = [Answer(i + 1, lambda t, i=i: masks[i], float(scores[i])) for i in rng.permutation(4).tolist()]
    assert np.array_equal(label_map(answers, 0, (9, 11)), planes.argmax(0))


# A dataset of two videos.


def squares(objects: int, t: int) -> np.ndarray:
    """Object n is a square in the n-th place from the left that moves down."""
    pixels = np.zeros(SIZE, np.uint8)
    for n in range(1, objects + 1):
        pixels[4 + 3 * t : 16 + 3 * t, 18 * n - 15 : 18 * n - 3] = n
    return pixels


def annotation(video: str, t: int) -> np.ndarray:
    """a has three objects, b two and pixels that are not scored; its second object, which is in no list, leaves."""
    pixels = squares(3 if video == "a" else 2, t)
    if video == "b":
        pixels[:, -6:] = 255
        pixels[pixels == 2 * (t > 1)] = 0
    return pixels


NAMED = {"a": 3, "b": 1}


def write_split(root: Path, annotators: int = 4) -> Path:
    videos: dict[str, Any] = {}
    for video, objects in NAMED.items():
        for t, name in enumerate(NAMES):
            for folder, image in (("JPEGImages", Image.new("RGB", SIZE[::-1])), ("Annotations", annotation(video, t))):
                path = root / "valid" / folder / video / f"{name}.{'png' if folder == 'Annotations' else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
        held = {
            str(annotators * i + a): {"exp": f"{i} by {a}", "obj_id": str(i + 1)}
            for i in range(objects)
            for a in range(annotators)
        }
        videos[video] = {"frames": list(NAMES), "expressions": held}
    listed = root / "meta_expressions/valid/meta_expressions.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(json.dumps({"videos": videos}))
    return root


def write_masks(root: Path, annotators: int = 4, shown: Callable[[str, int], int] = lambda video, number: number) -> Path:
    """The mask of each expression's object, or of the one that `shown` puts in its place (0: none)."""
    for video, objects in NAMED.items():
        for i, a in itertools.product(range(objects), range(annotators)):
            folder = root / video / str(annotators * i + a)
            folder.mkdir(parents=True, exist_ok=True)
            number = shown(video, i + 1)
            for t, name in enumerate(NAMES):
                write_mask_png(folder / f"{name}.png", (annotation(video, t) == number) & (number > 0))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    write_split(out / "data")
    write_masks(out / "png")
    return out


@pytest.fixture
def split(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "split")


def from_pngs(split: Path, **more: Any) -> dict[str, Any]:
    return evaluate_ref_davis_pngs(split / "data", "valid", split / "png", **more)


KEYS = {f"a/{a}/{n}" for a in range(4) for n in (1, 2, 3)} | {f"b/{a}/{n}" for a in range(4) for n in (1, 2)}
LEFT = 0.5
"""What an empty proposal scores with b's second object: it is absent in half of the frames."""


def test_truth_as_prediction(made: Path) -> None:
    """All that the expressions name is right; what none names is paired with nothing, as the benchmark does."""
    for strict in (False, True):
        scores = from_pngs(made, strict=strict)
        assert scores["objects"].keys() == KEYS
        assert scores["protocol"] == ("davis-strict" if strict else "davis-unsupervised")
        for key, found in scores["objects"].items():
            assert found == ({"j": LEFT, "f": LEFT} if key.startswith("b/") and key.endswith("/2") else {"j": 1.0, "f": 1.0})
        mean = pytest.approx({"j": (4 + LEFT) / 5, "f": (4 + LEFT) / 5, "jf": (4 + LEFT) / 5})
        assert {k: scores[k] for k in ("j", "f", "jf")} == mean
        assert scores["annotators"] == {str(a): mean for a in range(4)}
        assert "missing" not in scores
        only = from_pngs(made, strict=strict, videos=["a"])
        assert (only["j"], only["f"], only["jf"]) == (1.0, 1.0, 1.0)
        assert from_pngs(made, strict=strict, limit=1) == only


def test_the_table_is_the_plain_code_over_the_split(split: Path) -> None:
    """Worn masks, other for each annotator: the means over objects of both videos, then over annotators."""
    rng = np.random.default_rng(0)
    for path in sorted((split / "png").rglob("*.png")):
        mask = np.asarray(Image.open(path)) > 0
        write_mask_png(path, np.roll(mask, rng.integers(-9, 10, 2), (0, 1)) | (rng.random(SIZE) < 0.01))
    for strict in (False, True):
        scores, means = from_pngs(split, strict=strict), []
        for a in range(4):
            sums = np.zeros(2)
            for video, objects in NAMED.items():
                maps = np.zeros((FRAMES, *SIZE), np.uint8)
                for i in reversed(range(objects)):
                    for t, name in enumerate(NAMES):
                        maps[t][np.asarray(Image.open(split / "png" / video / str(4 * i + a) / f"{name}.png")) > 0] = i + 1
                sums += plain_davis(maps, np.stack([annotation(video, t) for t in range(FRAMES)]), strict)
            means.append(sums / 5)
            assert scores["annotators"][str(a)] == pytest.approx({"j": means[a][0], "f": means[a][1], "jf": means[a].mean()})
        assert (scores["j"], scores["f"]) == pytest.approx(tuple(np.mean(means, axis=0)), abs=1e-9)
        assert scores["jf"] == pytest.approx((scores["j"] + scores["f"]) / 2, abs=1e-12)


def test_exchanged_objects_are_forgiven_by_default_and_not_by_strict(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    write_masks(tmp_path / "png", shown=lambda video, n: {1: 2, 2: 1}.get(n, n) if video == "a" else n)
    assert from_pngs(tmp_path)["objects"] == from_pngs(made)["objects"]
    strict = from_pngs(tmp_path, strict=True)["objects"]
    assert [strict[f"a/2/{n}"]["j"] for n in (1, 2, 3)] == [0.0, 0.0, 1.0]


def test_empty_predictions(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    write_masks(tmp_path / "png", shown=lambda video, n: 0)
    scores = from_pngs(tmp_path)
    assert (scores["j"], scores["f"]) == (LEFT / 5, LEFT / 5)


def test_one_annotator(tmp_path: Path) -> None:
    write_split(tmp_path / "data", annotators=1)
    write_masks(tmp_path / "png", annotators=1)
    scores = from_pngs(tmp_path, videos=["a"])
    assert (scores["jf"], list(scores["annotators"])) == (1.0, ["0"])
    assert scores["objects"].keys() == {"a/0/1", "a/0/2", "a/0/3"}


def test_an_absent_annotator_is_refused(split: Path) -> None:
    path = split / "data/meta_expressions/valid/meta_expressions.json"
    held = json.loads(path.read_text())
    for i in range(3):
        del held["videos"]["a"]["expressions"][str(4 * i + 3)]
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match="wanted 4 expressions per object, came 9"):
        from_pngs(split)


def test_a_missing_mask_is_named_or_scored_zero(split: Path) -> None:
    """Its object scores 0 for that annotator, and no other proposal may take it: not the one that is left over in strict."""
    (split / "png/a/6" / f"{NAMES[2]}.png").unlink()
    with pytest.raises(InputError, match=r"a/6/00002\.png: the prediction is missing; .*--allow-missing"):
        from_pngs(split)
    for strict in (False, True):
        scores = from_pngs(split, allow_missing=True, strict=strict)
        assert scores["missing"] == ["a/6"]
        assert [key for key, found in scores["objects"].items() if found["j"] == 0] == ["a/2/2"]
        assert scores["annotators"]["1"]["j"] == (4 + LEFT) / 5
        assert scores["annotators"]["2"]["j"] == pytest.approx((3 + LEFT) / 5)


def test_a_missing_mask_is_no_empty_mask(split: Path) -> None:
    """Where the object is absent an empty mask is right; a missing one scores 0 there too."""
    shutil.rmtree(split / "png/b/0")
    for t in range(1, FRAMES):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(split / f"data/valid/Annotations/b/{NAMES[t]}.png")
    scores = from_pngs(split, allow_missing=True)
    assert [scores["objects"][f"b/0/{n}"]["j"] for n in (1, 2)] == [0.0, 0.75]
    assert scores["missing"] == ["b/0"]


@pytest.mark.parametrize("what", ["annotation", "expression"])
def test_a_video_that_cannot_be_read(split: Path, what: str) -> None:
    """Its objects score 0 where the expressions tell them, one where they do not."""
    listed = split / "data/meta_expressions/valid/meta_expressions.json"
    if what == "annotation":
        (split / "data/valid/Annotations/a/00002.png").write_bytes(b"")
    else:
        listed.write_text(listed.read_text().replace('"1 by 2"', '" "'))
    with pytest.raises(InputError, match="a/00002.png" if what == "annotation" else "expression 6: the text is empty"):
        from_pngs(split)
    scores = from_pngs(split, allow_missing=True)
    objects, missing = (3, [f"a/{i}" for i in range(12)]) if what == "annotation" else (1, ["a"])
    assert scores["missing"] == missing
    assert scores["j"] == pytest.approx((1 + LEFT) / (2 + objects))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: (p / "a/0/00001.png").write_bytes(b"x"), r"a/0/00001\.png: not a whole PNG"),
        (lambda p: Image.new("L", (5, 6)).save(p / "a/0/00001.png"), r"a/0/00001\.png: the mask is \(6, 5\)"),
        (lambda p: Image.new("L", SIZE[::-1], 7).save(p / "a/0/00001.png"), r"a/0/00001\.png: a mask holds 0 and 255"),
        (lambda p: shutil.rmtree(p), "png: no such folder of predictions"),
    ],
)
def test_a_damaged_prediction_is_no_hole(split: Path, change: Callable[[Path], object], says: str) -> None:
    change(split / "png")
    with pytest.raises(InputError, match=says) as error:
        from_pngs(split, allow_missing=True)
    assert "\n" not in str(error.value)


def test_other_splits_and_videos_are_refused(made: Path) -> None:
    with pytest.raises(InputError, match="no video zebra"):
        from_pngs(made, videos=["zebra"])
    with pytest.raises(InputError, match="splits of .*: valid"):
        evaluate_ref_davis_pngs(made / "data", "train", made / "png")


def test_a_split_without_objects(split: Path) -> None:
    for path in (split / "data/valid/Annotations").rglob("00000.png"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    with pytest.raises(InputError, match="there is no object to score in 2 videos"):
        from_pngs(split)


def test_processes_change_nothing(made: Path) -> None:
    assert from_pngs(made, processes=2) == from_pngs(made)


# From selections.


def write_cache(path: Path, root: Path, videos: Sequence[str] = ("a", "b")) -> Path:
    """Tracks: each object exactly, then the right half of each, then all of them."""
    writer = CacheWriter(
        path, Card(kind="tracks", dataset="ref-davis17", split="valid", producer="flow", channels=2, root=str(root))
    )
    data = RefDavis17(root, "valid")
    for video in videos:
        pixels = np.stack([annotation(video, t) for t in range(FRAMES)])
        masks = np.stack([pixels == n for n in range(1, NAMED[video] + 1)])
        masks = np.concatenate([masks, masks & (np.arange(SIZE[1]) % 18 >= 9), ((pixels > 0) & (pixels < 255))[None]])
        n = len(masks)
        found = TrackSet(
            np.zeros((n, FRAMES, 2), np.float16), np.ones((n, FRAMES), np.float16), RleMasks.from_dense(masks),
            np.full(n, -1, np.int32), ("flow",) * n, np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        truth = data.ground_truth(video)
        assert truth is not None
        overlap = count_overlap(found.masks, truth)
        write_tracks(writer, TrackRecord(video, NAMES, SIZE, data.expressions(video), found, truth, overlap))
    return path


def write_said(path: Path, scores: Callable[[str, int], np.ndarray], videos: Sequence[str] = ("a", "b")) -> Path:
    """scores(video, object index) of the tracks, by every annotator."""
    writer = CacheWriter(path, Card(kind="selections", dataset="ref-davis17", split="valid", producer="run"))
    for video in videos:
        said = []
        for i, a in itertools.product(range(NAMED[video]), range(4)):
            found = np.asarray(scores(video, i), np.float32)
            said.append(Selection(str(4 * i + a), found, np.ones(len(found), bool)))
        write_selections(writer, SelectionRecord(video, NAMES, SIZE, tuple(said)))
    return path


def right(video: str, i: int) -> np.ndarray:
    out = np.full(2 * NAMED[video] + 1, 0.1)
    out[i] = 0.6
    return out


def test_selections_score_as_their_masks_do(split: Path) -> None:
    """The right halves; nothing overlaps, so that PNGs say the same."""
    cache = write_cache(split / "c.zarr", split / "data")
    said = write_said(split / "s.zarr", lambda video, i: right(video, i + NAMED[video]))
    pngs = merge(said, [cache], split / "halves", top1=True)
    for strict in (False, True):
        found = evaluate_ref_davis_selections(said, [cache], strict=strict)
        assert found == evaluate_ref_davis_pngs(split / "data", "valid", pngs, strict=strict)
        assert found["objects"]["a/1/2"]["j"] == 0.5
    assert evaluate_ref_davis_selections(said, [cache], root=split / "data", processes=2) == evaluate_ref_davis_selections(
        said, [cache]
    )


def test_the_larger_score_wins_a_pixel(split: Path) -> None:
    """The third sentence takes everything. Where its score is the least, or equal, the others keep theirs."""
    cache = write_cache(split / "c.zarr", split / "data")
    for score, wanted in ((0.5, [1, 1, 1]), (0.6, [1, 1, 1]), (0.7, [0, 0, 1 / 3])):

        def scores(video: str, i: int, score: float = score) -> np.ndarray:
            return np.where(np.arange(7) == 6, score, 0.1) if (video, i) == ("a", 2) else right(video, i)

        said = write_said(split / f"{score}.zarr", scores)
        found = evaluate_ref_davis_selections(said, [cache], strict=True, videos=["a"])["objects"]
        assert [found[f"a/3/{n}"]["j"] for n in (1, 2, 3)] == pytest.approx(wanted)


def test_tracks_above_a_threshold_or_the_best(split: Path) -> None:
    cache = write_cache(split / "c.zarr", split / "data")

    def halves(video: str, i: int) -> np.ndarray:
        out = right(video, i + NAMED[video])
        out[i] = 0.55
        return out

    said = write_said(split / "s.zarr", halves)
    for more, wanted in (({}, 0.5), ({"top1": False}, 1.0), ({"top1": False, "threshold": 0.58}, 0.5)):
        found = evaluate_ref_davis_selections(said, [cache], videos=["a"], **more)  # type: ignore[arg-type]
        assert found["j"] == pytest.approx(wanted)
    assert evaluate_ref_davis_selections(said, [cache], videos=["a"], top1=False, threshold=0.9)["j"] == 0.0


def test_holes_of_selections_and_caches(split: Path) -> None:
    whole, part = write_cache(split / "c.zarr", split / "data"), write_cache(split / "p.zarr", split / "data", ["b"])
    said, few = write_said(split / "s.zarr", right), write_said(split / "f.zarr", right, ["b"])
    for selections, cache, says in ((few, whole, "no selection of expression a/0"), (said, part, "no video a")):
        with pytest.raises(InputError, match=f"{says}.*--allow-missing"):
            evaluate_ref_davis_selections(selections, [cache])
        scores = evaluate_ref_davis_selections(selections, [cache], allow_missing=True)
        assert scores["missing"] == [f"a/{4 * i + a}" for a in range(4) for i in range(3)]
        assert scores["j"] == pytest.approx((1 + LEFT) / 5)
        assert evaluate_ref_davis_selections(selections, [cache], videos=["b"])["j"] == pytest.approx((1 + LEFT) / 2)


def test_caches_without_their_dataset_and_of_others(split: Path) -> None:
    """Void pixels and objects that no expression names are in no cache."""
    cache, said = write_cache(split / "c.zarr", split / "data"), write_said(split / "s.zarr", right)
    (split / "data").rename(split / "moved")
    with pytest.raises(InputError, match="holds? no void pixels; give --root"):
        evaluate_ref_davis_selections(said, [cache])
    assert evaluate_ref_davis_selections(said, [cache], root=split / "moved")["j"] == pytest.approx((4 + LEFT) / 5)
    other = CacheWriter(split / "o.zarr", TrackCache(cache).card.model_copy(update={"dataset": "mevis"})).path
    with pytest.raises(InputError, match="holds mevis valid, not dataset ref-davis17"):
        evaluate_ref_davis_selections(said, [other])


def test_tracks_of_other_frames_are_refused(split: Path) -> None:
    cache, said = write_cache(split / "c.zarr", split / "data"), write_said(split / "s.zarr", right)
    path = split / "data/meta_expressions/valid/meta_expressions.json"
    held = json.loads(path.read_text())
    held["videos"]["a"]["frames"].pop()
    path.write_text(json.dumps(held))
    with pytest.raises(InputError, match=r"video a: holds 4 frames of \(40, 60\), the dataset has 3"):
        evaluate_ref_davis_selections(said, [cache], root=split / "data", allow_missing=True)


# Real videos.


def real_split(real_data: Path, root: Path, expressions: str, videos: Sequence[str]) -> Path:
    """Some of the real videos. Their link to the frames may be a file that holds its target."""
    source = real_data / "ref-davis17"
    frames = source / "valid/JPEGImages"
    target = frames if frames.is_dir() else source / "valid" / frames.read_text().strip()
    (root / "valid").mkdir(parents=True)
    (root / "valid/JPEGImages").symlink_to(target, target_is_directory=True)
    (root / "valid/Annotations").symlink_to(source / "valid/Annotations", target_is_directory=True)
    held = json.loads((source / "meta_expressions/valid" / expressions).read_text())["videos"]
    (root / "meta_expressions/valid").mkdir(parents=True)
    (root / "meta_expressions/valid/meta_expressions.json").write_text(json.dumps({"videos": {v: held[v] for v in videos}}))
    return root


def test_real_videos_with_their_own_annotation(real_data: Path, tmp_path: Path) -> None:
    """Of four annotators, where only the first of them is right of its two objects and the others are given the other one."""
    data = RefDavis17(
        real_split(real_data, tmp_path / "data", "meta_expressions_x4.json", ["car-shadow", "scooter-black"]), "valid"
    )
    for video in data.video_ids():
        for expression in data.expressions(video):
            truth, (target,) = data.ground_truth(video), expression.targets or ()
            assert truth is not None
            folder = tmp_path / "png" / video / expression.expression_id
            folder.mkdir(parents=True)
            (k,) = truth.indices([target])
            if data.annotator(video, expression.expression_id):
                k = len(truth.object_ids) - 1 - k
            for t, name in enumerate(data.video(video).frame_names):
                write_mask_png(folder / f"{name}.png", truth.masks.decode(k, t))
    scores = evaluate_ref_davis_pngs(tmp_path / "data", "valid", tmp_path / "png")
    assert (scores["j"], scores["f"], len(scores["objects"])) == (1.0, 1.0, 12)
    strict = evaluate_ref_davis_pngs(tmp_path / "data", "valid", tmp_path / "png", strict=True)["annotators"]
    assert strict["0"]["jf"] == 1.0 and all(strict[a]["jf"] < 0.5 for a in "123")


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
    found = score_maps(maps, only)
    assert found.sum(axis=0) == pytest.approx(plain_davis(maps, pixels), abs=1e-9)
    fixed = score_maps(maps, only, strict=True)
    assert fixed.sum(axis=0) == pytest.approx(plain_davis(maps, pixels, strict=True), abs=1e-9)
    assert found.mean() > 0.4 > 0.2 > fixed.mean()
