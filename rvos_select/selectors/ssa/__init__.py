"""SSA (Pan et al., "Semantic and Sequential Alignment for RVOS", CVPR 2025).

config          its settings
selector        the class that training and prediction call
blocks          attention, feed-forward layers, sine positions
adapter         a stage of CLIP meets the sentence and its words
pixel_decoder   stages of CLIP to maps
frame_decoder   maps to queries of each frame
video           queries of frames to trajectories, to queries of the video
live            frames to queries and masks, with frozen CLIP
losses          of the live form
cached          tracks with pooled CLIP features to scores
cached_losses   of the cached form
names           tensors of the released checkpoint
"""

from rvos_select.selectors.ssa.config import SsaConfig
from rvos_select.selectors.ssa.selector import Ssa

__all__ = ["Ssa", "SsaConfig"]
