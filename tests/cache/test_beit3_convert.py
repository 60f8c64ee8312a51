"""A released BEiT-3 is converted whole: every tensor is used or listed, and what does not fit is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_beit3 import GRID, HEADS, LAYERS, LONGEST, MASK_TOKEN, SPM, TOKENS, VOCABULARY, WIDTH, official_tensors, weight

from rvos_cache.cli import cli
from rvos_cache.errors import InputError
from rvos_cache.text.beit3 import Beit3, load, load_tokenizer
from rvos_cache.text.beit3.convert import Conversion, convert_beit3

PREFIX = "beit3."


def convert(tensors: dict[str, Any], folder: Path, spm: Path = SPM) -> Conversion:
    torch.save({"model": tensors}, folder / "beit3.pth")
    return convert_beit3(folder / "beit3.pth", spm, folder / "out")


def test_the_command(tmp_path: Path) -> None:
    tensors = official_tensors() | {name: weight(name, shape) for name, shape in HEADS.items()}
    torch.save({"model": tensors}, tmp_path / "beit3_tiny.pth")
    out = tmp_path / "BEIT3"
    done = CliRunner().invoke(cli, ["convert-beit3", str(tmp_path / "beit3_tiny.pth"), str(SPM), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"width {WIDTH} and {LAYERS} layers, positions of {GRID}x{GRID} patches, {TOKENS} tokens" in done.output
    assert done.output.count("not read by the encoder: ") == len(HEADS) + 1
    assert {path.name for path in out.iterdir()} == {"config.json", "conversion.json", "model.safetensors", "tokenizer.json"}
    stored, unread = load_file(out / "model.safetensors"), sorted([*HEADS, MASK_TOKEN])
    assert stored.keys() == {name.removeprefix(PREFIX) for name in official_tensors().keys() - {MASK_TOKEN}}
    assert all(torch.equal(tensor, tensors[PREFIX + name]) for name, tensor in stored.items())
    assert json.loads((out / "conversion.json").read_text()) == {
        "source": "beit3_tiny.pth",
        "sha256": hashlib.sha256((tmp_path / "beit3_tiny.pth").read_bytes()).hexdigest(),
        "tokenizer": "beit3.spm",
        "tokenizer_sha256": hashlib.sha256(SPM.read_bytes()).hexdigest(),
        "tensors": len(stored),
        "unread": unread,
    }
    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "beit3", "width": WIDTH, "layers": LAYERS, "vocabulary": VOCABULARY, "grid": GRID, "longest": LONGEST,
    }  # fmt: skip
    assert load(str(out)).sizes.layers == LAYERS and len(load_tokenizer(str(out))) == TOKENS


@pytest.mark.usefixtures("on_cpu")
def test_other_sizes_and_half_precision_are_converted(tmp_path: Path) -> None:
    """Tensors of a safetensors file, in float16."""
    tensors = {name: tensor.half() for name, tensor in official_tensors(128, layers=3, grid=5).items()}
    save_file(tensors, tmp_path / "beit3.safetensors")
    converted = convert_beit3(tmp_path / "beit3.safetensors", SPM, tmp_path / "out")
    assert (converted.sizes.width, converted.sizes.layers, converted.sizes.grid) == (128, 3, 5)
    model = load(str(tmp_path / "out"))
    assert model.side == 80 and all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.class_token, tensors["beit3.vision_embed.cls_token"].float())


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    tensors = official_tensors()
    one, two = "encoder.layer_norm.A.weight", "encoder.layer_norm.B.weight"
    tensors[PREFIX + one] = tensors[PREFIX + two]
    convert(tensors, tmp_path)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored[one], stored[two]) and torch.equal(stored[one], tensors[PREFIX + two])


def test_each_missing_tensor_is_named(tmp_path: Path) -> None:
    whole = official_tensors(layers=1)
    for name in whole.keys() - {MASK_TOKEN}:
        with pytest.raises(InputError, match=f"'{name}' is missing; give a checkpoint of BEiT-3"):
            without(whole, name)
    assert without(whole, MASK_TOKEN).sizes.layers == 1


def without(tensors: dict[str, Any], name: str) -> Beit3:
    return Beit3.from_official({other: tensor for other, tensor in tensors.items() if other != name})


def test_each_wrong_shape_is_an_error() -> None:
    whole = official_tensors(layers=1)
    for name in whole.keys() - {MASK_TOKEN}:
        # Numbers of words and of positions cannot be wrong by one, but for those of patches.
        axis = 1 if name in ("beit3.text_embed.weight", "beit3.encoder.embed_positions.B.weight") else 0
        longer = torch.cat([whole[name], whole[name].narrow(axis, 0, 1)], axis)
        with pytest.raises(InputError, match=r"give a checkpoint of BEiT-3"):
            Beit3.from_official(whole | {name: longer})
        with pytest.raises(InputError, match=rf"{name}|the width"):
            Beit3.from_official(whole | {name: whole[name][None]})


def test_an_unknown_tensor_is_named_and_no_folder_is_left(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"beit3\.pth: the tensor 'beit3\.encoder\.relative\.bias' is not one of BEiT-3's encoder"
    ):
        convert(official_tensors() | {"beit3.encoder.relative.bias": torch.ones(3)}, tmp_path)
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    """One token more than word vectors, or so few that nine vectors would be spare."""
    for vocabulary in (TOKENS - 1, TOKENS + 9):
        with pytest.raises(InputError, match=f"has {TOKENS} tokens, the encoder {vocabulary} word vectors"):
            convert(official_tensors(vocabulary=vocabulary), tmp_path)
    assert convert(official_tensors(vocabulary=TOKENS), tmp_path).tokens == TOKENS


class Evil:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": official_tensors(), "args": Evil(tmp_path / "written")}, tmp_path / "beit3.pth")
    with pytest.raises(InputError, match="code in it is never run"):
        convert_beit3(tmp_path / "beit3.pth", SPM, tmp_path / "out")
    assert not (tmp_path / "written").exists() and not (tmp_path / "out").exists()


def test_what_is_not_there_or_there_already_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        convert_beit3(tmp_path / "none.pth", SPM, tmp_path / "out")
    convert(official_tensors(), tmp_path)
    with pytest.raises(InputError, match="already exists"):
        convert(official_tensors(), tmp_path)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    convert(official_tensors(), tmp_path)
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match="'elsewhere': there is no such folder, nor one in RVOS_CHECKPOINTS; give the folder that"
    ):
        load("elsewhere")
    with pytest.raises(InputError, match="out: .* a multiple of 16 pixels, got 50"):
        load(str(out), 50)
    config = (out / "config.json").read_text()
    for content, message in (("{", "cannot be read as JSON"), (config.replace("64", "128"), "is not that of the weights")):
        (out / "config.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load(str(out))
    (out / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file; give the folder that rvos-cache convert-beit3"):
        load(str(out))
