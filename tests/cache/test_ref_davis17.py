"""Ref-DAVIS17: four annotators, pixels that are not scored, links, and one error line for every fault."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from youtube_files import SIZE, cut, edited, numbers, write_frames, write_list, write_png

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import write_mask_png
from rvos_select.evaluation.ref_davis import evaluate_pngs

NAMES = ("00000", "00001", "00002")


def sentences(objects: int) -> dict[str, Any]:
    return {str(4 * o + a): {"exp": f"object {o + 1} by {a}", "obj_id": str(o + 1)} for o in range(objects) for a in range(4)}


def write_davis(root: Path) -> None:
    """train and valid: video a with three objects, b with one; its last column is not scored."""
    for split in ("train", "valid"):
        write_list(root, split, {"a": sentences(3), "b": sentences(1)}, NAMES)
        for video, objects in (("a", 3), ("b", 1)):
            write_frames(root, split, video, NAMES)
            for t, name in enumerate(NAMES):
                pixels = numbers(objects, t)
                pixels[:, -1] = 255 * (video == "b")
                write_png(root / split / "Annotations" / video / f"{name}.png", pixels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_davis(tmp_path)
    return tmp_path


def test_reads_the_annotations(root: Path) -> None:
    data = open_dataset("ref-davis17", root, "valid")
    assert RefDavis17.splits(root) == ["train", "valid"]
    assert data.video_ids() == ("a", "b") and data.has_ground_truth
    expressions = data.expressions("a")
    assert [e.expression_id for e in expressions] == [str(i) for i in range(12)]
    assert [e.targets for e in expressions] == [(f"a-{i // 4 + 1}",) for i in range(12)]
    truth = data.ground_truth("a")
    assert truth is not None
    assert truth.object_ids == ("a-1", "a-2", "a-3")
    assert truth.annotated.all()
    assert truth.masks.area().tolist() == [[4] * 3] * 3
    assert list(data.check()) == []


def test_the_annotator_of_an_expression(root: Path) -> None:
    data = RefDavis17(root, "valid")
    assert data.annotators == 4
    for expression in data.expressions("a"):
        assert expression.text.endswith(f"by {data.annotator('a', expression.expression_id)}")
    with pytest.raises(InputError, match="no expression '12'"):
        data.annotator("a", "12")


def test_a_list_sorted_as_text_has_the_same_annotators(root: Path) -> None:
    lists(root, lambda v: v["a"].update(expressions=dict(sorted(v["a"]["expressions"].items()))))
    data = RefDavis17(root, "valid")
    expressions = data.expressions("a")
    assert [e.expression_id for e in expressions][:4] == ["0", "1", "10", "11"], "file order"
    assert all(e.text.endswith(f"by {data.annotator('a', e.expression_id)}") for e in expressions)
    assert list(data.check()) == []


def test_one_sentence_per_object_is_one_annotator(root: Path) -> None:
    lists(root, lambda v: [v[k].update(expressions={i: e for i, e in v[k]["expressions"].items() if int(i) % 4 == 0}) for k in v])
    data = RefDavis17(root, "valid")
    assert data.annotators == 1
    assert [data.annotator("a", e.expression_id) for e in data.expressions("a")] == [0, 0, 0]
    assert list(data.check()) == []


def test_pixels_that_are_not_scored(root: Path) -> None:
    data = RefDavis17(root, "valid")
    void = data.void("b")
    assert void.shape == (1, 3) and void.area().tolist() == [[SIZE[0]] * 3]
    assert void.decode(0, 1)[:, -1].all()
    assert not data.void("a").area().any()
    truth = data.ground_truth("b")
    assert truth is not None and truth.object_ids == ("b-1",)


def lists(root: Path, change: Callable[[Any], object]) -> None:
    edited(root / "meta_expressions/valid/meta_expressions.json", change)


def edit(root: Path, change: Callable[[Any], object]) -> None:
    """Change the expressions of video a."""
    lists(root, lambda v: change(v["a"]["expressions"]))


def annotation(root: Path, name: str = "00001") -> Path:
    return root / f"valid/Annotations/a/{name}.png"


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing frame": (lambda r: (r / "valid/JPEGImages/a/00001.jpg").unlink(), "a/00001.jpg"),
    "video listed but absent": (lambda r: shutil.rmtree(r / "valid/JPEGImages/a"), "JPEGImages/a: no folder"),
    "link that leads nowhere": (
        lambda r: (shutil.rmtree(r / "valid/JPEGImages"), (r / "valid/JPEGImages").symlink_to(r / "nowhere")),
        "JPEGImages/a: no folder",
    ),
    "link that became a file": (
        lambda r: (shutil.rmtree(r / "valid/JPEGImages"), (r / "valid/JPEGImages").write_text("../elsewhere")),
        "valid/JPEGImages: expected a folder of videos",
    ),
    "missing annotation": (lambda r: annotation(r).unlink(), "a/00001.png: the annotation is missing"),
    "annotations absent": (lambda r: shutil.rmtree(r / "valid/Annotations"), "valid/Annotations/a: no folder"),
    "annotation cut short": (lambda r: cut(annotation(r)), "a/00001.png: not a whole PNG"),
    "annotation of another size": (lambda r: write_png(annotation(r), numbers(3, 0)[:5]), "a/00001.png: (5, 12) pixels"),
    "annotation in colours": (lambda r: Image.new("RGB", SIZE[::-1]).save(annotation(r)), "a/00001.png: expected a palette PNG"),
    "unlisted annotation": (
        lambda r: write_png(annotation(r, "00003"), numbers(3, 0)),
        "not listed, 00003.png first",
    ),
    "unknown object": (
        lambda r: write_png(annotation(r), np.where(numbers(3, 0) == 2, 9, numbers(3, 0)).astype(np.uint8)),
        "a/00001.png: has object 9, which",
    ),
    "target in no annotation": (
        lambda r: [write_png(annotation(r, n), numbers(2, t)) for t, n in enumerate(NAMES)],
        "expression 8: no PNG in",
    ),
    "an annotator is missing": (
        lambda r: edit(r, lambda e: e.pop("5")),
        "expected 4 expressions per object, got 11 in all",
    ),
    "expressions of two objects": (
        lambda r: edit(r, lambda e: e["3"].update(obj_id="2")),
        "0 to 3 are of 1, 1, 1, 2",
    ),
    "an object twice": (
        lambda r: edit(r, lambda e: [e[str(i)].update(obj_id="1") for i in range(4, 8)]),
        "4 to 7 are of 1, 1, 1, 1",
    ),
    "no object number": (
        lambda r: edit(r, lambda e: e["0"].pop("obj_id")),
        "expression 0: expected an object number",
    ),
    "void as an object": (
        lambda r: edit(r, lambda e: e["0"].update(obj_id="255")),
        "expression 0: expected an object number",
    ),
    "empty sentence": (lambda r: edit(r, lambda e: e["7"].update(exp="")), "expression 7: the text is empty"),
    "id that leaves the folder": (lambda r: lists(r, lambda v: v.update({"../x": v["a"]})), "'../x'"),
    "frame that leaves the folder": (lambda r: lists(r, lambda v: v["a"].update(frames=["../b/00000"])), "'../b/00000'"),
    "video as a path": (lambda r: lists(r, lambda v: v.update({str(r / "valid"): v["a"]})), "cannot name a folder"),
    "no expressions": (lambda r: lists(r, lambda v: v["a"].pop("expressions")), '"expressions" must be'),
    "expressions that are none": (lambda r: edit(r, lambda e: e.update({"0": 3})), "expression 0: expected"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    faults = list(RefDavis17(root, "valid").check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(root) in line for line in faults)


@pytest.mark.parametrize("fault", ["missing annotation", "annotation of another size", "target in no annotation"])
def test_a_damaged_annotation_raises(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    data = RefDavis17(root, "valid")
    with pytest.raises(InputError) as error:
        data.ground_truth("a")
    assert named in str(error.value)
    assert data.ground_truth("b") is not None


@pytest.mark.parametrize("fault", ["an annotator is missing", "expressions of two objects", "an object twice"])
def test_a_missing_annotator_raises(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    data = RefDavis17(root, "valid")
    for step in (data.expressions, lambda v: data.annotator(v, "0")):
        with pytest.raises(InputError) as error:
            step("a")
        assert named in str(error.value)
    assert len(data.expressions("b")) == 4


def test_a_damaged_expression_is_one_fault(root: Path) -> None:
    edit(root, lambda e: e["0"].update(obj_id="none"))
    assert len(list(RefDavis17(root, "valid").check())) == 1


def test_objects_of_meta_json_without_sentences(root: Path) -> None:
    """ReferFormer's conversion ends with the shortest annotator's list; meta.json lists also the objects without sentences."""
    edit(root, lambda e: [e.pop(str(i)) for i in range(8, 12)])
    (line, *_), path = list(RefDavis17(root, "valid").check()), root / "valid/meta.json"
    assert "has object 3" in line
    known = {"a": {"objects": {str(n): {"category": "x"} for n in (1, 2, 3)}}, "b": {"objects": {"1": {"category": "x"}}}}
    path.write_text(json.dumps({"videos": known}))
    data = RefDavis17(root, "valid")
    assert list(data.check()) == []
    truth = data.ground_truth("a")
    assert truth is not None and truth.object_ids == ("a-1", "a-2")


def leave_first_frame(root: Path) -> None:
    """Object 3 appears in the second frame."""
    write_png(annotation(root, "00000"), numbers(2, 0))


def leave_gap(root: Path) -> None:
    """Objects 1 and 3 of video a, as in a palette where a number is skipped."""
    edit(root, lambda e: [e.pop(str(i)) for i in range(4, 8)])
    for t, name in enumerate(NAMES):
        pixels = numbers(3, t)
        pixels[pixels == 2] = 0
        write_png(annotation(root, name), pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leave_first_frame, "the largest number in the first frame, 2, not object 3 of expression 8; number the objects anew"),
        (leave_gap, "the largest number in the first frame, 3, but object 2 is in no frame; number the objects without a gap"),
    ],
)
def test_objects_that_the_benchmark_would_score_otherwise(
    root: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    """They are told before and in the evaluation; training can read them."""
    change(root)
    (fault,) = RefDavis17(root, "valid").check()
    assert f"{annotation(root, '00000')}: " in fault and message in fault
    for video, count in (("a", 12), ("b", 4)):
        for e, name in itertools.product(range(count), NAMES):
            write_mask_png(tmp_path / f"png/{video}/{e}/{name}.png", np.zeros(SIZE, bool))
    with pytest.raises(InputError, match=message):
        evaluate_pngs("ref-davis17", root, "valid", tmp_path / "png")
    truth = RefDavis17(root, "valid").ground_truth("a")
    assert truth is not None and "a-3" in truth.object_ids


def test_a_number_that_appears_late_is_scored(root: Path) -> None:
    """Object 2 is not in the first frame, whose largest number is 3."""
    pixels = numbers(3, 0)
    pixels[pixels == 2] = 0
    write_png(annotation(root, "00000"), pixels)
    data = RefDavis17(root, "valid")
    assert list(data.check()) == []
    assert data.scored_objects("a").area().tolist() == [[4, 4, 4], [0, 4, 4], [4, 4, 4]]


@pytest.mark.parametrize("what", ["JPEGImages", "Annotations", "JPEGImages/a"])
def test_folders_reached_by_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    """Ids are checked as text. Links may lead out of the root."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "folder"
    shutil.move(root / "valid" / what, elsewhere)
    (root / "valid" / what).symlink_to(elsewhere, target_is_directory=True)
    data = RefDavis17(root, "valid")
    assert list(data.check()) == []
    assert data.video("a").read(2).shape == (*SIZE, 3)


@pytest.fixture
def real_root(real_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The ten real videos with the list of expressions of that name. The link to their frames is a file with its target."""
    source = real_data / "ref-davis17"

    def link_data(name: str) -> Path:
        (tmp_path / "valid").mkdir(exist_ok=True)
        frames = source / "valid/JPEGImages"
        target = frames if frames.is_dir() else source / "valid" / frames.read_text().strip()
        for link, to in (("JPEGImages", target), ("Annotations", source / "valid/Annotations")):
            (tmp_path / "valid" / link).symlink_to(to, target_is_directory=True)
        (tmp_path / "meta_expressions/valid").mkdir(parents=True)
        text = (source / "meta_expressions/valid" / name).read_text()
        (tmp_path / "meta_expressions/valid/meta_expressions.json").write_text(text)
        return tmp_path

    return link_data


def test_real_videos(real_root: Callable[[str], Path]) -> None:
    data = RefDavis17(real_root("meta_expressions.json"), "valid")
    assert data.annotators == 1
    videos = data.video_ids()
    assert len(videos) == 10 and sum(len(data.expressions(v)) for v in videos) == 16
    assert data.expressions("blackswan")[0].text == "a black feathered swan"
    frames = data.video("soapbox")
    assert (len(frames), frames.size, frames.read(98).shape) == (99, (480, 854), (480, 854, 3))
    # Two of them: all ten take seconds.
    lists(data.root, lambda v: [v.pop(name) for name in list(v) if name not in ("car-shadow", "scooter-black")])
    assert list(RefDavis17(data.root, "valid").check()) == []


def test_real_annotators_and_masks(real_root: Callable[[str], Path], real_data: Path) -> None:
    """The masks equal those of the same videos in MeViS's layout, which other code wrote."""
    data = RefDavis17(real_root("meta_expressions_x4.json"), "valid")
    assert data.annotators == 4
    videos = data.video_ids()
    assert sum(len(data.expressions(v)) for v in videos) == 64
    assert [data.annotator("bmx-trees", e.expression_id) for e in data.expressions("bmx-trees")] == [0, 1, 2, 3] * 2
    assert not data.void("car-shadow").area().any()
    other = open_dataset("mevis", real_data / "mevis-davis", "valid_u")
    for video in ("car-shadow", "scooter-black"):
        truth, expected = data.ground_truth(video), other.ground_truth(video)
        assert truth is not None and expected is not None
        assert truth.object_ids == tuple(f"{video}-{n + 1}" for n in range(len(truth.object_ids)))
        assert truth.annotated.all()
        assert [truth.masks.select([k]) for k in range(len(truth.object_ids))] == [
            expected.masks.select([k]) for k in range(len(truth.object_ids))
        ]


def test_a_fault_of_every_video_is_one_line(root: Path) -> None:
    shutil.rmtree(root / "valid/JPEGImages")
    (root / "valid/JPEGImages").write_text("../elsewhere")
    faults = list(RefDavis17(root, "valid").check())
    assert len(RefDavis17(root, "valid").video_ids()) > 1
    assert len([line for line in faults if "expected a folder of videos, got a file" in line]) == 1
