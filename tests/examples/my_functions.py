"""A label rule and an augmentation: functions that the training settings name."""

from dataclasses import replace

import numpy as np
import torch

from rvos_select.data.labels import mean_iou


def soft_iou(overlap, objects, threshold):
    """float32 (E, N): the mean IoU with the best object of each expression, and 0 up to the threshold."""
    quality = mean_iou(overlap)  # (N, A)
    best = np.array([quality[:, list(own)].max(axis=1, initial=0.0) for own in objects])
    return np.where(best > threshold, best, 0.0).astype(np.float32)


def darker(clip, generator):
    """Multiplies the pixels of a clip by one number between 0.5 and 1."""
    factor = 0.5 + 0.5 * torch.rand((), generator=generator)
    return replace(clip, pixels=(clip.pixels * factor).to(torch.uint8))
