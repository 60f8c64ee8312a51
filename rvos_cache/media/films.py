"""Video files: frames of any film that FFmpeg reads as input, H.264 in an mp4 as output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.orientation import UPRIGHT, Orientation, from_display_matrix
from rvos_cache.system.files import replace_file
from rvos_cache.types import Video

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".gif",
)  # fmt: skip
"""Endings of files that are taken for films where a folder is searched for them, also in capitals."""
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273, table 3) whose numbers are not those of a usual screen."""
SAME_RATE = 0.01
"""Largest relative difference of two frame rates that are taken for one: containers round times to milliseconds."""
MISSING_SECONDS, MISSING_SHARE = Fraction(1, 2), Fraction(1, 50)
"""A film is taken for cut short if more than both is missing; sound may be a little longer than the frames."""
UNEVEN = 2
"""A frame that is shown this many times as long as the median frame shows that the rate varies."""


class _VideoFile:
    """The frames of a video file, decoded in order on demand; the latest of them stay in memory.

    A frame before those in memory is decoded again from the start: codecs seek to nearby frames, not to exact ones.
    upright: turn frames as the film's display matrix says; cache_bytes: the most bytes of frames in memory; at least one frame
    stays. Raises InputError if the file has no frames, or frames that cannot be read, see `file_video`.
    """

    def __init__(self, path: Path, upright: bool, cache_bytes: int) -> None:
        self.path, self.upright, self.cache_bytes, self.used_bytes = path, upright, cache_bytes, 0
        self.cached: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self.size: tuple[int, int] | None = None
        self.nominal_rate: Fraction | None = None
        self.times: list[Fraction | None] = []
        self.decoder: Iterator[NDArray[np.uint8]] = self._decode()
        self.position = 0
        while self._next() is not None:
            pass
        self.count = self.position
        if not self.count:
            raise InputError(f"{path}: holds no frames; give a film or a folder of frames")
        # A frame may be decoded again later, from the first on.
        self.rate = frame_rate(path, self.times, self.nominal_rate)

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
                # The best one: the first stream may be the picture of a cover.
                stream = container.streams.best("video")
                if stream is None:
                    raise InputError(f"{self.path}: holds no frames; give a film or a folder of frames")
                if stream.metadata.get("alpha_mode") == "1":
                    raise _transparent(self.path)
                if stream.sample_aspect_ratio not in (None, 0, 1):
                    ratio = stream.sample_aspect_ratio
                    warn_once(f"{self.path}: its pixels are not square ({ratio}); frames are read as stored, not stretched")
                self.nominal_rate, self.times = stream.average_rate or stream.guessed_rate, []
                for t, frame in enumerate(container.decode(stream)):
                    self.times.append(None if frame.pts is None else frame.pts * frame.time_base)
                    yield self._pixels(frame, t)
                self._warn_of_end(container)
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: not found; give a film or a folder of frames") from error
        except (av.FFmpegError, IndexError, OSError) as error:
            raise InputError(f"{self.path}: cannot be decoded as a video ({error}); give a film or a folder of frames") from error

    def _warn_of_end(self, container: Any) -> None:
        """Warn if the frames end long before the film, whose length is in its first bytes: the end of the file may be missing."""
        last = self.times[-1] if self.times else None
        if container.duration and last is not None:
            end, length = last + 1 / (self.nominal_rate or 1), Fraction(container.duration, 1_000_000)
            missing = Fraction(container.start_time or 0, 1_000_000) + length - end
            if missing > max(MISSING_SECONDS, MISSING_SHARE * length):
                ends = f"{float(length):.1f} seconds long, and its frames end {float(missing):.1f} seconds before"
                warn_once(f"{self.path}: {ends}; if the file is cut short, copy it again")

    def _pixels(self, frame: Any, t: int) -> NDArray[np.uint8]:
        """A decoded frame, (H, W, 3) uint8 RGB. Raises InputError for transparent pixels, another size, an odd display matrix."""
        transfer = HIGH_DYNAMIC_RANGE.get(getattr(frame, "color_trc", 0))
        if transfer is not None:
            warn_once(f"{self.path}: a film of high dynamic range ({transfer}), read as it is: its colours are pale; convert it")
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            pixels = frame.to_ndarray(format="rgba")
            if pixels[..., 3].min() < 255:
                raise _transparent(self.path)
            pixels = pixels[..., :3]
        else:
            pixels = frame.to_ndarray(format="rgb24")
        turn = self._orientation(frame) if self.upright else UPRIGHT
        pixels = turn.apply(pixels)
        self.size = self.size or pixels.shape[:2]
        if pixels.shape[:2] != self.size:
            raise InputError(
                f"{self.path}, frame {t}: {pixels.shape[:2]} pixels (height, width), the first frame has {self.size}; all frames "
                "of a video must have one size"
            )
        return pixels

    def _orientation(self, frame: Any) -> Orientation:
        import av.sidedata.sidedata

        matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
        turn = UPRIGHT if matrix is None else from_display_matrix(bytes(matrix))
        if turn is None:
            raise InputError(
                f"{self.path}: is to be shown turned by an angle that is no multiple of 90 degrees; convert the film"
            )
        return turn


def file_video(path: Path, video_id: str, cache_bytes: int = 256 << 20, upright: bool = True) -> Video:
    """A video file as a Video; at most `cache_bytes` bytes of its frames stay in memory.

    upright: turn frames as players do, by the film's display matrix; False: as stored. Raises InputError if it cannot be decoded,
    or a frame has transparent pixels, is of another size than the first, or is to be turned by other than multiples of 90 degrees.
    """
    file = _VideoFile(path, upright, cache_bytes)
    names = tuple(f"{t:05d}" for t in range(file.count))
    return Video(video_id, names, file.read(0).shape[:2], file.read, file.rate, (path,))


def frame_rate(path: Path, times: Sequence[Fraction | None], nominal: Fraction | None) -> Fraction | None:
    """Frames per second of a film, None if unknown; warns if the frames are far from evenly spaced.

    times: when each frame is shown, in seconds; nominal: the container's rate, which is returned where the times agree with it.
    """
    known = [time for time in times if time is not None]
    if len(known) < max(2, len(times)) or known[-1] <= known[0]:
        return nominal
    measured = (len(known) - 1) / (known[-1] - known[0])
    gaps = sorted(after - before for before, after in zip(known, known[1:]))
    if gaps[-1] > UNEVEN * gaps[len(gaps) // 2]:
        seconds = f"{float(gaps[0]):.3g} to {float(gaps[-1]):.3g} seconds"
        warn_once(f"{path}: its frames are shown for {seconds}, and are read as if all were shown equally long")
    elif nominal is not None and abs(nominal / measured - 1) < SAME_RATE:
        return nominal
    return measured.limit_denominator(1001)


def _transparent(path: Path) -> InputError:
    return InputError(f"{path}: has transparent pixels, whose colour is unknown; convert the film over a background")


class VideoWriter:
    """Write an mp4 (H.264) frame by frame, as a context manager; the file appears when the context ends without an error.

    fps: frames per second; size: (H, W).
    """

    def __init__(self, path: Path, fps: int | Fraction, size: tuple[int, int]) -> None:
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
