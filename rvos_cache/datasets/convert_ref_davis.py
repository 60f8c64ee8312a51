"""Ref-DAVIS17 from its published parts, in the layout that `ref_davis17` reads (ReferFormer's convert_davis_to_ytvos.py).

DAVIS-2017-Unsupervised-trainval-480p has `JPEGImages/480p/<video>/<frame>.jpg`, `Annotations_unsupervised/480p/<video>/
<frame>.png` and `ImageSets/2017/{train,val}.txt`, all in a folder DAVIS; `davis_semantics.json` next to them is optional.
Four text files have a line `<video> <object> "<sentence>"` per object, one file for each annotator: two persons, for the
first frame and for the whole video. Each of the two sources is a folder or the published zip file.

As in ReferFormer, three names of videos are corrected, objects are in the order of their numbers as text, and the first and the
last character of a sentence are dropped. Unlike there, files are copied and not moved, an object that lacks a sentence is an
error (ReferFormer's `zip()` drops every object from there on), and meta.json lists all objects that the annotations have, which
are more than have sentences.
"""

from __future__ import annotations

import io
import json
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from rvos_cache.datasets.palette import decode_palette, describe_image_error, numbers_in
from rvos_cache.datasets.palette_split import ANNOTATIONS, EXPRESSIONS, FRAMES, LISTS, OBJECTS, object_number
from rvos_cache.datasets.ref_davis17 import VOID
from rvos_cache.errors import InputError
from rvos_cache.media.images import IMAGE_ERRORS
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import tracked
from rvos_cache.system.text_files import decode_text, has_mark
from rvos_cache.types import Expression, check_id

TEXTS = (
    ("Davis17_annot1.txt", "utf-8"),
    ("Davis17_annot1_full_video.txt", "utf-8"),
    ("Davis17_annot2.txt", "latin-1"),
    ("Davis17_annot2_full_video.txt", "latin-1"),
)
"""The file of each annotator, in their order, and its encoding."""
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
"""Name of a video in the text files -> its name in DAVIS."""
SPLITS = {"train": "train", "valid": "val"}
"""Name of a split -> its name in DAVIS."""
IMAGES, MASKS, SETS, SEMANTICS = "JPEGImages/480p", "Annotations_unsupervised/480p", "ImageSets/2017", "davis_semantics.json"


@dataclass(frozen=True)
class Sentence:
    """One line of a text file. location: file and line, for error messages."""

    text: str
    location: str


def convert_ref_davis(davis: Path, text: Path, out: Path) -> dict[str, tuple[int, int, int]]:
    """Write train and valid under `out`; return split -> number of videos, frames and expressions.

    davis, text: the folder or the zip file of each source. `out` is renamed into place at the end, so it is complete if it
    exists. Raises InputError: if `out` exists and is not empty; a file is missing or damaged; an object has no sentence of one of
    the annotators, or is in no annotation; an entry of a zip file has a path outside of its folder.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; remove it or give another --out")
    with ExitStack() as stack:
        source = _open_source(Path(davis), f"{SETS}/train.txt", stack)
        texts = _open_source(Path(text), TEXTS[0][0], stack)
        splits = _read_splits(source)
        sentences = [_read_sentences(texts, *file) for file in TEXTS]
        _check_complete(sentences, splits, texts)
        with new_folder(out, durable=False) as folder:
            counts = _write(source, splits, sentences, folder)
    return counts


class Source(Protocol):
    """A folder or a zip file. The names of files are relative to the folder that has all parts."""

    def location(self, name: str) -> str:
        """Return the path of a file, for error messages."""

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        """Return stem -> name of each file with this suffix in a folder, sorted; empty if there is no such folder."""

    def has(self, name: str) -> bool:
        """Return whether the file exists."""

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises InputError: if it is missing or damaged."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def location(self, name: str) -> str:
        return str(self.root / name)

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        path = self.root / folder
        names = [p.name for p in path.iterdir() if p.is_file()] if path.is_dir() else []
        return _by_stem(folder, names, suffix)

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            problem = f"cannot be read ({error.strerror}); unpack the archive again"
            raise InputError(f"{self.location(name)}: {problem}") from error


class _Archive:
    """A zip file. Its entries are read by name and never unpacked; a path outside of the folder is an error all the same."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file, self.base = path, file, ""
        self.folders: dict[str, list[str]] = {}
        for entry in file.infolist():
            parts = entry.filename.split("/")
            outside = entry.filename.startswith("/") or ".." in parts or re.search(r"[\\\x00]|^[A-Za-z]:", entry.filename)
            if outside or stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(
                    f"{path}: its entry {entry.filename!r} has a path outside of the folder; download the archive again"
                )
            if not entry.is_dir():
                self.folders.setdefault("/".join(parts[:-1]), []).append(parts[-1])

    def location(self, name: str) -> str:
        return f"{self.path}, {self.base}{name}"

    def files(self, folder: str, suffix: str) -> dict[str, str]:
        return _by_stem(folder, self.folders.get(self.base + folder, []), suffix)

    def has(self, name: str) -> bool:
        folder, _, last = (self.base + name).rpartition("/")
        return last in self.folders.get(folder, ())

    def read(self, name: str) -> bytes:
        try:
            return self.file.read(self.base + name)
        except KeyError as error:
            raise InputError(f"{self.location(name)}: is missing; download the archive again") from error
        # RuntimeError: locked with a password; NotImplementedError: a compression that Python lacks.
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.location(name)}: cannot be unpacked ({error}); download the archive again") from error


def _by_stem(folder: str, names: Sequence[str], suffix: str) -> dict[str, str]:
    # Hidden files ("._00000.jpg"), which some desktops write next to the images, are skipped.
    visible = sorted(n for n in names if n.lower().endswith(suffix) and not n.startswith("."))
    return {n[: -len(suffix)]: f"{folder}/{n}" for n in visible}


def _open_source(path: Path, marker: str, stack: ExitStack) -> Source:
    """Open the source at `path`; its root is `path` or the folder in it that has the file `marker`. Raises InputError."""
    if path.is_dir():
        for root in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            if (root / marker).is_file():
                return _Folder(root)
    elif zipfile.is_zipfile(path):
        try:
            archive = _Archive(path, stack.enter_context(zipfile.ZipFile(path)))
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: cannot be opened ({error}); download the archive again") from error
        for base in ("", *sorted({f"{folder.partition('/')[0]}/" for folder in archive.folders if folder})):
            archive.base = base
            if archive.has(marker):
                return archive
    else:
        actual = "a file that is no zip" if path.exists() else "nothing"
        raise InputError(f"{path}: expected a folder or a zip file, got {actual}; give what was downloaded")
    raise InputError(f"{path}: has no {marker}, in its root or one folder below; give the folder or the zip file that has it")


def _lines(source: Source, name: str, encoding: str) -> list[str]:
    content = source.read(name)
    is_latin_1 = encoding == "latin-1" and not has_mark(content)
    text = content.decode("latin-1") if is_latin_1 else decode_text(content, source.location(name))
    return io.StringIO(text, newline=None).read().split("\n")


def _read_splits(source: Source) -> dict[str, list[str]]:
    """Return split -> its videos in the order of DAVIS's list. Raises InputError: if a list is empty, or lists a video twice."""
    splits: dict[str, list[str]] = {}
    for split, davis_name in SPLITS.items():
        name = f"{SETS}/{davis_name}.txt"
        videos = [line.strip() for line in _lines(source, name, "utf-8") if line.strip()]
        if not videos:
            raise InputError(f"{source.location(name)}: lists no video; copy the file again")
        for i, video in enumerate(videos):
            check_id(video, f"{source.location(name)}, video")
            if video in videos[:i] or any(video in others for others in splits.values()):
                raise InputError(f"{source.location(name)}: video {video} is listed twice; copy both lists again")
        splits[split] = videos
    return splits


def _read_sentences(source: Source, name: str, encoding: str) -> dict[str, dict[str, Sentence]]:
    """Return video -> object -> its sentence in one text file.

    Raises InputError: if a line cannot be read, or an object has two sentences.
    """
    sentences: dict[str, dict[str, Sentence]] = {}
    for number, line in enumerate(_lines(source, name, encoding), 1):
        location, words = f"{source.location(name)}, line {number}", line.split()
        if not words:
            continue
        quoted = " ".join(words[2:])
        if len(quoted) < 3:
            expected = 'expected <video> <object> "<sentence>"'
            raise InputError(f"{location}: {expected}, got {line.strip()!r:.60}; copy the file again")
        if quoted[0].isalnum() or quoted[-1].isalnum():
            problem = "the sentence is not in quotes; its first and last character are dropped"
            warnings.warn(f"{location}: {problem}", stacklevel=2)
        video, key = RENAMED.get(words[0], words[0]), str(object_number(words[1], location))
        if key in sentences.setdefault(video, {}):
            first = sentences[video][key].location
            raise InputError(f"{location}: object {key} of video {video} has a sentence already, {first}; remove one")
        try:
            sentences[video][key] = Sentence(Expression(video, key, quoted[1:-1], None).text, location)
        except InputError as error:
            raise InputError(f"{location}: {error}") from error
    return sentences


def _check_complete(
    sentences: Sequence[Mapping[str, Mapping[str, Sentence]]], splits: Mapping[str, Sequence[str]], source: Source
) -> None:
    """Raise InputError if an object of a video has a sentence in one file and none in another, or a video has none."""
    listed = {video for videos in splits.values() for video in videos}
    # A name that is in no list is most likely that of the missing video in another spelling.
    unlisted = sorted({video for file in sentences for video in file} - listed)
    hint = f"; no list has its {', '.join(unlisted[:3])}" if unlisted else ""
    for video in sorted(listed):
        objects = sorted({key for file in sentences for key in file.get(video, ())})
        for key in objects or ["1"]:
            for file, (name, _) in zip(sentences, TEXTS):
                if key not in file.get(video, ()):
                    problem = f"lacks the sentence of object {key} of video {video}"
                    raise InputError(f"{source.location(name)}: {problem}{hint}; add the line or copy the file again")


def _write(
    source: Source,
    splits: Mapping[str, Sequence[str]],
    sentences: Sequence[Mapping[str, Mapping[str, Sentence]]],
    root: Path,
) -> dict[str, tuple[int, int, int]]:
    categories = _read_categories(source)
    counts: dict[str, tuple[int, int, int]] = {}
    for split, videos in splits.items():
        entries, objects, frames = {}, {}, 0
        for video in tracked(videos, f"ref-davis {split}"):
            names, numbers = _copy(source, video, root / split)
            expressions = _expressions(video, sentences)
            for key, entry in expressions.items():
                if int(entry["obj_id"]) not in numbers:
                    location = sentences[int(key) % len(TEXTS)][video][entry["obj_id"]].location
                    problem = f"no annotation of {source.location(f'{MASKS}/{video}')} has object {entry['obj_id']}"
                    raise InputError(f"{location}: {problem}; copy both again")
            entries[video] = {"expressions": expressions, "frames": names}
            named = categories.get(video, {})
            objects[video] = {
                "objects": {str(n): {"category": named[str(n)]} if str(n) in named else {} for n in sorted(numbers)}
            }
            frames += len(names)
        _write_json(root / split / OBJECTS, objects)
        _write_json(root / LISTS / split / EXPRESSIONS, entries)
        counts[split] = (len(videos), frames, sum(len(entry["expressions"]) for entry in entries.values()))
    return counts


def _expressions(video: str, sentences: Sequence[Mapping[str, Mapping[str, Sentence]]]) -> dict[str, dict[str, str]]:
    """Return expression 4 * i + a: annotator a's sentence for the i-th object, objects in the order of their numbers as text."""
    pairs = [(file[video][key].text, key) for key in sorted(sentences[0][video]) for file in sentences]
    return {str(i): {"exp": text, "obj_id": key} for i, (text, key) in enumerate(pairs)}


def _copy(source: Source, video: str, root: Path) -> tuple[list[str], set[int]]:
    """Copy the frames and annotations of a video; return the frames' stems and the object numbers in the annotations.

    Raises InputError: if a frame has no annotation or an annotation no frame, one is damaged, or the sizes differ.
    """
    frames, masks = source.files(f"{IMAGES}/{video}", ".jpg"), source.files(f"{MASKS}/{video}", ".png")
    if not frames:
        raise InputError(f"{source.location(f'{IMAGES}/{video}')}: has no frames (.jpg); unpack or download the archive again")
    for extra, kind, folder in ((frames.keys() - masks.keys(), "frame", MASKS), (masks.keys() - frames.keys(), "mask", IMAGES)):
        if extra:
            location = source.location(f"{folder}/{video}")
            raise InputError(f"{location}: has no file for {kind} {min(extra)}; unpack or download the archive again")
    for target in (root / FRAMES / video, root / ANNOTATIONS / video):
        target.mkdir(parents=True)
    numbers, size = set[int](), None
    for stem, name in frames.items():
        check_id(stem, f"{source.location(name)}, frame")
        frame, mask = source.read(name), source.read(masks[stem])
        pixels = decode_palette(mask, source.location(masks[stem]), "unpack or download the archive again")
        frame_size = _image_size(frame, source.location(name))
        size = size or frame_size
        for actual, file in ((frame_size, name), (pixels.shape, masks[stem])):
            if actual != size:
                expected = f"expected {size} as the video's first frame, got {actual} (height, width)"
                raise InputError(f"{source.location(file)}: {expected}; copy it again")
        numbers |= numbers_in(pixels)
        (root / FRAMES / video / f"{stem}.jpg").write_bytes(frame)
        (root / ANNOTATIONS / video / f"{stem}.png").write_bytes(mask)
    return list(frames), numbers - {VOID}


def _image_size(data: bytes, location: str) -> tuple[int, int]:
    """Return (H, W) from the header of an image; `rvos-cache check` decodes all of it. Raises InputError: if it is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except IMAGE_ERRORS as error:
        problem = f"not an image ({describe_image_error(error)})"
        raise InputError(f"{location}: {problem}; unpack or download the archive again") from error


def _read_categories(source: Source) -> dict[str, dict[str, str]]:
    """Return video -> object -> category; empty if DAVIS's file of them is missing. Raises InputError: if it is damaged."""
    if not source.has(SEMANTICS):
        return {}
    try:
        content = json.loads(source.read(SEMANTICS))
        return {str(v): {str(n): str(c) for n, c in objects.items()} for v, objects in content.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(
            f"{source.location(SEMANTICS)}: not DAVIS's JSON of categories ({error}); copy the file again"
        ) from error


def _write_json(path: Path, videos: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}), "utf-8")
