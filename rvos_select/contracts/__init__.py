"""Contract tests of selectors: the same functions check built-in ones in the test suite and a user's class in check-selector.

caches            small caches to train on, with the features that a selector requires
selector_case     a selector, and the caches that the checks run it on
selector_checks   what every selector must do
reordered         a video whose tracks are in another order
"""

from rvos_select.contracts.caches import parse_spec, write_caches
from rvos_select.contracts.selector_case import SelectorCase
from rvos_select.contracts.selector_checks import SELECTOR_CHECKS, run_selector_checks

__all__ = ["SELECTOR_CHECKS", "SelectorCase", "parse_spec", "run_selector_checks", "write_caches"]
