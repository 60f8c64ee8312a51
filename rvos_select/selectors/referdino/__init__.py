"""Stage two of ReferDINO (Liang et al., ICCV 2025): scores of the tracks that its frozen or tuned upstream makes.

config         its settings
selector       the class that training and prediction call
tracks         queries of each frame and their order
box            the box head
cached_losses  losses of cached queries
"""

from rvos_select.selectors.referdino.config import ReferDinoConfig
from rvos_select.selectors.referdino.selector import ReferDino, video_scores

__all__ = ["ReferDino", "ReferDinoConfig", "video_scores"]
