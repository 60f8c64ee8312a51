"""Live training of an upstream together with a selector that reads it, on frames instead of caches: stage 0 of DeRVOS."""

from rvos_select.tuning.refiner import tune_refiner
from rvos_select.tuning.refiner_settings import RefinerSettings

__all__ = ["RefinerSettings", "tune_refiner"]
