"""Frames and masks as files: JPEG folders and mp4 in, mask PNGs and mp4 out."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.types import FORBIDDEN, Video

SUFFIXES = (".jpg", ".jpeg", ".png")
BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for a damaged image; a damaged header may claim more pixels than it takes."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises InputError when the file is missing, no image, or cut short.

    Pillow and not OpenCV: OpenCV fills what is missing of a truncated JPEG with grey and says nothing.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except BROKEN as error:
        raise InputError(f"{path}: not a whole image ({error}); copy it again from the dataset's archive") from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header. Raises InputError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except BROKEN as error:
        raise InputError(f"{path}: not an image ({error}); copy it again from the dataset's archive") from error


def frame_files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> the images of that stem, in natural order of the stems ("2" before "10"). Raises InputError: no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of frames; copy it from the dataset's archive")
    found: dict[str, list[Path]] = {}
    # What a desktop hides beside the images ("._00000.jpg") is none of them.
    shown = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    for path in sorted(shown, key=lambda p: (_natural(p.stem), p.name)):
        found.setdefault(path.stem, []).append(path)
    return found


def _natural(stem: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", stem) if part]


def folder_video(folder: Path, video_id: str, frame_names: Sequence[str] | None = None) -> Video:
    """A folder of frames as a Video; frame_names: stems in order (default: all images in natural order).

    Raises InputError when the first frame is missing or no image, or when two files could be the same frame.
    """
    files = frame_files(folder)
    names = list(files) if frame_names is None else list(frame_names)
    if not names:
        raise InputError(f"{folder}: no frames ({', '.join(SUFFIXES)}) in this folder; give a folder of frames or an mp4")
    paths = [files.get(name, [folder / (name + SUFFIXES[0])]) for name in names]
    twice = next((held for held in paths if len(held) > 1), None)
    if twice is not None:
        raise InputError(f"{folder}: frame {twice[0].stem} stands twice, as {' and '.join(p.name for p in twice)}; keep one")
    return Video(video_id, tuple(names), image_size(paths[0][0]), lambda t: read_image(paths[t][0]))


class _Film:
    """The frames of a video file, decoded in order as they are asked for; the latest of them stay in memory.

    A frame behind the ones that are held is decoded again from the start: codecs seek to nearby frames, not to exact ones.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.kept, self.bytes = path, kept, 0
        self.held: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self.coming: Iterator[NDArray[np.uint8]] = self._decode()
        self.at = 0
        while self._next() is not None:
            pass
        self.count = self.at
        if not self.count:
            raise InputError(f"{path}: holds no frames; give an mp4 or a folder of frames")

    def read(self, t: int) -> NDArray[np.uint8]:
        """Frame t, (H, W, 3) uint8 RGB. Raises InputError."""
        if t in self.held:
            return self.held[t]
        if t < self.at:
            self.coming, self.at = self._decode(), 0
        while self.at <= t:
            if self._next() is None:
                raise InputError(f"{self.path}: ends at frame {self.at}, it had {self.count}; leave it alone while it is read")
        return self.held[t]

    def _next(self) -> NDArray[np.uint8] | None:
        frame = next(self.coming, None)
        if frame is None:
            return None
        if self.at not in self.held:
            self.held[self.at] = frame
            self.bytes += frame.nbytes
        self.held.move_to_end(self.at)
        while self.bytes > self.kept and len(self.held) > 1:
            self.bytes -= self.held.popitem(last=False)[1].nbytes
        self.at += 1
        return frame

    def _decode(self) -> Iterator[NDArray[np.uint8]]:
        import av

        try:
            # Absolute: FFmpeg takes what stands before a colon for a protocol.
            with av.open(str(self.path.absolute())) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: not found; give an mp4 or a folder of frames") from error
        except (av.FFmpegError, IndexError, OSError) as error:
            raise InputError(f"{self.path}: cannot be decoded as a video ({error}); give an mp4 or a folder of frames") from error


def file_video(path: Path, video_id: str, kept: int = 256 << 20) -> Video:
    """A video file as a Video; at most `kept` bytes of its frames stay in memory. Raises InputError: cannot be decoded."""
    film = _Film(path, kept)
    return Video(video_id, tuple(f"{t:05d}" for t in range(film.count)), film.read(0).shape[:2], film.read)


def open_video(path: Path) -> Video:
    """An mp4 or a folder of frames; the id is the name of the folder, or of the file without its suffix. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: not found; give an mp4 or a folder of frames")
    whole = path.resolve()
    name = whole.name if path.is_dir() else whole.stem
    # The id names folders of masks: what a file system or a zip elsewhere refuses is replaced.
    video_id = re.sub(FORBIDDEN, "_", name.lstrip("."))[:35] or "video"
    return folder_video(path, video_id) if path.is_dir() else file_video(path, video_id)


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as the bytes of an 8-bit PNG of 0 and 255."""
    held = io.BytesIO()
    # Runs alone: a mask takes less than half of the bytes that the usual search for repetitions leaves, in the same time.
    Image.fromarray(mask.astype(np.uint8) * 255).save(held, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return held.getvalue()


def write_mask_png(path: Path, mask: NDArray[np.bool_]) -> None:
    """A mask (H, W) as an 8-bit PNG of 0 and 255, whole or not there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(mask_png(mask))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_mask_png(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W) bool. Raises InputError when it is missing, cut short, of another size, or not 0 and 255 (or 1)."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I;16", "I"):
                raise InputError(f"{path}: a mask is a grey PNG of 0 and 255, this is {image.mode}; write it again")
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the mask is missing; run rvos-select merge again") from error
    except BROKEN as error:
        raise InputError(f"{path}: not a whole PNG ({error}); run rvos-select merge again") from error
    if pixels.shape != tuple(size):
        raise InputError(
            f"{path}: the mask is {pixels.shape}, its frame {tuple(size)} (height, width); write it at the frame's size"
        )
    values = np.unique(pixels)
    if not np.isin(values, (0, 1, 255)).all() or {1, 255} <= set(values.tolist()):
        raise InputError(f"{path}: a mask holds 0 and 255, this holds {values[:5].tolist()}; write it again")
    return pixels > 0


class VideoWriter:
    """An mp4 (H.264) written frame by frame, whole or not there; use it in a `with`. size: (H, W); fps: frames per second."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.aside = path, path.with_name(f".{os.getpid()}.{path.name}")
        self.container: Any = av.open(str(self.aside.absolute()), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=fps)
        # H.264 with 4:2:0 colour wants even sides: an odd last row or column is repeated.
        self.pad = (size[0] % 2, size[1] % 2)
        self.stream.height, self.stream.width = size[0] + self.pad[0], size[1] + self.pad[1]
        self.stream.pix_fmt, self.stream.options = "yuv420p", {"crf": "18"}

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3) uint8 RGB. Raises OSError when the disk refuses."""
        import av

        whole = np.pad(frame, ((0, self.pad[0]), (0, self.pad[1]), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.container.mux(self.stream.encode())
            self.container.close()
            if kind is None:
                os.replace(self.aside, self.path)
        finally:
            self.aside.unlink(missing_ok=True)
