"""The files of SOLA's released scripts (https://github.com/cvlab-kaist/SOLA, 76f87be): their paths, and reading one track.

    sam2_tracks/<grid|gdino|gt>_tracks/<dataset>/<split>/
      sam2_masklets/<video>[/<expression>]/<id>.json        anno_id, rle (COCO, one per frame), prompt_type and, if they
                                                            were computed, precision, recall and iou by object
      sam2_object_tokens/<video>[/<expression>]/<id>.npy    float32 (T, 256), SAM 2's object pointers

<id> is anno_id in five digits. Only gdino, the tracks of boxes found for a sentence, has a folder per expression.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import from_coco
from rvos_cache.types import VIDEO, Expression

Kind = Literal["grid", "gdino", "gt"]
ORIGINS: dict[Kind, str] = {"grid": "grid", "gdino": "box", "gt": "gt"}
"""Kind of a folder -> origin of its tracks. The prompt type does not tell: it is "SAM2 AMG MASK" for boxes too."""
DATASETS = {"ref-youtube-vos": "ref-ytbvos", "ref-davis17": "ref-davis"}
"""Our name of a dataset -> SOLA's, if they differ."""
MASKLETS, TOKENS = "sam2_masklets", "sam2_object_tokens"
METRICS = ("precision", "recall", "iou")
CHANNELS = 256


@dataclass(frozen=True)
class SolaTrack:
    """One track. masks: T compressed masks; tokens: float32 (T, C); fields: its JSON without `rle`."""

    masks: tuple[bytes, ...]
    tokens: NDArray[np.float32]
    fields: Mapping[str, Any]


def split_folder(kind: Kind, dataset: str, split: str) -> Path:
    """The folder of a split's tracks, relative to `sam2_tracks`. dataset: our name."""
    return Path(f"{kind}_tracks") / DATASETS.get(dataset, dataset) / split


def file_name(anno_id: int) -> str:
    """The name, without its suffix, of a track's files."""
    return f"{anno_id:05d}"


def object_name(video_id: str, object_id: str) -> str:
    """SOLA's name of an object, unique in its video: MeViS's anno_id, or the number in Ref-YouTube-VOS's annotations."""
    return object_id.removeprefix(f"{video_id}-")


@dataclass(frozen=True)
class SolaFolder:
    """The tracks of one split, `sam2_tracks/<kind>_tracks/<dataset>/<split>`."""

    path: Path
    kind: Kind

    @classmethod
    def find(cls, directory: Path, kind: Kind, dataset: str, split: str) -> SolaFolder:
        """The folder of a split in `directory`, which is `sam2_tracks` or contains it. Raises InputError if it is not there."""
        inner = split_folder(kind, dataset, split)
        for base in (directory / "sam2_tracks", directory):
            if (base / inner).is_dir():
                for name in (MASKLETS, TOKENS):
                    if not (base / inner / name).is_dir():
                        raise InputError(f"{base / inner}: no folder {name}; give the whole folder that SOLA's scripts wrote")
                return cls(base / inner, kind)
        raise InputError(f"{directory}: no tracks in {inner}; give SOLA's sam2_tracks, and check --tracks, --dataset and --split")

    def video_ids(self) -> set[str]:
        """The videos that have a folder."""
        return {p.name for p in (self.path / MASKLETS).iterdir() if p.is_dir() and not p.name.startswith(".")}

    def paths_of(self, video_id: str) -> list[Path]:
        """The folders with a video's files."""
        return [self.path / MASKLETS / video_id, self.path / TOKENS / video_id]

    def groups(self, video_id: str, expressions: Sequence[Expression]) -> list[tuple[int, str]]:
        """The folders of a video's tracks, in the order of its expressions, each with the index of its expression or VIDEO.

        Raises InputError if the video or one of its expressions has no folder, or a folder is of no expression.
        """
        inner, _ = self._list(video_id)
        if self.kind != "gdino":
            if inner:
                raise InputError(
                    f"{self.path / MASKLETS / video_id / min(inner)}: a folder where {self.kind} tracks are files; "
                    "tracks of boxes are read with --tracks gdino"
                )
            return [(VIDEO, video_id)]
        known = [e.expression_id for e in expressions]
        missing, foreign = [e for e in known if e not in inner], sorted(inner - set(known))
        if foreign:
            raise InputError(
                f"{self.path / MASKLETS / video_id / foreign[0]}: the split has no expression {foreign[0]!r} in this video; "
                "give the dataset's release that the tracks were made from"
            )
        if missing:
            raise InputError(
                f"{self.path / MASKLETS / video_id / missing[0]}: not found, so expression {missing[0]} was never tracked; run "
                "SOLA's generate_tokens_gdino.py on it (an expression without a track has an empty folder)"
            )
        return [(i, f"{video_id}/{e}") for i, e in enumerate(known)]

    def track_names(self, group: str) -> list[str]:
        """Names, without suffix, of the tracks of a group, in the order of SOLA's loader (by name).

        Raises InputError if a folder is missing, or a track has only one of its two files.
        """
        inner, masklets = self._list(group)
        if inner:
            raise InputError(f"{self.path / MASKLETS / group / min(inner)}: a folder where a track's JSON belongs; remove it")
        folder = self.path / TOKENS / group
        if not folder.is_dir():
            raise InputError(f"{folder}: not found, the tokens of {MASKLETS}/{group}; give both folders of the same run")
        tokens = _names(folder, ".npy")
        for names, other_names, kind, suffix in (
            (tokens, masklets, TOKENS, ".npy"),
            (masklets, tokens, MASKLETS, ".json"),
        ):
            missing = sorted(other_names - names)
            if missing:
                path = self.path / kind / group / f"{missing[0]}{suffix}"
                raise InputError(f"{path}: not found, and the track's other file is there; give both, or remove the other")
        return sorted(masklets)

    def read(self, group: str, name: str, frames: int, size: tuple[int, int]) -> SolaTrack:
        """The track `name` of a group. Raises InputError, also if it has other than `frames` masks of `size` (H, W)."""
        path = self.path / MASKLETS / group / f"{name}.json"
        masks, fields = _read_masklet(path, frames, size)
        return SolaTrack(masks, _read_tokens(self.path / TOKENS / group / f"{name}.npy", frames), fields)

    def _list(self, group: str) -> tuple[set[str], set[str]]:
        """The names of the folders and of the tracks in the masklets of a group."""
        folder = self.path / MASKLETS / group
        if not folder.is_dir():
            raise InputError(f"{folder}: not found, so it was never tracked; run SOLA's scripts on it, or give other --video")
        inner = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
        tracks = _names(folder, ".json")
        if inner and tracks:
            raise InputError(f"{folder}: tracks next to folders; {min(tracks)}.json belongs to no expression, remove it")
        if self.kind == "gdino" and tracks and "/" not in group:
            raise InputError(
                f"{folder / min(tracks)}.json: expected a folder per expression; tracks of the video are read with --tracks grid"
            )
        return inner, tracks


def write_track(folder: Path, group: str, track: SolaTrack, size: tuple[int, int]) -> None:
    """Write the files of one track below the folder of a split; `fields` must contain "anno_id".

    tokens are written as float32, which SOLA's loader gives to its module.
    """
    name, fields = file_name(track.fields["anno_id"]), dict(track.fields)
    rle = [{"size": list(size), "counts": raw.decode("ascii")} for raw in track.masks]
    record = {"anno_id": fields.pop("anno_id"), "rle": rle, **fields}
    (folder / MASKLETS / group / f"{name}.json").write_text(json.dumps(record, indent=4), "utf-8")
    # To memory first: NumPy takes no notice when a full disk accepts only a part of a file.
    content = io.BytesIO()
    np.save(content, track.tokens.astype(np.float32), allow_pickle=False)
    (folder / TOKENS / group / f"{name}.npy").write_bytes(content.getvalue())


def _names(folder: Path, suffix: str) -> set[str]:
    return {p.stem for p in folder.iterdir() if p.suffix == suffix and not p.name.startswith(".")}


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _read_masklet(path: Path, frames: int, size: tuple[int, int]) -> tuple[tuple[bytes, ...], dict[str, Any]]:
    """T compressed masks, and the other fields."""
    how_to_fix = "write it again with SOLA's scripts"
    try:
        record = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole JSON ({error}); {how_to_fix}") from error
    if not isinstance(record, dict) or not isinstance(record.get("rle"), list):
        raise InputError(f"{path}: expected an object with anno_id, rle and prompt_type; {how_to_fix}")
    anno_id, prompt_type = record.get("anno_id"), record.get("prompt_type")
    if not isinstance(anno_id, int) or isinstance(anno_id, bool) or anno_id < 0 or file_name(anno_id) != path.stem:
        raise InputError(f"{path}: expected the anno_id of the file's name, found {anno_id!r}; {how_to_fix}")
    if not isinstance(prompt_type, str):
        raise InputError(f"{path}: expected a text as prompt_type, found {prompt_type!r}; {how_to_fix}")
    rle = record.pop("rle")
    if len(rle) != frames:
        raise InputError(f"{path}: masks of {len(rle)} frames, the video has {frames}; give the frames that were tracked")
    if None in rle:
        raise InputError(f"{path}, frame {rle.index(None)}: null instead of a mask; an empty mask is COCO RLE too; {how_to_fix}")
    for name in METRICS:
        values = record.get(name, {})
        if not isinstance(values, dict) or any(type(v) not in (int, float) or not 0 <= v <= 1 for v in values.values()):
            raise InputError(f"{path}: expected {name} as numbers from 0 to 1 by object, found {str(values)[:60]}; {how_to_fix}")
    return tuple(from_coco(mask, size, f"{path}, frame {t}") for t, mask in enumerate(rle)), record


def _read_tokens(path: Path, frames: int) -> NDArray[np.float32]:
    """float32 (T, 256)."""
    try:
        # Memory-mapped: a damaged header may claim a huge array, and nothing is read before the shape is checked.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise InputError(
            f"{path}: not an array of numbers ({error}); pickled objects are never loaded; save the tokens again"
        ) from error
    if not isinstance(stored, np.ndarray) or stored.shape != (frames, CHANNELS) or stored.dtype != np.float32:
        description = f"{stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else "an archive"
        raise InputError(
            f"{path}: expected float32 {(frames, CHANNELS)}, frames and channels, found {description}; save it again"
        )
    tokens = np.array(stored, order="C")
    if not np.isfinite(tokens).all():
        raise InputError(f"{path}: the tokens hold NaN or infinite values; run SOLA's scripts on this video again")
    return tokens
