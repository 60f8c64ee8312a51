"""Reading a cache: every array is checked against the digests of its files before it is believed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.card import Card, canonical, digest, read_card, unsealed

PLAIN = (json.JSONDecodeError, OSError, KeyError, ValueError, RuntimeError, TypeError)


class VideoFolder:
    """One published video: its attributes and arrays, checked as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remedy = f"delete the folder {path} and run the extraction again"
        if not path.is_dir():
            raise InputError(f"{path}: this video is not in the cache; run the extraction again to add it")
        self.files: dict[str, str] = unsealed(path / "digests.json", self.remedy)["files"]
        self.check("zarr.json")
        self.attributes: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]

    def names(self) -> list[str]:
        """The arrays of the video."""
        return sorted(n.removesuffix("/zarr.json") for n in self.files if n.endswith("/zarr.json") and self._is_array(n))

    def _is_array(self, name: str) -> bool:
        return bool(json.loads((self.path / name).read_bytes()).get("node_type") == "array")

    def array(self, name: str, frames: slice | None = None) -> NDArray[Any]:
        """The array `name`, or its rows `frames` where it is stored by frame. Raises InputError when it is damaged."""
        own = [f for f in self.files if f.startswith(name + "/")]
        if not own:
            raise InputError(f"{self.path}: has no array {name!r}; extract again with a tracker that writes it")
        if frames is not None:
            keep = {"zarr.json"} | {f"c/{t}" for t in range(*frames.indices(1 << 30))[: 1 << 20]}
            own = [f for f in own if f[len(name) + 1 :] == "zarr.json" or "/".join(f[len(name) + 1 :].split("/")[:2]) in keep]
        for file in own:
            self.check(file)
        try:
            stored = zarr.open_array(self.path / name, mode="r", zarr_format=3)
            return np.asarray(stored[...] if frames is None else stored[frames])
        except PLAIN as error:
            raise InputError(f"{self.path / name}: cannot be decoded ({error}); {self.remedy}") from error

    def check(self, name: str) -> None:
        """Raises InputError when the file `name` is missing or its bytes changed."""
        try:
            raw = (self.path / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.path / name}: missing or unreadable ({error.strerror}); {self.remedy}") from error
        if digest(raw) != self.files.get(name):
            raise InputError(f"{self.path / name}: its bytes do not match their digest; {self.remedy}")


class Cache:
    """What the three kinds of caches share. Raises InputError when `path` is not a whole cache of this kind."""

    kind: Literal["tracks", "text", "selections"]

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.card: Card = read_card(self.path)
        if self.card.kind != self.kind:
            raise InputError(f"{path}: holds {self.card.kind}, wanted {self.kind}; give the cache of that kind")
        # A handle parses two small JSON files; a thousand of them are a few megabytes.
        self.folder = lru_cache(maxsize=4096)(self._open)

    def _open(self, video_id: str) -> VideoFolder:
        return VideoFolder(self.path / "videos" / video_id)

    def video_ids(self) -> tuple[str, ...]:
        """The published videos, sorted."""
        folder = self.path / "videos"
        # A writer that was killed right after its card leaves no such folder.
        return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir())) if folder.is_dir() else ()

    def failures(self) -> dict[str, str]:
        """Videos that failed and are still not there, with the last error of each."""
        path = self.path / "failures.jsonl"
        if not path.exists():
            return {}
        done, found = set(self.video_ids()), {}
        for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
            try:
                entry: dict[str, str] = json.loads(line)
                claimed = entry.pop("digest")
                # The bytes are compared too: JSON can say one thing in several ways.
                if digest(canonical(entry)) != claimed or json.dumps({**entry, "digest": claimed}).encode() != line:
                    raise ValueError
                found[entry["video"]] = entry["error"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: not a failure record; remove the line") from error
        return {video: error for video, error in found.items() if video not in done}
