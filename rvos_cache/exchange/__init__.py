"""Import from and export to other programs: SOLA's released files, masks of any tracker, mirrored caches. One file each."""
