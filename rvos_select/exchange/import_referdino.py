"""A released or tuned checkpoint of ReferDINO as a run: what its tracker reads, and the selector that `predict` and `ask` take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError, warn_once
from rvos_cache.extraction import tracker_card
from rvos_cache.settings import build
from rvos_cache.store import Card, digest, provenance
from rvos_cache.system.files import copy_folder, new_folder, write_json
from rvos_cache.text import encoder_class, open_encoder
from rvos_cache.trackers import open_tracker, tracker_class
from rvos_cache.trackers.referdino.convert import Conversion, convert_referdino
from rvos_cache.trackers.referdino.head import ReferDinoHead
from rvos_cache.trackers.referdino.tune_settings import IMAGES
from rvos_cache.trackers.referdino.upstream import (
    HEAD_FILE,
    RECORD_FILE,
    check_exported,
    load_head,
    read_record,
    steps_of,
    tuned_settings,
    warn_if_behind,
)
from rvos_select.paths import PathLike
from rvos_select.runs.checkpoint import RESTART, storing
from rvos_select.runs.checkpoint import UPSTREAM_FOLDER as UPSTREAM
from rvos_select.selectors.referdino import ReferDino, ReferDinoConfig
from rvos_select.training.settings import TrainSettings

TRACKER, ENCODER = "gdino-queries", "hashed"
"""What `ask` runs. The words of the encoder are not read: ReferDINO's own are in the tracks cache."""


@dataclass(frozen=True)
class Imported:
    """The run; what became of the tensors in `upstream` (None: a tuned folder, which was copied); trained: number of parameters of
    the selector; steps: of a tuned folder, those that were done and those that its settings ask for."""

    run: Path
    conversion: Conversion | None
    trained: int
    steps: tuple[int, int] | None = None


def import_referdino(checkpoint: PathLike, grounding: str | None, out: PathLike) -> Imported:
    """Write the run `out` with the weights of `checkpoint`; only tensors are read, never code.

    checkpoint: a released file, then grounding is the GroundingDINO of transformers that it was trained from, a hub name or a folder;
    or a folder that `rvos-cache tune-referdino` wrote. The run has `upstream`, for stage one, and `best`, the selector.
    Raises InputError for a file that is no such checkpoint, another GroundingDINO, or a folder `out` that is not empty.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    is_tuned = checkpoint.is_dir()
    if is_tuned == (grounding is not None):
        need = (
            "has a GroundingDINO of its own; leave --grounding out" if is_tuned else "give --grounding, what it was trained from"
        )
        raise InputError(f"{checkpoint}: {need}")
    conversion, source, tracker, data = None, checkpoint, dict[str, Any](), dict[str, Any]()
    with storing(out, RESTART), new_folder(out) as folder:
        if grounding is None:
            source, tracker, data = _copy_tuned(checkpoint, folder / UPSTREAM)
        else:
            conversion = convert_referdino(checkpoint, grounding, folder / UPSTREAM)
            conversion = replace(conversion, folder=out / UPSTREAM)
            tracker = dict(IMAGES) if conversion.untrained else {}
        head = load_head(str(folder / UPSTREAM))
        assert head is not None
        model = selector_of(head)
        model.save_pretrained(folder / "best")
        record = _record(source, tracker, data, model, folder / UPSTREAM, (out / UPSTREAM).absolute())
        write_json(folder / "settings.json", record)
    trained = sum(parameter.numel() for parameter in model.parameters())
    return Imported(out, conversion, trained, steps_of(read_record(out / UPSTREAM)))


def _copy_tuned(checkpoint: Path, target: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Copy the folder of a tuned checkpoint, or the one in a tuning run; returns its head's file, `tuned_settings`, and what it was
    tuned on: "dataset", "split" and "root"."""
    folder = checkpoint / UPSTREAM if (checkpoint / UPSTREAM).is_dir() else checkpoint
    check_exported(checkpoint / UPSTREAM)
    for name in (HEAD_FILE, RECORD_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: has no {name}; give the --out of rvos-cache tune-referdino, or a released file")
    settings, record = tuned_settings(folder), read_record(folder)
    # A damaged file is named where it is, not as a copy.
    load_head(str(folder))
    warn_if_behind(folder)
    if not record.get("settings") and "tensors" not in record:
        warn_once(
            f"{folder}: is by {record['source']}: it was neither tuned by tune-referdino nor released, so scores mean little"
        )
    copy_folder(folder, target)
    return folder / HEAD_FILE, settings, {name: record[name] for name in ("dataset", "split", "root") if name in record}


def selector_of(head: ReferDinoHead) -> ReferDino:
    """The selector with the enhancer and the box head of `head`."""
    sizes = head.sizes
    values = {"token_channels": sizes.channels, "hidden": sizes.temporal_hidden, "temporal_layers": sizes.temporal_layers}
    model = ReferDino(build(ReferDinoConfig, values, "referdino"))
    own = {f"{part}.{name}": t for part in ("enhancer", "box") for name, t in getattr(head, part).state_dict().items()}
    model.load_state_dict(own)
    return model.cpu().eval()


def _record(
    checkpoint: Path, tracker: Mapping[str, Any], data: Mapping[str, Any], model: ReferDino, written: Path, upstream: Path
) -> dict[str, Any]:
    """The settings.json of the run. tracker: settings that the checkpoint needs; data: what it was tuned on, empty for a released file,
    which does not say that; written: where `upstream`, which the run names, is for now."""
    settings = {"checkpoint": str(written), "masks": "head", **tracker}
    location = f"tracker {TRACKER}"
    tracker_settings = [
        build(tracker_class(TRACKER).Settings, {**settings, "checkpoint": str(folder)}, location)
        for folder in (written, upstream)
    ]
    # A copied folder knows the name of its file.
    stem = str(read_record(written)["source"]).removesuffix(".pth")
    common: dict[str, Any] = {"dataset": stem, "split": "released", **data}
    tracks = tracker_card(TRACKER, open_tracker(TRACKER, tracker_settings[0]), tracker_settings[1])
    encoder = open_encoder(ENCODER, build(encoder_class(ENCODER).Settings, {}, f"text encoder {ENCODER}"))
    words = Card(
        kind="text",
        producer=ENCODER,
        settings=encoder.settings.model_dump(mode="json"),
        channels=encoder.channels,
        weights=encoder.weight_hashes(),
        **common,
    )
    return {
        "settings": TrainSettings(selector="referdino", batch="clip").model_dump(mode="json"),
        "resolved": {"config": model.config.model_dump(mode="json"), "label_iou": None},
        "frozen": {},
        "imported": {"checkpoint": str(checkpoint), "digest": digest(checkpoint.read_bytes()), "tuned": bool(data)},
        "sets": {},
        "missing": {},
        "cards": {
            "tracks": [tracks.model_copy(update=common).model_dump()],
            "text": [words.model_dump()],
            "valid_tracks": [],
            "valid_text": [],
        },
        **provenance(),
    }
