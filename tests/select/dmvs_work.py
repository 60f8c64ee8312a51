"""Moving shapes, a tiny VITA and caches of it, and runs of a small DMVS on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_vita import CHANNELS, SMALL, write_checkpoint

from rvos_cache.extraction import extract, extract_text
from rvos_cache.shapes import write_shapes
from rvos_select.inference.predict import predict
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

MODULE = {"width": CHANNELS, "hidden": 32, "layers": 2, "points": 60, "motion_queries": 5, "dropout": 0.0}
VITA = {**SMALL, "max_tracks": 6, "frames_per_pass": 40}


class Work:
    """Moving shapes, a checkpoint, and caches of it under one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.checkpoint = root, root / "vita"
        write_shapes(root / "data", 3, 3)
        write_checkpoint(self.checkpoint)
        for split in ("train", "valid_u"):
            extract_text("mevis", root / "data", split, "hashed", self.text(split))

    def text(self, split: str) -> Path:
        return self.root / split / "text-hashed.zarr"

    def tracks(self, split: str, name: str = "exact", **settings: Any) -> Path:
        """The cache of a split, extracted unless it is there; one video of it."""
        out = self.root / split / f"{name}.zarr"
        if not out.exists():
            given = {"checkpoint": str(self.checkpoint), **VITA, "profile": name, **settings}
            extract("mevis", self.root / "data", split, "vita", out, limit=1, overrides=given)
        return out

    def train(self, out: Path, name: str = "exact", resume: bool = False, selector: str = "dmvs", **values: Any) -> Path:
        config = values.pop("config", {})
        base = {"batch": "clip", "batch_size": 4, "epochs": 2, "clip": {"frames": 4}, "optim": {"lr": 1e-5}}
        own = MODULE if selector == "dmvs" else {"width": 16, "heads": 4}
        settings = TrainSettings.model_validate({**base, **values, "selector": selector, "config": {**own, **config}})
        splits = [([self.tracks(split, name)], [self.text(split)]) for split in ("train", "valid_u")]
        (tracks, texts), (valid_tracks, valid_texts) = splits
        return train(tracks, texts, valid_tracks=valid_tracks, valid_texts=valid_texts, settings=settings, out=out, resume=resume)

    def predict(self, run: Path, out: Path, name: str = "exact") -> Path:
        return predict(run, [self.tracks("valid_u", name)], [self.text("valid_u")], out)
