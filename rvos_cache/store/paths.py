"""The names of caches: `<folder>/<split>/<tracker>.zarr` and `<folder>/<split>/text-<encoder>.zarr`."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.store.uri import format_uri


def default_folder(dataset: str) -> Path:
    """The folder of a dataset's caches where the user names none: `out/cache/<dataset>`."""
    return Path("out/cache") / dataset


def tracks_path(folder: Path, split: str, tracker: str, corrupt: str | None = None) -> Path:
    """The tracks cache of a split below `folder`.

    tracker: a name, or package.module:Class, which gives Class.zarr; corrupt: "name:severity", which gives
    `<tracker>-<name>-<severity>.zarr`.
    """
    parts = [_short_name(tracker), *(corrupt.split(":") if corrupt else [])]
    return folder / split / f"{'-'.join(parts)}.zarr"


def pooled_path(tracks: Path | str) -> str:
    """The cache beside a tracks cache, a path or URL, with CLIP's features pooled under its masks: `<tracker>-clip.zarr`."""
    return f"{format_uri(tracks).removesuffix('.zarr')}-clip.zarr"


def text_path(folder: Path, split: str, encoder: str) -> Path:
    """The text cache of a split below `folder`. encoder: a name, or package.module:Class, which gives text-Class.zarr."""
    return folder / split / f"text-{_short_name(encoder)}.zarr"


def _short_name(plugin: str) -> str:
    """The name of a plugin, or of its class."""
    return plugin.rpartition(":")[2]
