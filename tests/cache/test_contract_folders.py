"""The temporary folders of contract checks."""

from __future__ import annotations

import gc
import warnings

from rvos_cache.contracts.folders import folder_of


class Owner:
    """An object that can be referred to weakly."""


def test_a_folder_lives_as_long_as_its_owner_and_goes_without_a_word() -> None:
    owner, other = Owner(), Owner()
    folder, kept = folder_of(owner), folder_of(other)
    (folder / "sub").mkdir()
    assert folder.is_dir() and folder != kept
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del owner
        gc.collect()
    assert not folder.exists() and kept.is_dir()
    assert not [str(each.message) for each in caught if "rvos-contract" in str(each.message)]
