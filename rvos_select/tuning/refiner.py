"""Stage 0 of DeRVOS, a tuning run: the temporal refiner of DVIS++ is trained with TAIS on images; of both the refiner is kept.

`rvos-cache replace-refiner` puts it into a DVIS++ folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.system.locks import folder_lock
from rvos_cache.text.beit3.checkpoint import check_tokenizer, load_tokenizer
from rvos_cache.tuning import state
from rvos_cache.tuning.loop import TuningRun, is_out_of_memory
from rvos_cache.tuning.state import storing
from rvos_select.tuning.refiner_images import ImageSource, TuneImage, collate
from rvos_select.tuning.refiner_model import LiveDervos, parameters, set_mode
from rvos_select.tuning.refiner_settings import RefinerSettings


def tune_refiner(datasets: Sequence[Dataset], settings: RefinerSettings, out: Path) -> Path:
    """Train on splits of datasets, and write a tuning run to `out`; call again to resume. Returns `out`.

    Raises InputError for a split without ground truth, another run in `out`, a run that another process trains, a checkpoint that
    cannot be loaded, a loss that is not finite, or a step that needs more memory than there is.
    """
    with folder_lock(out, "dervos_refiner"):
        tokenizer = load_tokenizer(settings.beit3.checkpoint)
        source = ImageSource(datasets, settings, tokenizer)
        live = LiveDervos(settings)
        sizes = live.beit3.sizes
        check_tokenizer(tokenizer, sizes.vocabulary)
        if settings.beit3.longest > sizes.longest:
            raise InputError(f"beit3.longest {settings.beit3.longest}, this BEiT-3 takes at most {sizes.longest} tokens")
        record = {
            "trains": state.REFINER,
            "settings": settings.model_dump(mode="json"),
            "datasets": [{"dataset": d.name, "split": d.split} for d in datasets],
            "roots": [str(d.root) for d in datasets],
            "items": len(source),
            "config": live.config.model_dump(mode="json"),
            "checkpoint": live.digests(),
            "trained": {"refiner": parameters(live.head.refiner), "tais": parameters(live.selector.tais)},
        }
        state.write_record(out, record)
        with storing(out):
            RefinerRun(settings, source, live, out).train()
    return out


class RefinerRun(TuningRun[TuneImage]):
    """The training loop of stage 0. A saved state has the whole refiner and TAIS, also what is frozen of them."""

    def __init__(self, settings: RefinerSettings, source: ImageSource, live: LiveDervos, out: Path) -> None:
        super().__init__(settings, len(source), out, "tune")
        self.settings, self.source, self.live = settings, source, live
        self.trained: Mapping[str, nn.Parameter] = live.trained
        self.optimizer = live.optimizer()

    def clip(self, number: int, generator: torch.Generator) -> TuneImage:
        """The image of item `number`."""
        return self.source.image(number, generator)

    def saved_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of a state."""
        return {name: parameter.data for name, parameter in self.live.parameters.items()}

    def before_training(self) -> None:
        """Put TAIS in training mode."""
        set_mode(self.live)

    def step(self, step: int, clips: Sequence[TuneImage]) -> dict[str, float]:
        """One step of the optimiser: the losses, the mean IoU of the matched pairs, the gradient's norm before it is cut, the rate."""
        rate = self.settings.rate(step // self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.seed_noise(step)
        self.optimizer.zero_grad(set_to_none=True)
        names = "; ".join(clip.name for clip in clips)
        lower = "tune into another --out with a lower --set lr"
        try:
            batch = collate(clips, self.settings, self.live.device)
            losses = self.live.losses(self.live(batch), batch.truth)
            if not torch.isfinite(losses["loss"]):
                raise InputError(f"{names}: the loss is {losses['loss'].item()}; {lower}")
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(list(self.trained.values()), self.settings.max_norm)
            if not torch.isfinite(norm):
                raise InputError(f"{names}: the gradient is {norm.item()}; {lower}")
            self.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = self.settings.batch_size
            fix = f"--set batch_size={size // 2}" if size > 1 else "a lower --set side"
            raise InputError(
                f"{clips[0].name}: out of memory in a step of {size} images of side {self.settings.side}; {fix}"
            ) from error
        return {**{name: value.item() for name, value in losses.items()}, "norm": norm.item(), "lr": rate}
