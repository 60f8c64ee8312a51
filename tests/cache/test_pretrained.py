"""Checkpoints are loaded completely or not at all, and the same weights have the same digest."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file, save_file
from text_fixtures import tiny_roberta
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from rvos_cache.errors import InputError
from rvos_cache.pretrained import check_model_type, load_failure, load_frozen, load_processor, weights_digest
from rvos_cache.trackers.vita.checkpoint import load_head


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_roberta(tmp_path, ["the bird flying away"])


def without(checkpoint: Path, prefix: str) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    remaining = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(remaining) < len(tensors)
    save_file(remaining, path, {"format": "pt"})


def test_a_checkpoint_that_lacks_a_weight_is_not_filled_with_random_ones(checkpoint: Path) -> None:
    without(checkpoint, "encoder.layer.1.output")
    with pytest.raises(InputError, match=r"no weight 'encoder\.layer\.1\.output"):
        load_frozen(AutoModel, str(checkpoint), "text checkpoint")


def test_a_weight_that_nobody_reads_may_be_missing_and_the_digest_stays(checkpoint: Path) -> None:
    without(checkpoint, "pooler.")
    first, second = (
        weights_digest(load_frozen(AutoModel, str(checkpoint), "text checkpoint", unread=("pooler.",)), str(checkpoint))
        for _ in range(2)
    )
    assert first == second and set(first) == {checkpoint.name}


def test_a_changed_weight_changes_the_digest(checkpoint: Path) -> None:
    before = weights_digest(load_frozen(AutoModel, str(checkpoint), "text checkpoint"), str(checkpoint))
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    assert weights_digest(load_frozen(AutoModel, str(checkpoint), "text checkpoint"), str(checkpoint)) != before


@pytest.mark.parametrize(("damage", "setting"), [("config.json", "checkpoint"), ("model.safetensors", "other_checkpoint")])
def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, damage: str, setting: str) -> None:
    path = checkpoint / damage
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=f"cannot be loaded .* needs: --set {setting}=FOLDER$") as caught:
        load_frozen(AutoModel, str(checkpoint), "text checkpoint", setting=setting)
    assert "\n" not in str(caught.value)


def test_another_model_and_a_run_around_the_model_are_named(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run / "upstream")
    kind = json.loads((checkpoint / "config.json").read_text())["model_type"]
    check_model_type(str(checkpoint), kind, "text checkpoint")
    check_model_type("owner/name", kind, "text checkpoint")
    with pytest.raises(InputError, match=f"'{run}': this folder is a run, .* folder upstream; give --set own={run}/upstream$"):
        check_model_type(f"{run}", kind, "text checkpoint", "own")
    with pytest.raises(InputError, match=f"of a model '{kind}', expected 'grounding-dino'; --set checkpoint=FOLDER$"):
        check_model_type(str(checkpoint), "grounding-dino", "text checkpoint")


def test_a_mistyped_folder_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvos_cache.pretrained._hub_fault", lambda: "the hub is away")
    with pytest.raises(
        InputError, match="cannot be loaded .there is no folder of this name, and from the hub: .* .the hub is away"
    ):
        load_frozen(AutoModel, "weights/mistyped", "text checkpoint")
    # No name of the hub.
    for name in ("a/weights/mistyped", "weights/"):
        with pytest.raises(InputError, match="there is no such folder, nor one in RVOS_CHECKPOINTS; --set checkpoint=FOLDER"):
            load_frozen(AutoModel, name, "text checkpoint")


def test_a_message_of_a_library_is_not_broken_off(tmp_path: Path) -> None:
    """Its first line may end in a colon, before a list."""
    reason = load_failure(ValueError("one of these is needed: \n(1) a file,\n(2) another"), str(tmp_path))
    assert reason == "one of these is needed: (1) a file, (2) another"
    assert load_failure(ValueError("first\nsecond"), str(tmp_path)) == "first"


def test_weights_in_a_pickle_are_not_read(checkpoint: Path) -> None:
    import torch

    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        load_frozen(AutoModel, str(checkpoint), "text checkpoint")


def test_a_wrong_checkpoint_is_one_line_without_a_report(checkpoint: Path) -> None:
    without(checkpoint, "encoder.layer.1.output")
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    transformers_logging.add_handler(handler)
    try:
        with pytest.raises(InputError, match="would be random"):
            load_frozen(AutoModel, str(checkpoint), "text checkpoint")
        assert log.getvalue() == ""
        AutoModel.from_pretrained(str(checkpoint))
        # Later loads in the same process log as before.
        assert "encoder.layer.1.output" in log.getvalue()
    finally:
        transformers_logging.remove_handler(handler)


def test_a_weight_of_another_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.0.output.dense.weight"] = tensors["encoder.layer.0.output.dense.weight"][:, :5].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"encoder\.layer\.0\.output\.dense\.weight' has shape \(32, 5\), .* expects \(32, 64\)"):
        load_frozen(AutoModel, str(checkpoint), "text checkpoint")


@pytest.mark.parametrize("load", [load_frozen, load_processor])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="there is no such folder, nor one in RVOS_CHECKPOINTS; --set other=FOLDER$"):
        load(AutoModel, str(tmp_path / "nowhere"), "text checkpoint", setting="other")


class FakeModel:
    """A model class that records the arguments of `from_pretrained`."""

    local_only: ClassVar[list[bool]] = []

    @classmethod
    def from_pretrained(cls, checkpoint: str, local_files_only: bool) -> None:
        cls.local_only.append(local_files_only)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that answers; the cached state of the hub is cleared."""
    from rvos_cache.pretrained import _hub_fault

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(FakeModel, "local_only", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = HTTPServer(("127.0.0.1", 0), Nothing)
    Thread(target=server.serve_forever, daemon=True).start()
    _hub_fault.cache_clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    _hub_fault.cache_clear()


def test_a_hub_that_answers_is_used(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    load_processor(FakeModel, "owner/name", "text checkpoint")
    assert FakeModel.local_only == [False]


def test_without_a_hub_only_local_files_are_read(hub: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    load_processor(FakeModel, "owner/name", "text checkpoint")
    load_processor(FakeModel, str(checkpoint), "text checkpoint")
    assert FakeModel.local_only == [True, True]
    with pytest.raises(InputError, match=r"'owner/name' cannot be loaded .*\[http://127.0.0.1:9: \w+: "):
        load_frozen(AutoModel, "owner/name", "text checkpoint")


@pytest.mark.parametrize("answers", [True, False])
def test_vita_s_head_is_loaded_from_where_its_checkpoint_is(hub: str, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def cached_file(checkpoint: str, name: str, local_files_only: bool) -> None:
        calls.append((checkpoint, name, local_files_only))
        raise OSError("not there")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub if answers else "http://127.0.0.1:9")
    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    with pytest.raises(
        InputError,
        match=r"'owner/name': vita_head.safetensors cannot be read \(there is no .*: not there( \[http.*\])?\); make the folder with",
    ):
        load_head("owner/name")
    assert calls == [("owner/name", "vita_head.safetensors", not answers)]
    with pytest.raises(InputError, match="there is no such folder, nor one in RVOS_CHECKPOINTS; make it with rvos-cache convert"):
        load_head("/nowhere/vita")
    assert len(calls) == 1


def test_a_checkpoint_that_moved_is_found_by_its_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "there/words")
    checkpoint_name = str(folder)
    digest = weights_digest(load_frozen(AutoModel, checkpoint_name, "text checkpoint"), checkpoint_name)
    moved = folder.rename(tmp_path / "words")
    with pytest.raises(InputError, match="no such folder, nor one in RVOS_CHECKPOINTS"):
        load_frozen(AutoModel, checkpoint_name, "text checkpoint")
    monkeypatch.setenv("RVOS_CHECKPOINTS", f"{tmp_path / 'empty'}{os.pathsep}{moved.parent}")
    for name in (checkpoint_name, "owner/words"):
        assert weights_digest(load_frozen(AutoModel, name, "text checkpoint"), name) == digest
