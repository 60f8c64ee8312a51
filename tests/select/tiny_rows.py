"""Tiny datasets in the published layouts, and tiny random checkpoints under the names of needs.toml, for rows of the papers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_dvis
import tiny_sam2
import tiny_vita
from released_referdino import shared_grounding, shared_released, single_frame_file
from test_a2d_sentences import write_a2d
from test_dervos_pages import SMALL as DERVOS
from test_dmvs_pages import hide
from test_jhmdb_sentences import write_jhmdb
from test_refcoco import write_refcoco
from test_sola_pages import SMALL as SOLA
from test_sola_pages import write_davis, write_youtube
from test_ssa_pages import SMALL as SSA
from text_fixtures import tiny_roberta
from tiny_beit3 import write_tiny_beit3
from tiny_clip import write_tiny_clip

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_videos import EXPRESSIONS, write_split

DMVS = {
    "epochs": 1, "batch_size": 4, "clip.frames": 2, "config.width": tiny_vita.CHANNELS, "config.hidden": 16, "config.layers": 1,
    "config.points": 30, "config.motion_queries": 4,
}  # fmt: skip
TUNING = {"frames": 3, "augment": "none", "short_side": 64, "steps": 1, "accumulate": 1, "keep_ratio": 0.4, "anchor_every": 16}
REFERDINO = {"epochs": 1, "batch_size": 2, "clip.frames": 3, "config.hidden": 16}
TRAINING: dict[str, Mapping[str, Any]] = {
    "sola": dict(pair.split("=") for pair in SOLA),
    "dmvs": DMVS,
    "ssa": SSA,
    "referdino": REFERDINO,
    "dervos": DERVOS,
}
"""Settings with which a system trains quickly."""

GRID = {**tiny_sam2.GRID, "prompt_every": "half", "max_tracks": 4}
BOX = {**tiny_sam2.BOX, "prompt_every": "half"}
VITA = {**tiny_vita.SMALL, "max_tracks": 4}
TRACKERS: dict[str, dict[str, Any]] = {
    "grid": GRID, "grid_half": GRID, "grid_half_blur": GRID, "grid_half_noise": GRID, "box": BOX, "box_blur": BOX, "box_noise": BOX,
    "vita": VITA, "vita_youtube_vis_2019": VITA, "frames": {"short_side": 32}, "queries": {"short_side": 32, "keep_ratio": 0.4},
    "queries_frozen": {"short_side": 32, "masks": "box"}, "dvis": tiny_dvis.SMALL, "mask2former": tiny_dvis.SMALL,
}  # fmt: skip
OF_SYSTEM: dict[tuple[str, str], dict[str, Any]] = {
    ("referdino", "box"): {"box_threshold": 0, "stability": 0, "same_iou": 1},
    ("dervos", "frames"): {"square": 64},
    ("dervos", "vita"): {**VITA, "pool": 4},
}
"""Where a tracker of that name in that paper is another one."""


def write_datasets(folder: Path) -> Path:
    """Every dataset of needs.toml under its name, one or two videos in each split."""
    for split in ("train", "valid_u", "valid"):
        write_split(folder / "mevis" / split, {f"{split}{i}": (4, True, EXPRESSIONS) for i in range(2)})
    hide(folder / "mevis/valid")
    write_youtube(folder / "ref-youtube-vos")
    write_davis(folder / "ref-davis17")
    for name in ("refcoco", "refcoco+", "refcocog"):
        write_refcoco(folder / "single" / name, name, ("train",))
        shutil.copytree(folder / "single" / name, folder / "refcoco", dirs_exist_ok=True)
    for name, write in (("a2d-sentences", write_a2d), ("jhmdb-sentences", write_jhmdb)):
        (folder / name).mkdir()
        write(folder / name)
    return folder


def write_weights(folder: Path) -> dict[str, Path]:
    """Name in needs.toml -> a tiny random checkpoint."""
    folder.mkdir(parents=True)
    for name in ("roberta", "bert"):
        (folder / name).mkdir()
        tiny_roberta(folder / name, [text for text, _ in EXPRESSIONS.values()])
    dvis, vita, clip = (folder / name for name in ("dvis", "vita", "clip"))
    tiny_dvis.write_checkpoint(dvis)
    tiny_vita.write_checkpoint(vita)
    write_tiny_clip(clip)
    beit3 = write_tiny_beit3(folder / "beit3")
    mask2former = folder / "mask2former"
    tiny_dvis.mask2former().save_pretrained(mask2former)
    grounding = Path(shared_grounding())
    return {
        "sam2": Path(tiny_sam2.shared_checkpoint()), "grounding_dino_t": grounding, "grounding_dino_b": grounding,
        "roberta_large": folder / "roberta", "roberta_base": folder / "roberta", "bert_base": folder / "bert", "vita": vita,
        "vita_youtube_vis_2019": vita, "clip_convnext_large": clip, "referdino_mevis_swinb": shared_released(),
        "referdino_ryt_swinb": shared_released(), "referdino_a2d_swinb": single_frame_file(), "dvis_r50": dvis, "dvis_vit_l": dvis,
        "mask2former": mask2former, "beit3_base": beit3, "beit3_large": beit3,
    }  # fmt: skip


def options(row: str, settings: Mapping[str, Any], used: list[str]) -> list[str]:
    """--set and --tracker-set of a row, whose trackers are `used`."""
    system = row.partition(".")[0]
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    for name in used:
        for key, value in OF_SYSTEM.get((system, name), TRACKERS.get(name, {})).items():
            words += ["--tracker-set", f"{name}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words
