"""Pictures and films as files: what a viewer shows as uint8 RGB frames, and masks as PNGs."""

from rvos_cache.media.films import VideoWriter, file_video
from rvos_cache.media.frames import folder_video, open_video
from rvos_cache.media.images import read_image
from rvos_cache.media.mask_png import read_mask_png, write_mask_png

__all__ = ["VideoWriter", "file_video", "folder_video", "open_video", "read_image", "read_mask_png", "write_mask_png"]
