"""Mask2Former in transformers, frozen: what the trackers built on it share.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022.
"""
