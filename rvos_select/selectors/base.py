"""The base class of every selector: settings, defaults, frozen parts, and files on disk or on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build
from rvos_cache.system.files import replace_file, write_text
from rvos_cache.system.text_files import read_text
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards, token_channels
from rvos_select.data.samples import VideoSample
from rvos_select.data.video import InferenceVideo
from rvos_select.losses.tracks import bce
from rvos_select.merging.policy import DEFAULT_EMPTY, Empty
from rvos_select.selectors.frozen import FrozenPart, mark_frozen

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FROZEN = "frozen."
"""Prefix of the tensors of frozen parts, and of the adapters inside them."""


class SelectorConfig(Settings):
    """Settings that every selector has; training sets both from the caches."""

    token_channels: int = Field(default=256, ge=0)
    """C, channels of a token of the tracks cache; 0: the caches hold no tracks, and the selector must draw masks of its own."""
    word_channels: int = Field(default=1024, ge=1)
    """D, channels of a word of the text cache."""


@dataclass(frozen=True)
class Scored:
    """Scores of some expressions of a video, which `Selector.infer` yields.

    batch: the expressions; logits: (B, N) of the tracks in the batch, or (B, Q) of a selector's own queries;
    draw: as `Selector.draw` of this batch, None: that itself.
    parts: of queries whose masks are those of tracks, another one in each frame: integers (B, Q, T) over all frames T of the video,
    the position among the N tracks of the batch of the track whose mask a query has in a frame, a candidate of its expression, or -1
    for none. A query without a mask in any frame cannot be selected, so rows of fewer queries are padded with -1.
    """

    batch: Batch
    logits: Tensor
    draw: Callable[[Tensor], Iterator[Tensor]] | None = None
    parts: Tensor | None = None


class Selector(nn.Module, PyTorchModelHubMixin):
    """A module that scores the candidate tracks of expressions, or queries with masks of its own.

    A subclass sets `Config` where it has settings of its own, builds its layers in `__init__` and implements `forward`;
    everything else has a default.

    Class attributes:
        Config: its settings model, a subclass of SelectorConfig.
        requires: optional parts of a Batch that it reads, see `rvos_select.data.batch`; read after `bind`.
        threshold: score above which (strict) a track is selected, unless the user gives another.
        empty: what is selected where no score is above the threshold, "zeros" (nothing) or "top1".
        top1_of_one: on datasets whose expressions name one object each, select the best track instead.
        draws: its logits are of Q queries with masks of their own, which `draw` predicts.
        draw_threshold: score below which a query's mask is predicted only where the query is an expression's best.
        static_shapes: which kernels its loss starts follows from the sizes and `Batch.mask_facts` alone, and it reads tensors of the
            batch alone, so that a training step may be recorded with one batch and replayed with another.
        encodes_text: it reads no cached words: it encodes `Batch.sentences` itself, or reads its text from the tracks cache.
    """

    Config: ClassVar[type[SelectorConfig]] = SelectorConfig
    requires: tuple[str, ...] = ()
    threshold: float = 0.5
    empty: Empty = DEFAULT_EMPTY
    top1_of_one: bool = False
    draws: bool = False
    draw_threshold: float = 0.0
    static_shapes: bool = False
    encodes_text: bool = False

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config: Any = checked_config(type(self).Config, config)
        self.frozen = nn.ModuleDict()
        self._trains_mode: set[str] = set()
        self._saved_adapters: Mapping[str, Tensor] | None = None
        self.frozen_digests: dict[str, str] = {}
        self.recorded_digests: Mapping[str, str] = {}
        self.weights_digest = ""

    @classmethod
    def config_values(cls, values: Mapping[str, Any], cards: CacheCards) -> dict[str, Any]:
        """Settings that training reads from the caches, or from a checkpoint that the given `values` name; those replace them.

        Raises InputError for caches that it cannot work with.
        """
        return {"token_channels": token_channels(cards.tracks), "word_channels": cards.text[0].channels}

    # What a subclass implements.

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N) or (B, Q). The logit of a track outside `batch.track_mask` has no meaning."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward(batch)")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimised. Each is the mean over the expressions of the batch, so that a batch of several
        gives the mean of the single ones; except a mean over objects, where a paper has it (see `normalisers`).

        The default is the binary cross-entropy of the candidates' logits. Raises ValueError without ground truth.
        """
        if batch.target is None:
            raise ValueError(f"{type(self).__name__}.loss needs Batch.target; this split hides its ground truth")
        logits = self(batch)
        value = bce(logits, batch.target.to(logits.dtype), batch.track_mask, batch.word_mask.any(1), 1.0)
        return {"loss": value}

    def normalisers(self, batch: Batch) -> Mapping[str, float]:
        """What the sums of its losses are divided by, as counts of `batch`, for a step that is computed in several micro-batches.

        The training loop adds the counts of all micro-batches of a step and gives each the sums as `Batch.normalisers`; with
        these `loss` divides by them instead of its own counts, so that the losses of the micro-batches add up to that of the step.
        It is called before the step, with batches on the CPU that hold neither `pixels` nor `frames`, and reads no parameter.
        The default {} means that every loss is a mean over the expressions: the loop weighs each micro-batch by its share of them.
        """
        return {}

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        """The frozen models that it runs itself, named by the cards of the caches or by its settings.

        Raises InputError for caches that it cannot work with.
        """
        return ()

    def advice(self, part: str) -> str:
        """What else can be done where no cache declares `part` of `requires`, for the message; "" if nothing."""
        return ""

    def bound(self, cards: CacheCards) -> None:
        """Called once after the frozen parts are loaded, to read from `self.frozen` or the cards."""

    def fit(self, videos: Sequence[VideoSample]) -> None:
        """Called once before training, with the training videos, to keep statistics of them as buffers."""

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        """Scores of all expressions of a video, each exactly once, in one or more pieces.

        The default makes one pass over the whole video. A module that cannot hold all expressions or frames at once yields a
        piece per group of expressions, and adds up its logits over clips before it yields: `video.batch(expressions, frames)`.
        """
        batch = video.batch()
        yield Scored(batch, self(batch))

    def draw(self, batch: Batch, queries: Tensor) -> Iterator[Tensor]:
        """With `draws`: the masks of the K queries marked in bool (B, Q), row by row: bool (K, t, H, W), in chunks of frames."""
        raise NotImplementedError(f"{type(self).__name__} does not implement draw(batch, queries)")

    def named_as_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint under this module's names, for `init`; by default they have them. Others keep their names."""
        return dict(tensors)

    # Frozen parts.

    def bind(self, cards: CacheCards) -> None:
        """Load the frozen parts, before the first batch. Raises InputError: wrong caches, or a checkpoint with other weights."""
        adapters = self._saved_adapters
        if adapters is None and len(self.frozen):
            adapters = self._adapters()
        self.frozen.clear()
        for part in self.frozen_parts(cards):
            module, digest = part.open(self.recorded_digests.get(part.name))
            self.attach_frozen(part.name, module)
            self.frozen_digests[part.name] = digest
            self._trains_mode |= {part.name} if part.trains_mode else set()
        self.frozen.to(next((p.device for p in self.parameters()), None))
        self.bound(cards)
        self.train(self.training)
        if adapters is not None and (adapters or self._adapters()):
            self._load_adapters(adapters)

    def attach_frozen(self, name: str, module: nn.Module) -> None:
        """Add `module` as the frozen part `name`: its weights are neither trained, counted nor saved."""
        mark_frozen(module.requires_grad_(False))
        self.frozen[name] = module

    def _adapters(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(FROZEN)}

    def _load_adapters(self, adapters: Mapping[str, Tensor]) -> None:
        own = self._adapters()
        different = sorted(own.keys() ^ adapters.keys()) or sorted(n for n in own if own[n].shape != adapters[n].shape)
        if different:
            raise InputError(
                f"{type(self).__name__}: the saved adapters do not fit its frozen parts; first {different[0]}; give the matching "
                "config and checkpoint"
            )
        self.load_state_dict(adapters, strict=False)

    def _frozen_names(self) -> set[str]:
        """The names of the tensors that frozen parts had when they were loaded, also where an adapter wraps their layers."""
        return {
            f"{FROZEN}{path}.{name}"
            for path, module in self.frozen.named_modules()
            for name in getattr(module, "frozen_tensors", ())
        }

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[Any]:
        """As nn.Module, without the weights of frozen parts; adapters that were added inside them are parameters."""
        own, frozen = f"{prefix}." if prefix else "", self._frozen_names()
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if name.removeprefix(own) not in frozen:
                yield name, parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As nn.Module, without the weights of frozen parts."""
        state = super().state_dict(*args, **kwargs)
        for name in self._frozen_names():
            state.pop(kwargs.get("prefix", "") + name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module; weights of frozen parts are neither expected nor accepted."""
        frozen = self._frozen_names()
        unexpected = [name for name in state_dict if name in frozen]
        result = super().load_state_dict({n: v for n, v in state_dict.items() if n not in frozen}, strict=False, assign=assign)
        missing, unexpected = [n for n in result.missing_keys if n not in frozen], [*unexpected, *result.unexpected_keys]
        if strict and (missing or unexpected):
            raise RuntimeError(f"{type(self).__name__}: missing tensors {missing[:3]}, unexpected tensors {unexpected[:3]}")
        return result

    def train(self, mode: bool = True) -> Self:
        """As nn.Module; frozen parts stay in evaluation mode, unless they were declared with `trains_mode`."""
        super().train(mode)
        for name, module in self.frozen.items():
            module.train(mode and name in self._trains_mode)
        return self

    # Files.

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in self.state_dict().items()}
        with replace_file(save_directory / WEIGHTS) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
        config = self.config.model_dump(mode="json")
        write_text(save_directory / CONFIG, json.dumps(config, sort_keys=True, indent=2))

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """Strict, and safetensors only (the mixin's own lets keys miss, falls back to a pickle and prints)."""
        hub = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "token": token,
            "local_files_only": local_files_only,
        }
        config_path, path = (_file(model_id, name, hub) for name in (CONFIG, WEIGHTS))
        try:
            values = model_kwargs.pop("config", None) or json.loads(read_text(config_path))
        except (OSError, ValueError) as error:
            raise InputError(f"{config_path}: not a readable config ({error}); give a run's best/ folder") from error
        model = cls(checked_config(cls.Config, values))
        try:
            state = load_file(path, device=map_location)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
        own = {name: tensor for name, tensor in state.items() if not name.startswith(FROZEN)}
        if strict:
            load_strictly(model, own, str(path))
            # They are loaded when the layers that they belong to are there: see `bind`.
            model._saved_adapters = {name: tensor for name, tensor in state.items() if name.startswith(FROZEN)}
        else:
            model.load_state_dict(own, strict=False)
        return model.to(map_location).eval()


def _file(model_id: str, name: str, hub: Mapping[str, Any]) -> Path:
    """The file `name` of a folder, or of a model on the hub. Raises InputError when a folder lacks it."""
    if not Path(model_id).is_dir():
        return Path(hf_hub_download(model_id, name, **hub))
    path = Path(model_id) / name
    if not path.is_file():
        raise InputError(f"{path}: expected a selector's {name}, no such file; give a run's best/ folder")
    return path


def checked_config(model: type[SelectorConfig], config: Any) -> Any:
    """`config` itself, or the settings `model` from plain values or None (defaults). Raises InputError for other values."""
    if isinstance(config, model):
        return config
    values = config.model_dump() if isinstance(config, Settings) else dict(config or {})
    return build(model, values, f"settings of {model.__name__}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], location: str) -> None:
    """Copy `state` into `module` in place. Raises InputError, with nothing copied, unless names and shapes are the module's."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        faults = [
            f"{word} {len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(f"{location}: tensor names are not this module's: {'; '.join(faults)}; give the matching config")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            shape, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise InputError(f"{location}: {name} has shape {shape}, this module wants {expected}; give the matching config")
    module.load_state_dict(dict(state))
