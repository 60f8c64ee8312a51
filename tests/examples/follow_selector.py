"""Queries that follow the tokens: each starts as a track and goes on, frame by frame, as the track with the nearest token."""

import torch
from torch import nn

from rvos_select import Scored, Selector


class FollowSelector(Selector):
    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.token_channels, config.word_channels)

    def frame_logits(self, batch):
        words = (batch.words * batch.word_mask[..., None]).sum(1) / batch.word_mask.sum(1, keepdim=True)
        return (self.layer(batch.tokens) * words[:, None, None]).sum(-1)  # (B, N, T)

    def forward(self, batch):
        frames = batch.frame_mask[:, None]
        return (self.frame_logits(batch) * frames).sum(2) / frames.sum(2)

    def infer(self, video):
        batch = video.batch()
        candidates = batch.track_mask
        parts = [torch.arange(candidates.shape[1], device=candidates.device).expand(candidates.shape)]  # (B, Q), Q = N
        for t in range(1, video.frames):
            distances = torch.cdist(batch.tokens[:, :, t - 1], batch.tokens[:, :, t])  # (1, N, N)
            nearest = distances.masked_fill(~candidates[:, None], torch.inf).argmin(2)  # (B, N)
            parts.append(nearest.gather(1, parts[-1]))
        parts = torch.stack(parts, 2)  # (B, Q, T)
        logits = self.frame_logits(batch).gather(1, parts).mean(2)
        yield Scored(batch, logits, parts=parts.masked_fill(~candidates[..., None], -1))
