"""ViT-Adapter as a backbone of transformers, so that a Mask2Former with it is saved and loaded like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from rvos_cache.tensor_names import TensorNames
from rvos_cache.trackers.dvis.adapter import PREFIX, UNREAD, AdapterSizes, VitAdapter
from rvos_cache.trackers.mask2former import names

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = TensorNames(
    {
        f"{PREFIX}{{a}}": (f"model.{names.ENCODER}.adapter.{{a}}",),
        **{source: targets for source, targets in names.TABLE.items() if not source.startswith(PREFIX)},
    },
    {**names.FIELDS, "a": rf"(?!{UNREAD}$).+"},
)
"""Names of the tensors of a Mask2Former with this backbone."""


class VitAdapterConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """The sizes of the backbone; names as in AdapterSizes."""

    model_type = "dvis_vit_adapter"

    width: int = 1024
    blocks: int = 24
    hidden: int = 4096
    positions: int = 1369
    stem: int = 64
    groups: int = 4
    extra: int = 2
    heads: int = 16
    convolved: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = list(STAGES)
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", list(STAGES))
        )
        super().__post_init__(**kwargs)

    @property
    def sizes(self) -> AdapterSizes:
        """The sizes."""
        return AdapterSizes(**{field.name: getattr(self, field.name) for field in fields(AdapterSizes)})


class VitAdapterBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """`VitAdapter` with the outputs of transformers' backbones."""

    config_class = VitAdapterConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: VitAdapterConfig) -> None:
        super().__init__(config)
        self.num_features = [config.width] * len(STAGES)
        self.adapter = VitAdapter(config.sizes)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """The four maps of normalised images (T, 3, H, W)."""
        return BackboneOutput(feature_maps=tuple(self.adapter(pixel_values)))


def register() -> None:
    """Let transformers find the backbone by its model type."""
    AutoConfig.register(VitAdapterConfig.model_type, VitAdapterConfig, exist_ok=True)
    AutoBackbone.register(VitAdapterConfig, VitAdapterBackbone, exist_ok=True)


def adapter_config(tensors: Mapping[str, Tensor]) -> VitAdapterConfig:
    """The configuration of released tensors. Raises InputError naming a tensor that is missing."""
    sizes = AdapterSizes.of({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)})
    return VitAdapterConfig(**sizes.to_json())
