"""The card of a cache: what it is, in one JSON file that is written once, first, with a digest of itself."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any, Literal

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build, plain_folder
from rvos_cache.store.backend import Backend
from rvos_cache.store.checksum import read_checked
from rvos_cache.store.uri import open_backend

FORMAT_VERSION = 2
"""2: masks as column transitions (mask_codec.py), overlap counts in one table, small arrays in the attributes."""
PROVENANCE_FIELDS = ("root", "run", "commit", "versions")
"""Fields that record where and with what code a cache was made; they may differ when it is opened for writing again."""


class Card(Settings):
    """What a cache is. To write to it with another value of any field outside PROVENANCE_FIELDS is an error naming the field.

    producer: name of the tracker, the encoder or, for selections, the selector; settings: its resolved settings; weights: checkpoint ->
    digest; expressions_digest: of the whole split's expressions, for text and for trackers that read them; channels,
    dtype: of tokens or words, 0 channels in a cache without tracks, of features alone; label_iou: default of the labels;
    training_only: made from ground-truth prompts; feature_specs: the extra arrays; measurement_specs: the arrays measured against
    ground truth; extra: what only this kind has; root: the absolute folder of the dataset, a hint: what is read there is compared
    with the cache; run: that of the run that made selections, a hint: its weights tell which run it was.
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
    measurement_specs: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    commit: str = ""
    versions: dict[str, str] = {}
    root: str = ""
    run: str = ""

    def differences(self, other: Card) -> list[str]:
        """Names of the fields outside PROVENANCE_FIELDS whose values differ; a setting is named `settings.<name>`."""
        names = []
        for name in type(self).model_fields:
            value, other_value = getattr(self, name), getattr(other, name)
            if name in PROVENANCE_FIELDS or value == other_value:
                continue
            if isinstance(value, dict) and isinstance(other_value, dict):
                keys = sorted(value.keys() | other_value)
                # Caches of older versions have names of folders as they were typed.
                different = [k for k in keys if plain_folder(k, value.get(k)) != plain_folder(k, other_value.get(k))]
                names += [f"{name}.{key}" for key in different]
            else:
                names.append(name)
        return names

    def value(self, name: str) -> Any:
        """The field `name`, or the entry `field.key` of a dict, as `differences` names them."""
        field, _, key = name.partition(".")
        value = getattr(self, field)
        return value.get(key) if key else value


def read_card(path: Path | str) -> Card:
    """The card of the cache at `path`, a folder or a URL.

    Raises InputError if there is none, or it is damaged or of another format version.
    """
    return read_card_from(open_backend(path))


def read_card_from(backend: Backend) -> Card:
    """The card of the cache in `backend`. Raises InputError like `read_card`."""
    if not backend.exists():
        raise InputError(
            f"{backend}: no cache here; rvos-cache extract makes tracks, extract-text words, and rvos-select predict selections"
        )
    location = f"{backend}/card.json"
    if not backend.has_card() and (inner := _caches_in(Path(str(backend)))):
        raise InputError(f"{backend}: is no cache, but holds {', '.join(inner)}; give one of them")
    if not backend.has_card() and (Path(str(backend)) / "settings.json").exists():
        raise InputError(f"{backend}: is the folder of a run, not a cache; give a .zarr folder, or the run with --run")
    how_to_fix = "this is not a whole cache: extract it again into a new path"
    values = read_checked(lambda: backend.read("card.json").tobytes(), location, how_to_fix)
    if values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{backend}: format version {values.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "extract again into a new path"
        )
    return build(Card, values, location)


def _caches_in(folder: Path) -> list[str]:
    """The names of the first caches in a local folder."""
    return sorted(path.name for path in folder.glob("*.zarr"))[:5] if folder.is_dir() else []


def provenance() -> dict[str, Any]:
    """`commit` and `versions` of a card or a run: the code that writes it."""
    packages = ("torch", "numpy", "zarr", "transformers", "opencv-python-headless", "pycocotools", "rvos")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
        commit = process.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"commit": commit, "versions": versions}
