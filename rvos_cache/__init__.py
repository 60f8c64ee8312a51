"""Stage one: frozen trackers and text encoders run once over a dataset; what they see goes to a Zarr cache."""

__version__ = "0.1.0"
