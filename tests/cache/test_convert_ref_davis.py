"""Ref-DAVIS17 from DAVIS's archive and the four text files: the converted dataset is read, and faults are errors."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from youtube_files import SIZE, cut, numbers, write_png

from rvos_cache.cli import cli, run_command
from rvos_cache.datasets.convert_ref_davis import convert_ref_davis
from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError

NAMES = ("00000", "00001", "00002")
VIDEOS = {"classic-car": 3, "dogs-scale": 1, "bear": 2}
"""Video -> number of objects; the last one is the only one in val."""
FILES = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")


def text_of(annotator: int) -> str:
    """Lines as published: the videos misspelt, objects in any order, any spaces, accents in the file's own encoding."""
    spelt = {"classic-car": "clasic-car", "dogs-scale": "dog-scale"}
    lines = []
    for video, objects in VIDEOS.items():
        for number in (3, 1, 2)[:objects] if objects == 3 else range(1, objects + 1):
            lines.append(f'{spelt.get(video, video)}  {number}\t"object  {number} of {video}, café, by {annotator}" ')
    return "\r\n".join(lines) + "\n"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """davis and text, as they are unpacked."""
    base = tmp_path / "davis/DAVIS"
    for video, objects in VIDEOS.items():
        for t, name in enumerate(NAMES):
            frame = base / "JPEGImages/480p" / video / f"{name}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*SIZE, 3), 10 * t + 20, np.uint8)).save(frame)
            pixels = numbers(objects + (video == "bear"), t)
            pixels[:, -1] = 255
            write_png(base / "Annotations_unsupervised/480p" / video / f"{name}.png", pixels)
    (base / "ImageSets/2017").mkdir(parents=True)
    (base / "ImageSets/2017/train.txt").write_text("classic-car\ndogs-scale\n")
    (base / "ImageSets/2017/val.txt").write_text("bear\n")
    (tmp_path / "text/davis_text_annotations").mkdir(parents=True)
    for a, name in enumerate(FILES):
        raw = text_of(a).encode("utf-8" if a < 2 else "latin-1")
        (tmp_path / "text/davis_text_annotations" / f"Davis17_{name}.txt").write_bytes(raw)
    return tmp_path


def converted(parts: Path) -> Path:
    convert_ref_davis(parts / "davis", parts / "text", parts / "out")
    return parts / "out"


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def leftovers(parts: Path) -> list[str]:
    """Return the names of what is next to the sources."""
    return sorted(p.name for p in parts.iterdir() if p.name not in ("davis", "text", "davis.zip", "text.zip"))


def test_the_converted_folder_is_read_without_a_fault(parts: Path) -> None:
    before = sorted(p for p in parts.rglob("*") if p.is_file())
    counts = convert_ref_davis(parts / "davis/DAVIS", parts / "text", parts / "out")
    assert counts == {"train": (2, 6, 16), "valid": (1, 3, 8)}
    assert all(p.exists() for p in before), "copied, not moved"
    assert RefDavis17.splits(parts / "out") == ["train", "valid"]
    for split, videos in (("train", ("classic-car", "dogs-scale")), ("valid", ("bear",))):
        data = RefDavis17(parts / "out", split)
        assert data.video_ids() == videos and data.annotators == 4
        assert list(data.check()) == []
        for video in videos:
            assert data.video(video).frame_names == NAMES
            for expression in data.expressions(video):
                (target,) = expression.targets or ()
                annotator = data.annotator(video, expression.expression_id)
                assert expression.text == f"object {target.removeprefix(video + '-')} of {video}, café, by {annotator}"
    truth, pixels = RefDavis17(parts / "out", "valid").ground_truth("bear"), numbers(3, 1)
    assert truth is not None and truth.object_ids == ("bear-1", "bear-2")
    assert np.array_equal(truth.masks.decode(1, 1), pixels == 2)


def test_zips_and_folders_give_the_same_bytes(parts: Path) -> None:
    converted(parts)
    convert_ref_davis(zipped(parts / "davis"), zipped(parts / "text"), parts / "zipped")
    files = sorted(p.relative_to(parts / "out") for p in (parts / "out").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(parts / "zipped") for p in (parts / "zipped").rglob("*") if p.is_file())
    assert len(files) == 2 * 9 + 4
    assert all((parts / "out" / p).read_bytes() == (parts / "zipped" / p).read_bytes() for p in files)


def test_objects_are_in_the_order_of_their_numbers_as_text(parts: Path) -> None:
    """ReferFormer sorts "10" before "2"."""
    texts = parts / "text/davis_text_annotations"
    for path in texts.iterdir():
        raw = path.read_bytes()
        path.write_bytes(
            raw.replace(b"bear  2", b"bear  10").replace(b"object  2 of bear", b"object  10 of bear") + b'bear 2 "x y"'
        )
    for t, name in enumerate(NAMES):
        pixels = numbers(3, t)
        write_png(parts / "davis/DAVIS/Annotations_unsupervised/480p/bear" / f"{name}.png", np.where(pixels == 3, 10, pixels))
    expressions = RefDavis17(converted(parts), "valid").expressions("bear")
    assert [e.targets for e in expressions][::4] == [("bear-1",), ("bear-10",), ("bear-2",)]


def test_categories_are_copied_if_they_exist(parts: Path) -> None:
    (parts / "davis/DAVIS/davis_semantics.json").write_text(json.dumps({"bear": {"1": "bear", "2": "cub"}}))
    videos = json.loads((converted(parts) / "valid/meta.json").read_text())["videos"]
    assert videos == {"bear": {"objects": {"1": {"category": "bear"}, "2": {"category": "cub"}, "3": {}}}}


def edit(parts: Path, file: int, old: bytes, new: bytes) -> None:
    path = parts / f"text/davis_text_annotations/Davis17_{FILES[file]}.txt"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))


LINE = '"object  2 of classic-car, café, by 2" \r\n'.encode("latin-1")
MASK, FRAME = "davis/DAVIS/Annotations_unsupervised/480p/bear/00001.png", "davis/DAVIS/JPEGImages/480p/bear/00001.jpg"
TRAIN, VAL = "davis/DAVIS/ImageSets/2017/train.txt", "davis/DAVIS/ImageSets/2017/val.txt"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a sentence is missing": (
        lambda p: edit(p, 2, b"clasic-car  2\t" + LINE, b""),
        "Davis17_annot2.txt: lacks the sentence of object 2 of video classic-car",
    ),
    "all sentences of a video are missing": (
        lambda p: [edit(p, a, b"dog-scale", b"dogs-scaled") for a in range(4)],
        "object 1 of video dogs-scale; no list has its dogs-scaled",
    ),
    "an object twice": (lambda p: edit(p, 0, b"clasic-car  2", b"classic-car 1"), "line 3: object 1 of video classic-car has a"),
    "an object that is no number": (
        lambda p: edit(p, 0, b"clasic-car  2", b"clasic-car two"),
        "3: expected an object number",
    ),
    "a line without a sentence": (lambda p: edit(p, 0, b"bear  1", b"bear\nbear  1"), "line 5: expected <video> <object>"),
    "an empty sentence": (lambda p: edit(p, 3, LINE[:-3].replace(b"by 2", b"by 3"), b'" "'), "line 3: video classic-car"),
    "other bytes than utf-8": (lambda p: edit(p, 0, "é".encode(), b"\xe9"), "Davis17_annot1.txt, line 1: not UTF-8"),
    "a text file is missing": (
        lambda p: (p / "text/davis_text_annotations/Davis17_annot2_full_video.txt").unlink(),
        "Davis17_annot2_full_video.txt: cannot be read",
    ),
    "no text at all": (lambda p: shutil.rmtree(p / "text/davis_text_annotations"), "text: has no Davis17_annot1.txt"),
    "no folder": (lambda p: shutil.rmtree(p / "davis"), "davis: expected a folder or a zip file, got nothing"),
    "no list": (lambda p: (p / TRAIN).unlink(), "davis: has no ImageSets/2017/train.txt"),
    "no list of val": (lambda p: (p / VAL).unlink(), "val.txt: cannot be read"),
    "an empty list": (lambda p: (p / VAL).write_text("\n"), "val.txt: lists no video"),
    "a video in both lists": (lambda p: (p / VAL).write_text("bear\ndogs-scale\n"), "val.txt: video dogs-scale is listed twice"),
    "a video that leaves the folder": (lambda p: (p / VAL).write_text("../bear\n"), "val.txt, video: the id '../bear'"),
    "a video without frames": (lambda p: shutil.rmtree(p / FRAME.rpartition("/")[0]), "480p/bear: has no frames"),
    "a frame is missing": (lambda p: (p / FRAME).unlink(), "480p/bear: has no file for mask 00001"),
    "an annotation is missing": (lambda p: (p / MASK).unlink(), "480p/bear: has no file for frame 00001"),
    "an annotation cut short": (lambda p: cut(p / MASK), "bear/00001.png: not a whole PNG"),
    "an annotation in colours": (lambda p: Image.new("RGB", SIZE[::-1]).save(p / MASK), "00001.png: expected a palette PNG"),
    "an annotation of another size": (
        lambda p: write_png(p / MASK, numbers(3, 0)[:5]),
        "00001.png: expected (8, 12) as the video's first frame, got (5, 12)",
    ),
    "a frame that is no image": (lambda p: (p / FRAME).write_bytes(b"x"), "bear/00001.jpg: not an image"),
    "an object in no annotation": (
        lambda p: [write_png((p / MASK).with_name(f"{n}.png"), numbers(1, 0)) for n in NAMES],
        "has object 2",
    ),
    "categories that are none": (lambda p: (p / "davis/DAVIS/davis_semantics.json").write_text("[]"), "davis_semantics.json"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named_and_nothing_is_left(parts: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(parts)
    with pytest.raises(InputError) as error:
        converted(parts)
    assert named in str(error.value)
    assert "\n" not in str(error.value) and str(parts) in str(error.value)
    assert leftovers(parts) == []


def test_an_existing_folder_is_an_error(parts: Path) -> None:
    (parts / "out").mkdir()
    converted(parts)
    before = sorted((parts / "out").rglob("*"))
    for _ in range(2):
        with pytest.raises(InputError, match="out: exists"):
            converted(parts)
    assert sorted((parts / "out").rglob("*")) == before and leftovers(parts) == ["out"]


@pytest.mark.parametrize("name", ["../evil", "DAVIS/../../evil", "/evil", "C:/evil", "a\\evil"])
def test_entries_that_leave_the_folder(parts: Path, name: str) -> None:
    path = zipped(parts / "davis")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match=r"davis\.zip: its entry .* has a path outside of the folder"):
        convert_ref_davis(path, parts / "text", parts / "out")
    assert leftovers(parts) == []


def test_a_link_in_a_zip(parts: Path) -> None:
    path, entry = zipped(parts / "text"), zipfile.ZipInfo("away")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="its entry 'away' has a path outside of the folder"):
        convert_ref_davis(parts / "davis", path, parts / "out")


def test_a_damaged_zip(parts: Path) -> None:
    path = zipped(parts / "davis")
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("DAVIS/JPEGImages/480p/bear/00001.jpg").header_offset
    raw[at + 100 : at + 140] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"davis\.zip, DAVIS/JPEGImages/480p/bear/00001\.jpg: cannot be unpacked"):
        convert_ref_davis(path, parts / "text", parts / "out")
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"davis\.zip: expected a folder or a zip file, got a file that is no zip"):
        convert_ref_davis(path, parts / "text", parts / "out")
    assert leftovers(parts) == []


def test_a_sentence_without_quotes_is_a_warning(parts: Path) -> None:
    """As in ReferFormer, its first and last character are dropped."""
    edit(parts, 0, b'"object  1 of bear', b"object  1 of bear")
    with pytest.warns(UserWarning, match=r"annot1\.txt, line 5: the sentence is not in quotes"):
        expressions = RefDavis17(converted(parts), "valid").expressions("bear")
    assert expressions[0].text.startswith("bject 1 of bear")


def test_the_command(parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["rvos-cache", "convert", "ref-davis", "--davis", str(parts / "davis"), "--text", str(parts / "text")]
    monkeypatch.setattr("sys.argv", [*argv, "--out", str(parts / "out")])
    for status, message in ((0, "valid: 1 video, 3 frames, 8 expressions"), (1, "error: ")):
        with pytest.raises(SystemExit) as ended:
            run_command(cli)
        assert ended.value.code == status
        output = capsys.readouterr()
        assert message in (output.err if status else output.out)


def test_real_videos(real_data: Path, tmp_path: Path) -> None:
    """Two real videos in DAVIS's layout: the converted expressions and masks equal the originals."""
    source, base = real_data / "ref-davis17/valid", tmp_path / "davis"
    frames = source / "JPEGImages"
    # The link to the frames may be a file with the link's target.
    frames = frames if frames.is_dir() else source / frames.read_text().strip()
    listed = json.loads((real_data / "ref-davis17/meta_expressions/valid/meta_expressions_x4.json").read_text())["videos"]
    splits = {split: {video: listed[video]} for split, video in (("train", "car-shadow"), ("valid", "scooter-black"))}
    texts: list[list[str]] = [[], [], [], []]
    for split, videos in splits.items():
        for video, content in videos.items():
            for folder, parent in (("JPEGImages", frames), ("Annotations_unsupervised", source / "Annotations")):
                (base / folder / "480p").mkdir(parents=True, exist_ok=True)
                (base / folder / "480p" / video).symlink_to(parent / video, target_is_directory=True)
            (base / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
            (base / "ImageSets/2017" / f"{'val' if split == 'valid' else split}.txt").write_text(f"{video}\n")
            for key, entry in content["expressions"].items():
                texts[int(key) % 4].append(f'{video} {entry["obj_id"]} "{entry["exp"]}"\n')
    for name, lines in zip(FILES, texts):
        (tmp_path / f"Davis17_{name}.txt").write_text("".join(lines))
    convert_ref_davis(base, tmp_path, tmp_path / "out")
    for split, videos in splits.items():
        assert json.loads((tmp_path / f"out/meta_expressions/{split}/meta_expressions.json").read_text())["videos"] == videos
        assert list(RefDavis17(tmp_path / "out", split).check()) == []
        for video in videos:
            for name in listed[video]["frames"]:
                mask = tmp_path / "out" / split / "Annotations" / video / f"{name}.png"
                assert mask.read_bytes() == (source / "Annotations" / video / f"{name}.png").read_bytes()
