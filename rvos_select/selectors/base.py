"""What every selector shares with the Hugging Face hub: weights as safetensors, settings as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build
from rvos_cache.store import Card
from rvos_cache.tensors import read_tensors
from rvos_select.merging.policy import DEFAULT_EMPTY, Empty

WEIGHTS = "model.safetensors"
S = TypeVar("S", bound=Settings)


def _to_json(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def checked_config(model: type[S], config: S | Mapping[str, Any]) -> S:
    """`config` itself, or the settings `model` from the plain values of a config.json (else InputError)."""
    return config if isinstance(config, model) else build(model, dict(config), "the selector's config")  # type: ignore[arg-type]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `module` in place.

    Raises InputError, with nothing copied, unless names and shapes are the module's.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        faults = [
            f"{word} {len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for word, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(f"{where}: tensor names are not this module's: {'; '.join(faults)}; give the matching config")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            came, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise InputError(f"{where}: {name} has shape {came}, this module wants {wanted}; give the matching config")
    module.load_state_dict(dict(state))


class Selector(nn.Module, PyTorchModelHubMixin, coders={Settings: (_to_json, lambda data: data)}):
    """Base of the selectors: `save_pretrained`, `push_to_hub`, `from_pretrained`; never a pickle.

    A subclass takes its settings model, or the plain values read from config.json, as the argument `config`. Unless it says
    otherwise it chooses tracks and has no frozen parts.
    """

    top1_of_one = False
    """Where every expression names one object it answers with its best track, and not with those above its threshold."""

    @property
    def empty(self) -> Empty:
        """What answers where no score is above its threshold."""
        return DEFAULT_EMPTY

    @property
    def draws(self) -> bool:
        """Its logits are of queries with masks of their own, which `draw` gives, not of the tracks."""
        return False

    def bind(self, cards: Sequence[Card]) -> None:
        """Load the frozen parts that it runs itself, as the cards of the tracks caches name them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        kwargs.setdefault("coders", {Settings: (_to_json, lambda data: data)})
        super().__init_subclass__(**kwargs)

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
        if "config" not in model_kwargs:
            raise InputError(f"{model_id}: wanted config.json beside {WEIGHTS}, found none; give a run's best/ folder")
        model = cls(**model_kwargs)
        if Path(model_id).is_dir():
            path = Path(model_id) / WEIGHTS
        else:
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        state = read_tensors(path, "give a run's best/ folder, or copy it again", map_location)
        if strict:
            load_strictly(model, state, str(path))
        else:
            model.load_state_dict(state, strict=False)
        return model.to(map_location).eval()
