"""SSA's released checkpoint (detectron2's format) as a run that `predict`, `ask` and `from_pretrained` take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvos_cache.clip.convert import clip_tensors, convert_clip, image_tower, split_parts, text_tower
from rvos_cache.clip.towers import load_image_tower, load_text_tower, tower_digest
from rvos_cache.clip.vocabulary import DEFAULT
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.store import Card, digest, provenance
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.text import encoder_class
from rvos_cache.text.cues import tagger_version
from rvos_cache.trackers import tracker_class
from rvos_select.paths import PathLike
from rvos_select.runs.checkpoint import RESTART, storing
from rvos_select.selectors.ssa import Ssa, SsaConfig, names
from rvos_select.selectors.ssa.clip import IMAGE_PART, TEXT_PART
from rvos_select.training.settings import TrainSettings

CLIP_FOLDER = "clip"
"""Folder of the run with the CLIP of the checkpoint."""
GIVE = "give a model_final.pth of SSA"


@dataclass(frozen=True)
class Imported:
    """The run, and how many tensors of the checkpoint are in the selector and in CLIP; unread: the names of the others."""

    run: Path
    trained: int
    clip: int
    unread: tuple[str, ...]


def import_ssa(
    checkpoint: PathLike,
    out: PathLike,
    clip: PathLike | None = None,
    tokenizer: str = DEFAULT,
    *,
    dataset: str = "mevis",
    config: Mapping[str, Any] | None = None,
) -> Imported:
    """Write the run `out` with the weights of `checkpoint`; only tensors are read, never code.

    clip: a folder of `convert-clip` whose towers are those of the checkpoint; by default the checkpoint's own CLIP is converted
    to `<out>/clip`, with the vocabulary `tokenizer` (see `convert_clip`); dataset: whose training split it was trained on, which the
    file does not say; config: settings of SsaConfig beside those that the shapes of its tensors tell, such as `short_side`. Raises
    InputError for a file that is no such checkpoint, another CLIP, or a folder `out` that is not empty.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    state = read_tensors(checkpoint, GIVE, nested="model")
    try:
        own_clip, others, has_clip = clip_tensors(state)
        trained = {name: tensor.float() for name, tensor in state.items() if names.from_official(name) is not None}
        if not trained or not has_clip:
            raise InputError(
                f"it has {len(trained)} tensors of SSA and {len(own_clip) * has_clip} of CLIP, expected both; {GIVE}"
            )
        parts = split_parts(own_clip)
        towers = {IMAGE_PART: image_tower(parts["image"]), TEXT_PART: text_tower(parts["text"])}
        read = {**sizes(trained), "token_channels": 0, "stage_channels": tuple(towers[IMAGE_PART].config.hidden_sizes)}
        clip_folder = str(clip or (out / CLIP_FOLDER).absolute())
        model = Ssa(build(SsaConfig, {**read, **(config or {}), "clip": clip_folder}, "settings of SSA"))
        model.load_official(trained)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    for name, tensor in trained.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{checkpoint}: {name} holds other than finite numbers; {GIVE}")
    if clip is not None:
        _check_same_clip(Path(clip), towers, checkpoint)
    with storing(out, RESTART), new_folder(out) as folder:
        if clip is None:
            convert_clip(checkpoint, folder / CLIP_FOLDER, tokenizer)
        model.save_pretrained(folder / "best")
        write_json(folder / "settings.json", _record(checkpoint, model, towers, dataset))
    unread = tuple(sorted(name for name in others if name not in trained))
    return Imported(out, len(trained), len(own_clip), unread)


def _check_same_clip(clip: Path, towers: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises InputError unless the towers of the folder are those of the checkpoint."""
    loaders = {IMAGE_PART: load_image_tower, TEXT_PART: load_text_tower}
    for part, load in loaders.items():
        if tower_digest(load(str(clip)), str(clip)) != tower_digest(towers[part], str(clip)):
            raise InputError(
                f"{clip}: its {part.removeprefix('clip_')} tower is not the one inside {checkpoint}; leave --clip out to convert that"
            )


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """SsaConfig's sizes by the shapes of tensors under released names; those of missing tensors are left to the defaults.

    No shape tells heads and sampling points, which SSA's code fixes (8 and 4; 4 heads of the fusion blocks).
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pixel, predictor, video = "sem_seg_head.pixel_decoder.transformer.encoder", "sem_seg_head.predictor", "vita_module"

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else None

    def layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    frame_layers = layers(f"{predictor}.transformer_cross_attention_layers.")
    values = {
        "width": size("resizer.fc.weight", 0),
        "word_channels": size("resizer.fc.weight", 1),
        "queries": size(f"{predictor}.query_embed.weight", 0),
        "hidden": size(f"{predictor}.transformer_ffn_layers.0.linear1.weight", 0),
        "pixel_hidden": size(f"{pixel}.layers.0.linear1.weight", 0),
        "fusion_width": size(f"{pixel}.fusion_layers.0.attn.v_proj.weight", 0),
        "pixel_layers": layers(f"{pixel}.layers."),
        "frame_layers": frame_layers,
        "handed_on": min(frame_layers, SsaConfig().handed_on),
        "video_layers": layers(f"{video}.transformer_cross_attention_layers."),
    }
    switches = {
        "adapters": layers("backbone.stage_adapter_layers.") > 0,
        "fusion": layers(f"{pixel}.fusion_layers.") > 0,
    }
    return {**{name: value for name, value in values.items() if value}, **switches}


def _record(checkpoint: Path, model: Ssa, towers: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The settings.json of the run."""
    clip = model.config.clip
    digests = {part: tower_digest(tower, clip) for part, tower in towers.items()}
    tracker, encoder = tracker_class("frames"), encoder_class("clip")
    frames = build(tracker.Settings, {}, "tracker frames").model_dump(mode="json")
    words = build(encoder.Settings, {"checkpoint": clip}, "text encoder clip").model_dump(mode="json")
    weights = {**digests[TEXT_PART], **tagger_version(words["tagger"])}
    common: dict[str, Any] = {"dataset": dataset, "split": "train"}
    specs = [spec.to_json() for spec in tracker.feature_specs]
    cards = {
        "tracks": [Card(kind="tracks", producer="frames", settings=frames, channels=0, feature_specs=specs, **common)],
        "text": [
            Card(kind="text", producer="clip", settings=words, channels=model.config.word_channels, weights=weights, **common)
        ],
        "valid_tracks": list[Card](),
        "valid_text": list[Card](),
    }
    settings = TrainSettings(selector="ssa", batch="clip", config={"clip": clip})
    return {
        "settings": settings.model_dump(mode="json"),
        "resolved": {"config": model.config.model_dump(mode="json"), "label_iou": None},
        "frozen": {part: next(iter(own.values())) for part, own in digests.items()},
        "imported": {"checkpoint": str(checkpoint), "digest": digest(checkpoint.read_bytes())},
        "sets": {},
        "missing": {},
        "cards": {kind: [card.model_dump() for card in of_kind] for kind, of_kind in cards.items()},
        **provenance(),
    }
