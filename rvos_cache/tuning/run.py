"""Training of ReferDINO's upstream on videos, resumable to the same numbers: `rvos-cache tune-referdino`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.system.device import device
from rvos_cache.system.files import replace_folder
from rvos_cache.system.locks import folder_lock
from rvos_cache.trackers.referdino.convert import write_upstream
from rvos_cache.trackers.referdino.live import LiveOutput, LiveReferDino
from rvos_cache.trackers.referdino.lora import merge_lora
from rvos_cache.trackers.referdino.start import Start, load_start
from rvos_cache.trackers.referdino.trained import counts, set_mode
from rvos_cache.trackers.referdino.tune_settings import TuneSettings
from rvos_cache.trackers.referdino_losses import TERMS, Truth, losses
from rvos_cache.tuning import state
from rvos_cache.tuning.augment import TuneClip
from rvos_cache.tuning.clips import ClipSource, LiveBatch, collate
from rvos_cache.tuning.loop import TuningRun, generator, is_out_of_memory
from rvos_cache.tuning.state import UPSTREAM, storing


def tune(dataset: Dataset, settings: TuneSettings, out: Path) -> Path:
    """Train on a split and write `out`/upstream, the checkpoint for `gdino-queries`; run again to resume. Returns that folder.

    Raises InputError for a split without ground truth, another run in `out`, a run that another process trains, a loss that is not
    finite, or a step that needs more memory than there is.
    """
    with folder_lock(out, "tune-referdino"):
        # Before the checkpoint, which may be another one that cannot be loaded.
        state.check_same(out, {"settings": settings.model_dump(mode="json")})
        source = ClipSource(dataset, settings)
        start = load_start(settings)
        record = {
            "settings": settings.model_dump(mode="json"),
            "dataset": dataset.name,
            "split": dataset.split,
            "root": str(dataset.root),
            "items": len(source),
            "checkpoint": start.digest,
            "trained": counts(start.trained),
        }
        state.write_record(out, record)
        with storing(out):
            Run(settings, source, start, out).train()
        return export(out, start)


def export(out: Path, start: Start | None = None) -> Path:
    """Write `out`/upstream, the checkpoint for `gdino-queries`, from the state that was saved last, LoRA merged; returns that folder.

    start: what the run in `out` starts from, which is loaded if it is not given; it is changed. Raises InputError if no state was
    saved, or what the run started from is another checkpoint now.
    """
    folder, step, record = out / UPSTREAM, state.saved_step(out), state.read_record(out)
    if not step:
        raise InputError(f"{out}: no step has been saved yet; tune first, or give a lower --set save_every")
    if start is None:
        start = load_start(build(TuneSettings, record["settings"], str(out / state.RECORD)))
        if start.digest != record["checkpoint"]:
            raise InputError(
                f"{out}: {record['settings']['checkpoint']} is not the checkpoint that it was tuned from; bring that back"
            )
    state.load_tensors(out, saved_tensors(start))
    live = start.live.cpu()
    merge_lora(live)
    with storing(out), replace_folder(folder) as target:
        write_upstream(target, live.grounding, start.tokenizer, live.head, {"source": "tune-referdino", "step": step, **record})
    return folder


def saved_tensors(start: Start) -> dict[str, Tensor]:
    """The tensors that the checkpoint lacks, or that are trained, by name: a state of the run."""
    live = start.live
    new = {
        f"head.{name}": tensor for name, tensor in live.head.named_parameters() if not name.startswith("reference_points_head.")
    }
    return {**new, **{name: parameter.data for name, parameter in start.trained.items()}}


class Run(TuningRun[TuneClip]):
    """The training loop of ReferDINO."""

    def __init__(self, settings: TuneSettings, source: ClipSource, start: Start, out: Path) -> None:
        super().__init__(settings, len(source), out, "tune")
        self.settings, self.source, self.start = settings, source, start
        self.live: LiveReferDino = start.live
        self.device = device()
        self.trained, self.parameters = start.trained, list(start.trained.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and self.device.type == "cuda")

    def clip(self, number: int, generator: torch.Generator) -> TuneClip:
        """A clip of item `number`."""
        return self.source.clip(number, generator)

    def saved_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of a state."""
        return saved_tensors(self.start)

    def before_training(self) -> None:
        """Put the model in training mode."""
        set_mode(self.live, self.settings.train_noise == "code")

    def step(self, step: int, clips: Sequence[TuneClip]) -> dict[str, float]:
        """One step of the optimiser: the losses of the last layer, the sum of all, and the norm of the gradient before it is cut."""
        settings, size = self.settings, self.settings.batch_size
        num_boxes = float(sum(int(clip.valid.sum()) for clip in clips))
        rate = settings.rate(step // self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.seed_noise(step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        with explain_out_of_memory(settings, clips):
            for first in range(0, len(clips), size):
                self.live.prune_seed = int(torch.randint(2**31, (), generator=generator(settings.seed, "prune", step, first)))
                batch = collate(clips[first : first + size], self.start.tokenizer, self.start.max_length)
                for name, value in self._add_gradients(batch.to(self.device), num_boxes).items():
                    sums[name] = sums.get(name, 0.0) + value
            norm = nn.utils.clip_grad_norm_(self.parameters, settings.max_norm)
            if not torch.isfinite(norm):
                raise InputError(f"{clips[0].name}: the gradient is {norm.item()}; tune into another --out with a lower --set lr")
            self.optimizer.step()
        return {**sums, "norm": norm.item(), "lr": rate}

    def _add_gradients(self, batch: LiveBatch, num_boxes: float) -> dict[str, float]:
        """Add the gradients of a part of a step, in all of whose clips `num_boxes` frames show an object."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.live(batch.images, batch.real, batch.ids, batch.words)
            terms = all_losses(output, batch.truth, self.settings, num_boxes)
        if not torch.isfinite(terms["loss"]):
            raise InputError(
                f"{'; '.join(batch.names)}: the loss is {terms['loss'].item()}; tune into another --out with a lower --set lr"
            )
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return {name: value.item() for name, value in terms.items()}


def all_losses(output: LiveOutput, truth: Truth, settings: TuneSettings, num_boxes: float) -> dict[str, Tensor]:
    """`loss`: the sum over the decoder's layers and the encoder, each with its own matching; the terms are those of the last layer.

    num_boxes: frames that show an object in all clips of the step.
    """
    costs, weights = settings.costs.model_dump(), settings.weights.model_dump()
    layers = [losses(layer, truth, costs=costs, weights=weights, num_boxes=num_boxes) for layer in output.layers]
    encoder = losses(output.encoder, truth, costs=costs, weights=weights, matched_by=output.proposals, num_boxes=num_boxes)
    total = torch.stack([terms["loss"] for terms in (*layers, encoder)]).sum()
    return {**{name: layers[-1][name].detach() for name in TERMS}, "encoder": encoder["loss"].detach(), "loss": total}


@contextmanager
def explain_out_of_memory(settings: TuneSettings, clips: Sequence[TuneClip]) -> Iterator[None]:
    """Raises InputError where the memory does not suffice for the block: the settings that lower what it takes."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fixes = []
        if settings.batch_size > 1:
            fixes.append(f"--set batch_size={settings.batch_size // 2} --set accumulate={settings.accumulate * 2}")
        if not settings.checkpointing:
            fixes.append("--set checkpointing=true")
        fixes.append(f"--set frames={max(3, settings.frames // 2)}" if settings.frames > 3 else "a lower --set keep_ratio")
        sizes = ", ".join(sorted({f"{h}x{w}" for h, w in (clip.size for clip in clips)}))
        raise InputError(
            f"{clips[0].name}: out of memory in a step of {settings.batch_size} clips at once of {settings.frames} frames ({sizes} "
            f"pixels); {', or '.join(fixes)}"
        ) from error
