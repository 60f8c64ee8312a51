"""Ref-DAVIS17 from its published parts, in the layout that `ref_davis17` reads (ReferFormer's convert_davis_to_ytvos.py).

DAVIS-2017-Unsupervised-trainval-480p holds `JPEGImages/480p/<video>/<frame>.jpg`, `Annotations_unsupervised/480p/<video>/
<frame>.png` and `ImageSets/2017/{train,val}.txt`, all below a folder DAVIS; `davis_semantics.json` beside them is optional.
Four text files hold a line `<video> <object> "<sentence>"` per object, one file for each annotator: two persons, for the
first frame and for the whole video. Each of the two sources is a folder or the published zip.

As there: three names of videos are corrected, objects are in the order of their numbers as text, and the first and the last
character of a sentence are dropped. Unlike there: files are copied and not moved, an object that lacks a sentence is refused
where `zip()` would drop every object from there on, and meta.json lists the objects that the annotations show, more than
have sentences.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from rvos_cache.datasets.palette import MODES, numbers_in
from rvos_cache.datasets.palette_split import ANNOTATIONS, EXPRESSIONS, FRAMES, LISTS, OBJECTS, object_number
from rvos_cache.datasets.ref_davis17 import VOID
from rvos_cache.errors import InputError
from rvos_cache.types import Expression, check_id

TEXTS = (
    ("Davis17_annot1.txt", "utf-8-sig"),
    ("Davis17_annot1_full_video.txt", "utf-8-sig"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
"""The file of each annotator, in their order, and its encoding."""
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
"""Video as the text files spell it -> as DAVIS does."""
SPLITS = {"train": "train", "valid": "val"}
"""Split here -> its list in DAVIS."""
IMAGES, MASKS, SETS, SEMANTICS = "JPEGImages/480p", "Annotations_unsupervised/480p", "ImageSets/2017", "davis_semantics.json"


@dataclass(frozen=True)
class Sentence:
    """One line of a text file. place: file and line, for errors."""

    text: str
    place: str


def convert_ref_davis(
    davis: Path, text: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, tuple[int, int, int]]:
    """Write train and valid under `out`; returns split -> videos, frames and expressions.

    davis, text: the folder or the zip of each source; progress(done, videos) is called after each video. `out` appears by one
    rename, so one that is there is whole. Raises InputError: `out` is there and not empty; a file is missing or damaged; an
    object has no sentence of one of the annotators, or no picture shows it; an entry of a zip leaves its folder.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is there already and is not an empty folder; remove it or choose another --out")
    with ExitStack() as stack:
        source = _opened(Path(davis), f"{SETS}/train.txt", stack)
        texts = _opened(Path(text), TEXTS[0][0], stack)
        splits = _splits(source)
        sentences = [_sentences(texts, *file) for file in TEXTS]
        _refuse_missing(sentences, splits, texts)
        aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
        try:
            counts = _write(source, splits, sentences, aside, progress)
            os.replace(aside, out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return counts


class Source(Protocol):
    """A folder or a zip, read by names relative to the folder that holds the parts."""

    def place(self, name: str) -> str:
        """Where a file lies, for errors."""

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        """Stem -> name of each file with this suffix in a folder, by stem; none where the folder is absent."""

    def has(self, name: str) -> bool:
        """Whether the file is there."""

    def read(self, name: str) -> bytes:
        """Raises InputError: it is missing or damaged."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str) -> str:
        return str(self.root / name)

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        here = self.root / folder
        names = [p.name for p in here.iterdir() if p.is_file()] if here.is_dir() else []
        return _by_stem(folder, names, suffix)

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            why = f"cannot be read ({error.strerror}); unpack the archive again"
            raise InputError(f"{self.place(name)}: {why}") from error


class _Archive:
    """Entries are read by name and never unpacked to where they say; those that would leave the folder are refused anyway."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file, self.base = path, file, ""
        self.held: dict[str, list[str]] = {}
        for entry in file.infolist():
            parts = entry.filename.split("/")
            outside = entry.filename.startswith("/") or ".." in parts or re.search(r"[\\\x00]|^[A-Za-z]:", entry.filename)
            if outside or stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(f"{path}: its entry {entry.filename!r} leaves the folder; download the archive again")
            if not entry.is_dir():
                self.held.setdefault("/".join(parts[:-1]), []).append(parts[-1])

    def place(self, name: str) -> str:
        return f"{self.path}, {self.base}{name}"

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        return _by_stem(folder, self.held.get(self.base + folder, []), suffix)

    def has(self, name: str) -> bool:
        folder, _, last = (self.base + name).rpartition("/")
        return last in self.held.get(folder, ())

    def read(self, name: str) -> bytes:
        try:
            return self.file.read(self.base + name)
        except KeyError as error:
            raise InputError(f"{self.place(name)}: is missing; download the archive again") from error
        # RuntimeError: locked with a password; NotImplementedError: a compression that Python lacks.
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.place(name)}: cannot be unpacked ({error}); download the archive again") from error


def _by_stem(folder: str, names: Sequence[str], suffix: str) -> dict[str, str]:
    # What a desktop hides beside the images ("._00000.jpg") is none of them.
    shown = sorted(n for n in names if n.lower().endswith(suffix) and not n.startswith("."))
    return {n[: -len(suffix)]: f"{folder}/{n}" for n in shown}


def _opened(path: Path, mark: str, stack: ExitStack) -> Source:
    """The source at `path`, the file `mark` being at its top or in one folder below. Raises InputError."""
    if path.is_dir():
        for root in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            if (root / mark).is_file():
                return _Folder(root)
    elif zipfile.is_zipfile(path):
        try:
            archive = _Archive(path, stack.enter_context(zipfile.ZipFile(path)))
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: cannot be opened ({error}); download the archive again") from error
        for base in ("", *sorted({f"{folder.partition('/')[0]}/" for folder in archive.held if folder})):
            archive.base = base
            if archive.has(mark):
                return archive
    else:
        came = "a file that is no zip" if path.exists() else "nothing"
        raise InputError(f"{path}: wanted a folder or a zip, came {came}; give what was downloaded")
    raise InputError(f"{path}: has no {mark}, at its top or one folder below; give the folder or the zip that holds it")


def _lines(source: Source, name: str, encoding: str) -> list[str]:
    try:
        return io.StringIO(source.read(name).decode(encoding), newline=None).read().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source.place(name)}: not {encoding} text ({error.reason}); copy the file again") from error


def _splits(source: Source) -> dict[str, list[str]]:
    """Split -> its videos in the order of DAVIS's list. Raises InputError: none, one twice, a bad id."""
    found: dict[str, list[str]] = {}
    for split, listed in SPLITS.items():
        name = f"{SETS}/{listed}.txt"
        videos = [line.strip() for line in _lines(source, name, "utf-8-sig") if line.strip()]
        if not videos:
            raise InputError(f"{source.place(name)}: lists no video; copy the file again")
        for i, video in enumerate(videos):
            check_id(video, f"{source.place(name)}, video")
            if video in videos[:i] or any(video in others for others in found.values()):
                raise InputError(f"{source.place(name)}: video {video} is listed twice; copy both lists again")
        found[split] = videos
    return found


def _sentences(source: Source, name: str, encoding: str) -> dict[str, dict[str, Sentence]]:
    """Video -> object -> its sentence in one text file. Raises InputError: a line that is none, an object twice."""
    found: dict[str, dict[str, Sentence]] = {}
    for number, line in enumerate(_lines(source, name, encoding), 1):
        place, words = f"{source.place(name)}, line {number}", line.split()
        if not words:
            continue
        quoted = " ".join(words[2:])
        if len(quoted) < 3:
            raise InputError(f'{place}: wanted <video> <object> "<sentence>", came {line.strip()!r:.60}; copy the file again')
        if quoted[0].isalnum() or quoted[-1].isalnum():
            warnings.warn(f"{place}: the sentence is not in quotes; its first and last character are dropped", stacklevel=2)
        video, key = RENAMED.get(words[0], words[0]), str(object_number(words[1], place))
        if key in found.setdefault(video, {}):
            first = found[video][key].place
            raise InputError(f"{place}: object {key} of video {video} has a sentence already, {first}; remove one")
        try:
            found[video][key] = Sentence(Expression(video, key, quoted[1:-1], None).text, place)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return found


def _refuse_missing(
    sentences: Sequence[Mapping[str, Mapping[str, Sentence]]], splits: Mapping[str, Sequence[str]], source: Source
) -> None:
    """Raises InputError where an object of a video has a sentence in one file and none in another, or a video has none."""
    known = {video for videos in splits.values() for video in videos}
    # A name that no list has is most likely the missing video, spelt otherwise.
    others = sorted({video for file in sentences for video in file} - known)
    hint = f"; no list has its {', '.join(others[:3])}" if others else ""
    for video in sorted(known):
        objects = sorted({key for file in sentences for key in file.get(video, ())})
        for key in objects or ["1"]:
            for file, (name, _) in zip(sentences, TEXTS):
                if key not in file.get(video, ()):
                    lacks = f"lacks the sentence of object {key} of video {video}"
                    raise InputError(f"{source.place(name)}: {lacks}{hint}; add the line or copy the file again")


def _write(
    source: Source,
    splits: Mapping[str, Sequence[str]],
    sentences: Sequence[Mapping[str, Mapping[str, Sentence]]],
    root: Path,
    progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[int, int, int]]:
    semantics = _semantics(source)
    total, done = sum(map(len, splits.values())), 0
    counts: dict[str, tuple[int, int, int]] = {}
    for split, videos in splits.items():
        listed, objects, frames = {}, {}, 0
        for video in videos:
            names, shown = _copy(source, video, root / split)
            said = _expressions(video, sentences)
            for key, entry in said.items():
                if int(entry["obj_id"]) not in shown:
                    place = sentences[int(key) % len(TEXTS)][video][entry["obj_id"]].place
                    never = f"no picture of {source.place(f'{MASKS}/{video}')} shows object {entry['obj_id']}"
                    raise InputError(f"{place}: {never}; copy both again")
            listed[video] = {"expressions": said, "frames": names}
            named = semantics.get(video, {})
            objects[video] = {"objects": {str(n): {"category": named[str(n)]} if str(n) in named else {} for n in sorted(shown)}}
            frames += len(names)
            done += 1
            if progress is not None:
                progress(done, total)
        _write_json(root / split / OBJECTS, objects)
        _write_json(root / LISTS / split / EXPRESSIONS, listed)
        counts[split] = (len(videos), frames, sum(len(entry["expressions"]) for entry in listed.values()))
    return counts


def _expressions(video: str, sentences: Sequence[Mapping[str, Mapping[str, Sentence]]]) -> dict[str, dict[str, str]]:
    """Expression 4 * i + a: annotator a's of the i-th object, the objects in the order of their numbers as text."""
    said = [(file[video][key].text, key) for key in sorted(sentences[0][video]) for file in sentences]
    return {str(i): {"exp": text, "obj_id": key} for i, (text, key) in enumerate(said)}


def _copy(source: Source, video: str, root: Path) -> tuple[list[str], set[int]]:
    """Copy the frames and annotations of a video; returns the frames' stems and the objects that are shown.

    Raises InputError: a frame without its annotation or the other way round, a damaged one, another size.
    """
    frames, masks = source.files(f"{IMAGES}/{video}", ".jpg"), source.files(f"{MASKS}/{video}", ".png")
    if not frames:
        raise InputError(f"{source.place(f'{IMAGES}/{video}')}: has no frames (.jpg); unpack or download the archive again")
    for lost, kind, folder in ((frames.keys() - masks.keys(), "frame", MASKS), (masks.keys() - frames.keys(), "mask", IMAGES)):
        if lost:
            whole = source.place(f"{folder}/{video}")
            raise InputError(f"{whole}: has nothing of {kind} {min(lost)}; unpack or download the archive again")
    for target in (root / FRAMES / video, root / ANNOTATIONS / video):
        target.mkdir(parents=True)
    shown, size = set[int](), None
    for stem, name in frames.items():
        check_id(stem, f"{source.place(name)}, frame")
        frame, mask = source.read(name), source.read(masks[stem])
        here, held = _objects(mask, source.place(masks[stem]))
        there = _size(frame, source.place(name))
        size = size or there
        for found, file in ((there, name), (here, masks[stem])):
            if found != size:
                wanted = f"wanted {size} as the video's first frame, came {found} (height, width)"
                raise InputError(f"{source.place(file)}: {wanted}; copy it again")
        shown |= held
        (root / FRAMES / video / f"{stem}.jpg").write_bytes(frame)
        (root / ANNOTATIONS / video / f"{stem}.png").write_bytes(mask)
    return list(frames), shown - {VOID}


def _size(raw: bytes, place: str) -> tuple[int, int]:
    """(H, W) from the header of an image; `rvos-cache check` decodes the whole. Raises InputError."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return image.height, image.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{place}: not an image ({_why(error)}); unpack or download the archive again") from error


def _objects(raw: bytes, place: str) -> tuple[tuple[int, int], set[int]]:
    """(H, W) and the values of a palette PNG. Raises InputError."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.mode not in MODES:
                raise InputError(f"{place}: wanted a palette PNG of object numbers, found {image.mode}; copy it again")
            return (image.height, image.width), numbers_in(np.asarray(image).astype(np.uint8))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{place}: not a whole PNG ({_why(error)}); unpack or download the archive again") from error


def _why(error: Exception) -> str:
    # Pillow's own words would name the bytes in memory.
    return "of no format that is known" if isinstance(error, UnidentifiedImageError) else str(error)


def _semantics(source: Source) -> dict[str, dict[str, str]]:
    """Video -> object -> category, where DAVIS's file of them is there. Raises InputError: it is damaged."""
    if not source.has(SEMANTICS):
        return {}
    try:
        held = json.loads(source.read(SEMANTICS))
        return {str(v): {str(n): str(c) for n, c in objects.items()} for v, objects in held.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{source.place(SEMANTICS)}: not DAVIS's JSON of categories ({error}); copy the file again") from error


def _write_json(path: Path, videos: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}), "utf-8")
