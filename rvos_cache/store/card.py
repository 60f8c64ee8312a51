"""The card of a cache: what it is, in one JSON file that is written once, first, with a digest of itself."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build

FORMAT_VERSION = 2
"""2: masks as turns of their columns, overlap counts in one table, small arrays in the attributes."""
FREE = ("root", "commit", "versions")
"""Fields that tell where and with what a cache was made, and bind nothing."""


class Card(Settings):
    """What a cache is. Opening it to write with another value of any field outside FREE is an error naming the field.

    producer: tracker or encoder name (the run, for selections); settings: its resolved settings; weights: checkpoint ->
    digest; expressions_digest: of the whole split's expressions, for text and for trackers that read them; channels,
    dtype: of tokens or words; label_iou: default of the labels; training_only: made from ground-truth prompts;
    feature_specs: the extra arrays; extra: what only this kind has; root: where the dataset lay, a hint.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["tracks", "text", "selections"]
    dataset: str
    split: str
    producer: str
    settings: dict[str, Any] = {}
    weights: dict[str, str] = {}
    expressions_digest: str | None = None
    channels: int = 0
    dtype: str = "float16"
    label_iou: float | None = None
    training_only: bool = False
    feature_specs: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    commit: str = ""
    versions: dict[str, str] = {}
    root: str = ""

    def differences(self, other: Card) -> list[str]:
        """Names of the binding fields whose values differ; a setting is named `settings.<name>`."""
        found = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in FREE or mine == theirs:
                continue
            if isinstance(mine, dict) and isinstance(theirs, dict):
                found += [f"{name}.{key}" for key in sorted(mine.keys() | theirs) if mine.get(key) != theirs.get(key)]
            else:
                found.append(name)
        return found

    def value(self, name: str) -> Any:
        """The field `name`, or the entry `field.key` of a dict, as `differences` names them."""
        field, _, key = name.partition(".")
        held = getattr(self, field)
        return held.get(key) if key else held


def digest(raw: bytes | memoryview) -> str:
    """128 bits of BLAKE2b, as hex."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def sealed(value: dict[str, Any]) -> bytes:
    """`value` as JSON bytes with a digest of itself under "digest"."""
    return json.dumps({**value, "digest": digest(canonical(value))}, indent=1, ensure_ascii=False).encode() + b"\n"


def unsealed(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that `sealed` wrote. Raises InputError when it is missing or was changed by a single bit."""
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
        claimed = value.pop("digest")
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {remedy}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}); {remedy}") from error
    if sealed(value) != raw or digest(canonical(value)) != claimed:
        raise InputError(f"{path}: its content does not match its digest; {remedy}")
    return dict(value)


def write_durably(path: Path, raw: bytes) -> None:
    """Write and fsync a file."""
    with open(path, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def read_card(path: Path) -> Card:
    """The card of the cache at `path`. Raises InputError when there is none, or it is damaged or of another format."""
    if not path.is_dir():
        raise InputError(f"{path}: no cache here; make it with rvos-cache extract (words: extract-text)")
    values = unsealed(path / "card.json", "this is not a whole cache: extract it again into a new path")
    if values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {values.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "extract again into a new path"
        )
    return build(Card, values, str(path / "card.json"))


def provenance() -> dict[str, Any]:
    """`commit` and `versions` for a card or a run: what code wrote this."""
    packages = ("torch", "numpy", "zarr", "transformers", "opencv-python-headless", "pycocotools", "rvos")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
        commit = said.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"commit": commit, "versions": versions}
