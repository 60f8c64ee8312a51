"""SAM 2 (Ravi et al. 2024) as a tracker: SOLA's stage one. Prompts of three origins are tracked through the whole video."""
