"""Videos from files: a folder of frames, a film, or one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.films import VideoWriter, file_video
from rvos_cache.media.images import SUFFIXES, UNREAD, image_size, is_turned, read_image
from rvos_cache.types import FORBIDDEN, Video

__all__ = [
    "VideoWriter", "file_video", "folder_video", "frame_files", "image_size", "open_video", "order_fault", "read_image", "sort_frames",
    "warn_of_order", "warn_of_text_order",
]  # fmt: skip


def frame_files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> the images of that stem, in natural order of the stems ("2" before "10").

    Raises InputError if there is no such folder, or it has a picture of an ending that is not read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of frames; copy it from the dataset's archive")
    # Desktops put hidden files next to the images ("._00000.jpg").
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    unread = sorted(p.name for p in paths if p.suffix.lower() in UNREAD)
    if unread:
        raise InputError(f"{folder / unread[0]}: not a frame that is read ({', '.join(SUFFIXES)}); convert or remove it")
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(p for p in paths if p.suffix.lower() in SUFFIXES):
        by_stem.setdefault(path.stem, []).append(path)
    return {stem: by_stem[stem] for stem in sort_frames(by_stem)}


def sort_frames(names: Sequence[str] | dict[str, list[Path]]) -> list[str]:
    """Names of frames in natural order: by their texts and numbers in turn, "2" before "10"."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def order_fault(names: Sequence[str]) -> str | None:
    """Why the natural order of these names need not be that of the frames, naming two of them; None if it is their order.

    It is where names differ in their numbers alone, no two have the same numbers, and no number is a fraction of another length.
    """
    names = sort_frames(names)
    for before, after in zip(names, names[1:]):
        if re.sub(r"\d+", "#", before) != re.sub(r"\d+", "#", after):
            return f"{before!r} and {after!r} differ in more than a number"
        if _natural_key(before) == _natural_key(after):
            return f"{before!r} and {after!r} have the same number"
    fractions = [re.search(r"(?<!\d)\d+\.\d+$", name) for name in names]
    as_fractions = [float(match[0]) for match in fractions if match]
    if len(as_fractions) == len(names) and as_fractions != sorted(as_fractions):
        return f"{names[0]!r} to {names[-1]!r} may be fractions or pairs of numbers"
    return None


def warn_of_order(folder: Path, names: Sequence[str]) -> None:
    """Warn, once, if the order of the frames in a folder does not follow from their names."""
    fault = order_fault(names)
    if fault is not None:
        listed = ", ".join(names if len(names) < 6 else [*names[:3], "...", *names[-2:]])
        warn_once(f"{folder}: the frames are read in the order {listed}, but {fault}; number them if that is wrong")


def warn_of_text_order(location: Path, names: Sequence[str]) -> None:
    """Warn, once, if a file that lists masks without names may have them in another order than the frames `names`."""
    if list(names) != sorted(names):
        first = next(name for name, text in zip(names, sorted(names)) if name != text)
        warn_once(f"{location}: its masks are read in natural order of the frames; sorted as text, {first} would come later")


def _natural_key(stem: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", stem) if part]


def folder_video(folder: Path, video_id: str, frame_names: Sequence[str] | None = None, upright: bool = True) -> Video:
    """A folder of frames as a Video; frame_names: stems in order (default: all images in natural order).

    upright: turn frames as their EXIF tag says, as viewers do; False: as stored, with a warning if the first has such a tag.
    Raises InputError if the first frame is missing or no image, or if two files have the same stem; reading a frame raises it if
    the frame has another size than the first, or as `read_image` does.
    """
    files = frame_files(folder)
    names = list(files) if frame_names is None else list(frame_names)
    if not names:
        raise InputError(f"{folder}: no frames ({', '.join(SUFFIXES)}) in this folder; give a folder of frames or a film")
    paths = [files.get(name, [folder / (name + SUFFIXES[0])]) for name in names]
    duplicates = next((candidates for candidates in paths if len(candidates) > 1), None)
    if duplicates is not None:
        names_found = " and ".join(p.name for p in duplicates)
        raise InputError(f"{folder}: frame {duplicates[0].stem} is there twice, as {names_found}; keep one")
    if frame_names is None:
        warn_of_order(folder, names)
    return _pictures([candidates[0] for candidates in paths], video_id, tuple(names), upright)


def _pictures(paths: Sequence[Path], video_id: str, names: tuple[str, ...], upright: bool) -> Video:
    """Picture files as the frames of a Video. Raises InputError."""
    size = image_size(paths[0], upright)
    if not upright and is_turned(paths[0]):
        warn_once(f"{paths[0].parent}: its frames have an EXIF tag that turns them; they are read unturned, as the masks are")

    def source(t: int) -> NDArray[np.uint8]:
        frame = read_image(paths[t], upright)
        if frame.shape[:2] != size:
            raise InputError(
                f"{paths[t]}: {frame.shape[:2]} pixels (height, width), the first frame {paths[0].name} has {size}; all frames of "
                "a video must have one size"
            )
        return frame

    return Video(video_id, names, size, source, files=tuple(paths))


def open_video(path: Path) -> Video:
    """A film, a folder of frames or a picture, all upright; the id is the name of the folder, or of the file without its suffix.

    Raises InputError.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; give a film or a folder of frames")
    resolved = path.resolve()
    name = resolved.name if path.is_dir() else resolved.stem
    # The id names folders of masks: characters that other file systems or zips refuse are replaced.
    video_id = re.sub(FORBIDDEN, "_", name.lstrip("."))[:35] or "video"
    if path.is_dir():
        return folder_video(path, video_id)
    if path.suffix.lower() in SUFFIXES:
        return _pictures([path], video_id, ("00000",), upright=True)
    return file_video(path, video_id)
