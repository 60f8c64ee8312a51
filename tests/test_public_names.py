"""Names of the released systems' parts that code outside this repository calls, with the parameters that it gives."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

NAMES = {
    "rvos_cache.soft_overlap": {"soft_overlap": ""},
    "rvos_cache.text.beit3": {"Beit3.from_official": "side", "Beit3Tokenizer.from_spm": "path"},
    "rvos_cache.trackers.dvis": {
        "DvisTracker": "", "ReidQueries.from_official": "", "ReferringTracker.from_official": "", "TemporalRefiner.from_official": "",
        "VitAdapter.from_official": "", "track_scores": "",
    },
    "rvos_cache.trackers.referdino": {
        "hf_state": "", "prune_decoder": "decoder hidden memory real reference shapes valid_ratios text text_mask keep score eps",
        "align": "queries text alpha confidence", "ReferDinoHead.from_official": "", "upsampled": "", "image_masks": "",
    },
    "rvos_cache.trackers.referdino_losses": {
        "Predicted": "logits boxes masks", "Truth": "boxes valid masks real", "match": "predicted truth costs",
        "losses": "predicted truth costs weights matched_by",
    },
    "rvos_select.selectors.dervos": {
        "DervosConfig": "", "Dervos.score": "q maps vision words word_mask motion_words track_mask frame_mask times",
    },
    "rvos_select.selectors.referdino": {"ReferDino": "", "ReferDinoConfig": "", "video_scores": "logits"},
    "rvos_select.selectors.referdino_losses": {"Predicted": "", "Truth": "", "match": "", "losses": ""},
    "rvos_select.selectors.sola": {"Sola.load_official": ""},
    "rvos_select.selectors.ssa": {"SsaConfig": "", "Ssa.load_official": "", "Ssa.official": ""},
    "rvos_select.selectors.ssa_losses": {
        "Found": "frame_logits frame_masks video_logits mask_embed mask_features frame_embed clip_embed",
        "costs": "logits masks truth points config", "losses": "",
    },
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_the_name_is_there_with_its_parameters(module: str, name: str) -> None:
    value = import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    given = NAMES[module][name].split()
    parameters = [parameter for parameter in inspect.signature(value).parameters if parameter != "self"]
    assert set(given) <= set(parameters)
