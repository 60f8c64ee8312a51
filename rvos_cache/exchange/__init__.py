"""Tracks from and for other programs: SOLA's released files, and any tracker's masks. One file per direction and format."""
