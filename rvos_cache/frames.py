"""Frames and masks as files: JPEG folders and mp4 in, mask PNGs and mp4 out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.types import Video

SUFFIXES = (".jpg", ".jpeg", ".png")


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. Raises InputError when the file is missing, no image, or cut short.

    Pillow and not OpenCV: OpenCV fills what is missing of a truncated JPEG with grey and says nothing.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a whole image ({error}); copy it again from the dataset's archive") from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from the file's header. Raises InputError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not an image ({error}); copy it again from the dataset's archive") from error


def frame_path(folder: Path, name: str) -> Path:
    """The file of frame `name`, whatever its suffix; the JPEG's path when there is none, for the message."""
    for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):
        path = folder / (name + suffix)
        if path.exists():
            return path
    return folder / (name + SUFFIXES[0])


def folder_video(folder: Path, video_id: str, frame_names: Sequence[str] | None = None) -> Video:
    """A folder of frames as a Video; frame_names: stems in order (default: all images by name). Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of frames for video {video_id}; copy it from the dataset's archive")
    names = (
        list(frame_names) if frame_names is not None else sorted(p.stem for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    )
    if not names:
        raise InputError(f"{folder}: no frames ({', '.join(SUFFIXES)}) in this folder; give a folder of frames or an mp4")
    paths = [frame_path(folder, name) for name in names]
    return Video(video_id, tuple(names), image_size(paths[0]), lambda t: read_image(paths[t]))


def file_video(path: Path, video_id: str) -> Video:
    """A video file as a Video; its frames are decoded once and held. Raises InputError when it cannot be decoded."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; give an mp4 or a folder of frames") from error
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{path}: cannot be decoded as a video ({error}); give an mp4 or a folder of frames") from error
    if not frames:
        raise InputError(f"{path}: holds no frames; give an mp4 or a folder of frames")
    return Video(video_id, tuple(f"{t:05d}" for t in range(len(frames))), frames[0].shape[:2], lambda t: frames[t])


def open_video(path: Path) -> Video:
    """An mp4 or a folder of frames; the id is its stem. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: not found; give an mp4 or a folder of frames")
    video_id = path.resolve().stem.lstrip(".") or "video"
    return folder_video(path, video_id) if path.is_dir() else file_video(path, video_id)


def write_mask_png(path: Path, mask: NDArray[np.bool_]) -> None:
    """A mask (H, W) as an 8-bit PNG of 0 and 255, whole or not there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(mask.astype(np.uint8) * 255).save(aside, format="PNG", compress_level=1)
    os.replace(aside, path)


def read_mask_png(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W) bool. Raises InputError when it is missing, cut short, of another size, or not 0 and 255 (or 1)."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I;16", "I"):
                raise InputError(f"{path}: a mask is a grey PNG of 0 and 255, this is {image.mode}; write it again")
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the mask is missing; run rvos-select merge again") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
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
    """An mp4 (H.264) written frame by frame; use it in a `with`. size: (H, W); fps: frames per second."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.container: Any = av.open(str(path), "w")
        self.stream = self.container.add_stream("libx264", rate=fps)
        # H.264 with 4:2:0 colour wants even sides: an odd last row or column is repeated.
        self.pad = (size[0] % 2, size[1] % 2)
        self.stream.height, self.stream.width = size[0] + self.pad[0], size[1] + self.pad[1]
        self.stream.pix_fmt, self.stream.options = "yuv420p", {"crf": "18"}

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3) uint8 RGB."""
        import av

        whole = np.pad(frame, ((0, self.pad[0]), (0, self.pad[1]), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.container.mux(self.stream.encode())
        self.container.close()
