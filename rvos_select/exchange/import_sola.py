"""SOLA's released checkpoint (`epoch_<n>.pth` of its train.py) as a run that `predict`, `ask` and `from_pretrained` take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.exchange.import_sola import LABEL_IOU, PRODUCER
from rvos_cache.exchange.sola_files import CHANNELS
from rvos_cache.settings import build
from rvos_cache.store import Card, digest, provenance
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.text import encoder_class
from rvos_cache.trackers import tracker_class
from rvos_select.data.caches import TrackSource
from rvos_select.data.texts import TextSource
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.runs.checkpoint import RESTART, storing
from rvos_select.selectors.sola import Sola, SolaConfig
from rvos_select.training.settings import TrainSettings

TRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sam2-grid", {}),
    ("sam2-gt", {}),
    (PRODUCER, {"tracks": "grid"}),
    (PRODUCER, {"tracks": "gt"}),
)
"""Trackers, with settings, of the tracks that SOLA trains on, extracted here or imported from its files. `ask` runs the first."""
VALIDATED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sam2-grid", {"prompt_every": "half"}),
    ("sam2-box", {}),
    (PRODUCER, {"tracks": "grid"}),
    (PRODUCER, {"tracks": "gdino"}),
)
"""Those of SOLA's evaluation."""
ENCODER = "roberta"


def import_sola(checkpoint: PathLike, out: PathLike, caches: Paths = (), texts: Paths = ()) -> Path:
    """Write the run `out` with the weights of `checkpoint` and return it; only tensors are read, never code.

    caches, texts: caches like those that the checkpoint was trained on. Default: SOLA's, SAM 2's tracks, extracted here or
    imported from its files, and the words of its RoBERTa, which is loaded once for its digest. Raises InputError for a file that
    is no such checkpoint, caches of other widths, or a folder `out` that is not empty.
    """
    checkpoint, out, caches, texts = Path(checkpoint), Path(out), as_paths(caches), as_paths(texts)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    model = load_checkpoint(checkpoint)
    config = model.config
    cards = {
        "tracks": TrackSource(caches).cards if caches else tracks_cards(TRAINED),
        "text": [cache.card for cache in TextSource(texts).caches] if texts else [words_card()],
        "valid_tracks": [] if caches else tracks_cards(VALIDATED),
        "valid_text": list[Card](),
    }
    for kind, what, channels in (("tracks", "tokens", config.token_channels), ("text", "words", config.word_channels)):
        for card in cards[kind]:
            if card.channels != channels:
                raise InputError(
                    f"{checkpoint}: reads {what} of {channels} channels, those of {card.producer} have {card.channels}; "
                    "give --cache and --text of what it was trained on"
                )
    record = {
        "settings": TrainSettings(label_iou=LABEL_IOU).model_dump(mode="json"),
        "resolved": {"config": config.model_dump(mode="json"), "label_iou": LABEL_IOU},
        "imported": {"checkpoint": str(checkpoint), "digest": digest(checkpoint.read_bytes())},
        "sets": {},
        "missing": {},
        "cards": {kind: [card.model_dump() for card in of_kind] for kind, of_kind in cards.items()},
        **provenance(),
    }

    with storing(out, RESTART), new_folder(out) as folder:
        model.save_pretrained(folder / "best")
        write_json(folder / "settings.json", record)
    return out


def load_checkpoint(path: Path) -> Sola:
    """The module whose tensors `path` holds, its sizes read from their shapes, in evaluation mode. Raises InputError."""
    state = read_tensors(path, "give an epoch_<n>.pth that SOLA's train.py saved, the module's state_dict() alone")
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} holds other than finite numbers; take another epoch's checkpoint")
    model = Sola(build(SolaConfig, sizes(state), str(path)))
    try:
        model.load_official(state)
    except InputError as error:
        raise InputError(f"{path}: not the weights that SOLA's train.py saves ({error})") from error
    return model.eval()


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """SolaConfig's sizes by the shapes of the tensors; those of missing tensors are left to the defaults.

    No shape depends on the number of heads, which SOLA's code fixes (8).
    """
    first, negatives = state.get("short_motion_encoder.0.weight"), state.get("negative_token.weight")
    layers = {name.split(".")[1] for name in state if name.startswith("object_lang_align_layers.")}
    config: dict[str, int] = {"layers": len(layers)} if layers else {}
    if first is not None and first.ndim == 3:
        config |= {"width": first.shape[0], "token_channels": first.shape[1]}
    if negatives is not None and negatives.ndim == 2:
        config |= {"negatives": negatives.shape[0], "word_channels": negatives.shape[1]}
    return config


def tracks_cards(trackers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Card]:
    """A card of MeViS's tracks for each tracker and its settings, without the digest of the weights, which is not known."""
    cards = []
    for name, given in trackers:
        settings, training_only = dict(given), given.get("tracks") == "gt"
        if name != PRODUCER:
            kind = tracker_class(name)
            settings = build(kind.Settings, given, f"tracker {name}").model_dump(mode="json")
            training_only = kind.wants_ground_truth
        cards.append(_card("tracks", name, settings, CHANNELS, label_iou=LABEL_IOU, training_only=training_only))
    return cards


def words_card() -> Card:
    """The card of the words that SOLA reads. Raises InputError when their encoder cannot be loaded."""
    kind = encoder_class(ENCODER)
    settings = build(kind.Settings, {}, f"text encoder {ENCODER}")
    try:
        encoder = kind(settings)
    except InputError as error:
        raise InputError(
            f"no --text was given, and the encoder of SOLA's words cannot be loaded: give --text T.zarr ({error})"
        ) from error
    return _card("text", ENCODER, settings.model_dump(mode="json"), encoder.channels, weights=encoder.weight_hashes())


def _card(kind: Literal["tracks", "text"], producer: str, settings: dict[str, Any], channels: int, **more: Any) -> Card:
    # SOLA's released weights were trained on MeViS's training split.
    return Card(kind=kind, dataset="mevis", split="train", producer=producer, settings=settings, channels=channels, **more)
