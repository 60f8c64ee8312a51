"""DeRVOS (CVPR 2026): a choice among the consistent tracks of a frozen DVIS++, with a frozen BEiT-3.

config    its settings
selector  the class that training and prediction call
tais      tracks, mask features, patches and words to scores
layers    its attention layers
losses    labels by matching, and the loss of classes
beit3     the frozen encoder of frames and expressions, run online
caches    what the caches must hold
"""

from rvos_select.selectors.dervos.config import DervosConfig
from rvos_select.selectors.dervos.selector import Dervos, dilated

__all__ = ["Dervos", "DervosConfig", "dilated"]
