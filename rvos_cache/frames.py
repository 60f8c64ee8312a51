"""Videos as files: folders of images and video files as input, mp4 as output."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.files import replace_file
from rvos_cache.types import FORBIDDEN, Video

SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for a damaged image. DecompressionBombError: a damaged header may claim more pixels than Pillow accepts."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises InputError if the file is missing, no image, or cut short.

    Pillow and not OpenCV: OpenCV fills the missing part of a truncated JPEG with grey, without an error.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: not a whole image ({error}); copy it again from the dataset's archive") from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header. Raises InputError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: not an image ({error}); copy it again from the dataset's archive") from error


def frame_files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> the images of that stem, in natural order of the stems ("2" before "10").

    Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of frames; copy it from the dataset's archive")
    files: dict[str, list[Path]] = {}
    # Desktops put hidden files next to the images ("._00000.jpg").
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    for path in sorted(paths, key=lambda p: (_natural_key(p.stem), p.name)):
        files.setdefault(path.stem, []).append(path)
    return files


def _natural_key(stem: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", stem) if part]


def folder_video(folder: Path, video_id: str, frame_names: Sequence[str] | None = None) -> Video:
    """A folder of frames as a Video; frame_names: stems in order (default: all images in natural order).

    Raises InputError if the first frame is missing or no image, or if two files have the same stem.
    """
    files = frame_files(folder)
    names = list(files) if frame_names is None else list(frame_names)
    if not names:
        raise InputError(f"{folder}: no frames ({', '.join(SUFFIXES)}) in this folder; give a folder of frames or an mp4")
    paths = [files.get(name, [folder / (name + SUFFIXES[0])]) for name in names]
    duplicates = next((candidates for candidates in paths if len(candidates) > 1), None)
    if duplicates is not None:
        names_found = " and ".join(p.name for p in duplicates)
        raise InputError(f"{folder}: frame {duplicates[0].stem} is there twice, as {names_found}; keep one")
    return Video(video_id, tuple(names), image_size(paths[0][0]), lambda t: read_image(paths[t][0]))


class _VideoFile:
    """The frames of a video file, decoded in order on demand; the latest of them stay in memory.

    A frame before those in memory is decoded again from the start: codecs seek to nearby frames, not to exact ones.
    cache_bytes: the most bytes of frames in memory; at least one frame stays. Raises InputError if the file has no frames.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        self.path, self.cache_bytes, self.used_bytes = path, cache_bytes, 0
        self.cached: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self.decoder: Iterator[NDArray[np.uint8]] = self._decode()
        self.position = 0
        while self._next() is not None:
            pass
        self.count = self.position
        if not self.count:
            raise InputError(f"{path}: holds no frames; give an mp4 or a folder of frames")

    def read(self, t: int) -> NDArray[np.uint8]:
        """Frame t, (H, W, 3) uint8 RGB. Raises InputError."""
        if t in self.cached:
            return self.cached[t]
        if t < self.position:
            self.decoder, self.position = self._decode(), 0
        while self.position <= t:
            if self._next() is None:
                raise InputError(
                    f"{self.path}: ends at frame {self.position}, it had {self.count}; do not change it while it is read"
                )
        return self.cached[t]

    def _next(self) -> NDArray[np.uint8] | None:
        frame = next(self.decoder, None)
        if frame is None:
            return None
        if self.position not in self.cached:
            self.cached[self.position] = frame
            self.used_bytes += frame.nbytes
        self.cached.move_to_end(self.position)
        while self.used_bytes > self.cache_bytes and len(self.cached) > 1:
            self.used_bytes -= self.cached.popitem(last=False)[1].nbytes
        self.position += 1
        return frame

    def _decode(self) -> Iterator[NDArray[np.uint8]]:
        import av

        try:
            # An absolute path: FFmpeg takes the part before a colon for a protocol.
            with av.open(str(self.path.absolute())) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: not found; give an mp4 or a folder of frames") from error
        except (av.FFmpegError, IndexError, OSError) as error:
            raise InputError(f"{self.path}: cannot be decoded as a video ({error}); give an mp4 or a folder of frames") from error


def file_video(path: Path, video_id: str, cache_bytes: int = 256 << 20) -> Video:
    """A video file as a Video; at most `cache_bytes` bytes of its frames stay in memory.

    Raises InputError if it cannot be decoded.
    """
    file = _VideoFile(path, cache_bytes)
    return Video(video_id, tuple(f"{t:05d}" for t in range(file.count)), file.read(0).shape[:2], file.read)


def open_video(path: Path) -> Video:
    """An mp4 or a folder of frames; the id is the name of the folder, or of the file without its suffix. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: not found; give an mp4 or a folder of frames")
    resolved = path.resolve()
    name = resolved.name if path.is_dir() else resolved.stem
    # The id names folders of masks: characters that other file systems or zips refuse are replaced.
    video_id = re.sub(FORBIDDEN, "_", name.lstrip("."))[:35] or "video"
    return folder_video(path, video_id) if path.is_dir() else file_video(path, video_id)


def video_files(path: Path) -> list[Path]:
    """The files of what `open_video` opens: the images of a folder in the order of the frames, or the film itself."""
    return [file for files in frame_files(path).values() for file in files] if path.is_dir() else [path]


class VideoWriter:
    """Write an mp4 (H.264) frame by frame, as a context manager; the file appears when the context ends without an error.

    size: (H, W); fps: frames per second.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        import av

        self._file = replace_file(path)
        self.container: Any = av.open(str(self._file.__enter__().absolute()), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=fps)
        # H.264 with 4:2:0 colour needs even sides: an odd last row or column is repeated.
        self.pad = (size[0] % 2, size[1] % 2)
        self.stream.height, self.stream.width = size[0] + self.pad[0], size[1] + self.pad[1]
        self.stream.pix_fmt, self.stream.options = "yuv420p", {"crf": "18"}

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3) uint8 RGB. Raises OSError if the file cannot be written."""
        import av

        padded = np.pad(frame, ((0, self.pad[0]), (0, self.pad[1]), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.container.mux(self.stream.encode())
            self.container.close()
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)
