"""The pixel values of the input of Mask2Former in detectron2."""

from __future__ import annotations

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""MEAN and DEVIATION of red, green and blue from 0 to 255, as in detectron2's configurations (PIXEL_MEAN, PIXEL_STD)."""
