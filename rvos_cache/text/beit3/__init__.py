"""A frozen BEiT-3: frames and sentences together, or sentences alone.

Wang et al., "Image as a Foreign Language: BEiT Pretraining for Vision and Vision-Language Tasks", CVPR 2023; code:
github.com/microsoft/unilm/tree/master/beit3.
"""

from rvos_cache.text.beit3.checkpoint import digest, load, load_tokenizer
from rvos_cache.text.beit3.network import Beit3, Beit3Output, Beit3Sizes, normalise_pixels
from rvos_cache.text.beit3.tokenizer import Beit3Tokenizer

__all__ = ["Beit3", "Beit3Output", "Beit3Sizes", "Beit3Tokenizer", "digest", "load", "load_tokenizer", "normalise_pixels"]
