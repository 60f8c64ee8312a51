"""Moving shapes: a generated data set in MeViS's layout whose sentences are about motion."""

from rvos_cache.shapes.write import make_video, write_shapes

__all__ = ["make_video", "write_shapes"]
