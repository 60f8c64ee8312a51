"""Contract tests of plugins: the same functions check built-in parts in the test suite and a user's class in check-tracker.

checks           one check and its result
scene            a small synthetic video and dataset
tracker_checks   what every tracker must do
"""

from rvos_cache.contracts.checks import CheckResult
from rvos_cache.contracts.tracker_checks import TRACKER_CHECKS, TrackerCase, run_tracker_checks

__all__ = ["TRACKER_CHECKS", "CheckResult", "TrackerCase", "run_tracker_checks"]
