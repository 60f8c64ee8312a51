"""DMVS (Fang et al., "Decoupled Motion Expression Video Segmentation", CVPR 2025).

config    its settings
selector  the class that training and prediction call
layers    motion expression encoder, motion query decoder, heads
masks     mask logits and losses at points
vita      VITA's frozen head
"""

from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.dmvs.selector import Dmvs

__all__ = ["Dmvs", "DmvsConfig"]
