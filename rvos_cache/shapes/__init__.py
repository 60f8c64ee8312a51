"""Moving shapes: a generated dataset in MeViS's layout whose sentences describe motion."""

from rvos_cache.shapes.write import make_video, write_shapes

__all__ = ["make_video", "write_shapes"]
