"""DVIS++ and DeRVOS in one model for images, and its losses: the refiner and TAIS are trained, all else is frozen.

Letters: B images, N queries and tracks, C2 channels of a track, Cm of the mask features, h w cells of the stride-4 map, A objects, P
points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_cache.settings import build
from rvos_cache.system.device import device
from rvos_cache.text.beit3 import digest, load, normalise_pixels
from rvos_cache.trackers.dvis.checkpoint import head_hash, load_dvis
from rvos_cache.trackers.dvis.refiner import PREFIX
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_select.losses.matching import bce_costs, dice_costs
from rvos_select.selectors.dervos import Dervos, DervosConfig
from rvos_select.selectors.dervos.losses import class_losses
from rvos_select.selectors.dmvs.masks import mask_logits, pair_losses, point_values
from rvos_select.selectors.matching import REFERRED, Matches, MatchRule, TrackCosts, match_tracks
from rvos_select.training.optim import decay_groups
from rvos_select.tuning.refiner_images import ImageBatch
from rvos_select.tuning.refiner_settings import RefinerSettings

ALONG_TIME = (
    "transformer_time_self_attention_layers.",
    "conv_short_aggregate_layers.",
    "conv_norms.",
    "activation_proj.",
)
"""The refiner's tensors along time: the attention, the convolutions with the norms behind them, and the weights of the mean."""


class LiveTracks(NamedTuple):
    """scores: S_f float32 (B, N, 1, 2); mask_embed: float32 (B, N, Cm); mask_features: float32 (B, h, w, Cm), without a gradient."""

    scores: Tensor
    mask_embed: Tensor
    mask_features: Tensor


class LiveDervos:
    """The frozen segmenter, referring tracker and BEiT-3, and the refiner and TAIS that are trained.

    trained: name -> parameter, "refiner.…" under its released name or "tais.…". Raises InputError if a checkpoint cannot be loaded.
    """

    def __init__(self, settings: RefinerSettings) -> None:
        self.settings, self.device = settings, device()
        self.segmenter, self.head = load_dvis(settings.dvis)
        self.beit3 = load(settings.beit3.checkpoint, settings.config.side)
        channels = {
            "token_channels": self.head.refiner.channels,
            "word_channels": self.beit3.sizes.width,
            "map_channels": self.head.refiner.mask_channels,
        }
        self.config = build(DervosConfig, {**settings.config.model_dump(), **channels}, "config")
        torch.manual_seed(settings.seed)
        self.selector = Dervos(self.config).to(self.device)
        for name, parameter in self.head.refiner.named_parameters():
            parameter.requires_grad_(settings.train_refiner == "all" or not name.startswith(ALONG_TIME))
        parts = {PREFIX: self.head.refiner, "tais.": self.selector.tais}
        self.parameters = {prefix + name: p for prefix, part in parts.items() for name, p in part.named_parameters()}
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}

    def digests(self) -> dict[str, str]:
        """File or name -> digest of what training starts from: Mask2Former, DVIS++'s head, BEiT-3. Of the weights as they are now."""
        return {**self.segmenter.weight_hashes(), **head_hash(self.head), "beit3": digest(self.beit3)}

    def optimizer(self) -> torch.optim.AdamW:
        """AdamW over what is trained, without weight decay on norms and embeddings."""
        decay = self.settings.weight_decay
        groups = [group for part in (self.head.refiner, self.selector.tais) for group in decay_groups(part, decay)]
        own = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        return torch.optim.AdamW([group for group in own if group["params"]], lr=self.settings.lr)

    def __call__(self, batch: ImageBatch) -> LiveTracks:
        """The scores and masks of all queries of the images."""
        with torch.no_grad():
            frames = self.segmenter.segment(batch.pixels)
            # Tensors of inference mode cannot be kept for the way back.
            q, features = frames.q.clone()[:, None], frames.mask_features.permute(0, 2, 3, 1).clone()
            queries, raw = self.head.reid(q)
            tracked = self.head.tracker(queries, raw)
            pixels = normalise_pixels(batch.frames)
            with self.selector.autocast(self.device):
                understood = self.beit3(pixels, batch.ids, batch.word_mask)
            size = self.settings.side
            maps = square_geometry((size, size), size).pool(features, self.settings.pool).flatten(1, 2)[:, None]
        embeds = self.head.refiner.refine(tracked.embeds, raw)
        b, n = embeds.shape[0], embeds.shape[2]
        real = torch.ones(b, n, dtype=torch.bool, device=embeds.device)
        scores = self.selector.score(
            embeds.transpose(1, 2),
            maps,
            understood.vision[:, None],
            understood.words[:, None],
            batch.word_mask,
            batch.motion_words,
            real,
            real[:, :1],
            torch.zeros(b, 1, dtype=torch.long, device=embeds.device),
            batch.is_word,
        )
        return LiveTracks(scores, self.head.refiner.mask_embed(embeds)[:, 0], features)

    def losses(self, tracks: LiveTracks, truth: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """loss = class_weight · class + bce_weight · bce + dice_weight · dice; matched_iou, of the matched pairs, has no gradient.

        class: the mean over the images; bce, dice: the means over all matched pairs of a track and an object. truth: of each image,
        as in `TuneImage`.
        """
        own = self.settings
        matches = match_points(tracks, truth, own.points, self.config)
        labels = torch.stack([match.labels for match in matches]).to(tracks.scores.device)
        real = labels.new_ones(len(labels), 1, dtype=torch.bool)
        value = class_losses(tracks.scores, labels, real, self.config.no_object_weight).mean()
        bce = dice = tracks.mask_embed.new_zeros(())
        for embed, features, masks, match in zip(tracks.mask_embed, tracks.mask_features, truth, matches):
            if len(match.tracks):
                logits = mask_logits(embed[match.tracks.to(embed.device)], features[None])
                each = pair_losses(logits, masks, match.objects.tolist(), own.points)
                bce, dice = bce + each[0], dice + each[1]
        pairs = max(sum(len(match.tracks) for match in matches), 1)
        bce, dice = bce / pairs, dice / pairs
        loss = self.config.class_weight * value + own.bce_weight * bce + own.dice_weight * dice
        iou = torch.cat([match.iou for match in matches])
        matched_iou = iou.mean() if len(iou) else torch.zeros(())
        return {"loss": loss, "class": value, "bce": bce, "dice": dice, "matched_iou": matched_iou}


@torch.no_grad()
def match_points(tracks: LiveTracks, truth: tuple[Tensor, ...], count: int, config: DervosConfig) -> list[Matches]:
    """The matching of each image: cost_bce · BCE + cost_dice · Dice at `count` points, less cost_class · p_n."""
    rule = MatchRule(config.match, config.positive_iou, config.least_iou, config.duplicate_iou, config.cost_class)
    out = []
    for scores, embed, features, masks in zip(tracks.scores, tracks.mask_embed, tracks.mask_features, truth):
        logits, targets = point_values(embed, features[None], masks, count)
        both = config.cost_bce * bce_costs(logits, targets) + config.cost_dice * dice_costs(logits, targets)
        shared = logits.sigmoid() @ targets.T
        iou = shared / (logits.sigmoid().sum(1)[:, None] + targets.sum(1)[None] - shared).clamp(min=1e-12)
        costs = TrackCosts(both.cpu(), iou.cpu(), torch.arange(len(masks)))
        referred = scores[:, 0].float().softmax(-1)[:, REFERRED].cpu()
        out.append(match_tracks(costs, referred, rule))
    return out


def set_mode(live: LiveDervos) -> None:
    """Dropout in TAIS's projection of words; the refiner has none."""
    live.selector.tais.train()


def parameters(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
