"""SOLA: selection of tracks by object-language alignment (https://github.com/cvlab-kaist/SOLA).

config    its settings
selector  the class that training and prediction call
layers    motion encoder, alignment layers, norms with masks
kernels   the norms as kernels of a GPU, where Triton is installed
"""

from rvos_select.selectors.sola.config import SolaConfig
from rvos_select.selectors.sola.selector import Aligned, Sola

__all__ = ["Aligned", "Sola", "SolaConfig"]
