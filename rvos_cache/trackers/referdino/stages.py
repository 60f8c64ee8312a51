"""transformers' GroundingDINO that also gives the map of its backbone's first stage (stride 4), after ReferDINO's `norm0`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GroundingDinoForObjectDetection

STAGE1 = "model.backbone.conv_encoder.model.hidden_states_norms.stage1."
"""Prefix of the norm's tensors, which a plain GroundingDINO lacks."""


class FourStageGroundingDino(GroundingDinoForObjectDetection):  # type: ignore[misc]
    """`GroundingDinoForObjectDetection` on Swin plus the norm of the first stage, a new one unless the checkpoint has it.

    Its configuration is the plain one, and the plain class loads what it saves (the norm is then unexpected and ignored).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        backbone = self.model.backbone
        backbone.conv_encoder = FourStageEncoder(backbone.conv_encoder.model)

    @property
    def stage1(self) -> Tensor:
        """The map (K, width, ceil(h / 4), ceil(w / 4)) of the images encoded last, after the norm."""
        return self.model.backbone.conv_encoder.stage1


class FourStageEncoder(nn.Module):
    """Takes the place of transformers' `GroundingDinoConvEncoder`; the names of the parameters stay the same."""

    def __init__(self, swin: Any) -> None:
        super().__init__()
        self.model = swin
        self.model.hidden_states_norms["stage1"] = nn.LayerNorm(swin.config.embed_dim)
        self.stage1 = torch.empty(0)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Maps of the last three stages with their masks of real cells, bool (K, h, w)."""
        outputs = self.model(pixel_values, output_hidden_states=True, return_dict=True)
        first = outputs.hidden_states[self.model.stage_names.index("stage1")]
        norm = self.model.hidden_states_norms["stage1"]
        self.stage1 = norm(first.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        sizes = [one.shape[-2:] for one in outputs.feature_maps]
        masks = [nn.functional.interpolate(pixel_mask[None].float(), size=size).to(torch.bool)[0] for size in sizes]
        return list(zip(outputs.feature_maps, masks))
