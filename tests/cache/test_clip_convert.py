"""The converted CLIP gives the outputs that open_clip's own code gave (tests/golden/make_clip.py); unfit tensors are named."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_clip import (
    DEPTHS,
    IMAGE_HEAD,
    LAYERS,
    PROJECTION,
    TOKENS,
    WIDTHS,
    golden,
    open_clip_tensors,
    ssa_tensors,
    write_hub_clip,
    write_merges,
    write_tiny_clip,
)
from torch import Tensor

from rvos_cache.cli import cli
from rvos_cache.clip import cleaning
from rvos_cache.clip.convert import Conversion, clip_tensors, convert_clip, image_head, image_tower, split_parts, text_tower
from rvos_cache.clip.names import HEAD_NAMES
from rvos_cache.clip.towers import (
    encode_texts,
    load_image_head,
    load_image_tower,
    load_text_tower,
    load_tokenizer,
    tokenize,
    tower_digest,
)
from rvos_cache.clip.vocabulary import clip_tokenizer
from rvos_cache.errors import InputError

pytestmark = [pytest.mark.usefixtures("file_on_cpu"), pytest.mark.filterwarnings("ignore:ftfy is not installed")]
SENTENCES = bytes(golden()["input.sentences"].tolist()).decode().split("\0\0")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CLIP whose outputs were recorded: two heads in its text tower."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip") / "CLIP", text_width=128))


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_merges(tmp_path_factory.mktemp("merges") / "merges.txt.gz"))


def convert(tensors: dict[str, Any], folder: Path, merges: str) -> Conversion:
    torch.save(tensors, folder / "clip.pt")
    return convert_clip(folder / "clip.pt", folder / "out", merges)


def test_image_stages_are_those_of_open_clip(wide: str) -> None:
    tower = load_image_tower(wide)
    with torch.no_grad():
        maps = tower.embeddings(golden()["input.images"])
        for i, stage in enumerate(tower.encoder.stages):
            maps = stage(maps)
            assert (maps - golden()[f"output.stage{i}"]).abs().max() < 1e-4, i
    assert not tower.training and not any(parameter.requires_grad for parameter in tower.parameters())


def test_the_image_head_is_that_of_open_clip(wide: str) -> None:
    """Average over pixels, norm, MLP with GELU. Source: timm's NormMlpClassifierHead and open_clip's TimmModel."""
    head = load_image_head(wide)
    pooled = golden()["output.stage3"].mean((2, 3))
    x = torch.nn.functional.layer_norm(pooled, pooled.shape[1:], head["norm.weight"], head["norm.bias"], 1e-6)
    x = torch.nn.functional.gelu(x @ head["fc1.weight"].T + head["fc1.bias"]) @ head["fc2.weight"].T
    assert (x - golden()["output.image_features"]).abs().max() < 1e-4
    assert float(head["logit_scale"]) == pytest.approx(math.log(100.0))


def test_words_and_sentences_are_those_of_open_clip(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "_ftfy", lambda: None)
    texts = [SENTENCES[i] for i in golden()["input.few"].tolist()]
    words, lengths = encode_texts(load_text_tower(wide), load_tokenizer(wide), texts)
    assert words.shape == (len(texts), 77, PROJECTION) and words.dtype == torch.float32
    assert (words - golden()["output.words"]).abs().max() < 1e-4
    last = words[torch.arange(len(texts)), lengths - 1]
    assert (last - golden()["output.sentences"]).abs().max() < 1e-4


def test_the_last_word_is_the_text_embedding_of_transformers(wide: str) -> None:
    model, tokenizer = load_text_tower(wide), load_tokenizer(wide)
    words, lengths = encode_texts(model, tokenizer, SENTENCES[:6])
    with torch.no_grad():
        embeds = model(input_ids=torch.from_numpy(tokenize(tokenizer, SENTENCES[:6]).ids)).text_embeds
    assert (words[torch.arange(6), lengths - 1] - embeds).abs().max() < 1e-5


def test_tokens_of_odd_sentences_are_those_of_open_clip(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(wide)
    if cleaning.has_ftfy():
        assert tokenize(tokenizer, SENTENCES).ids.tolist() == golden()["output.ids"].tolist()
    monkeypatch.setattr(cleaning, "_ftfy", lambda: None)
    tokens = tokenize(tokenizer, SENTENCES)
    for text, one, expected in zip(SENTENCES, tokens.ids, golden()["output.ids_without_ftfy"]):
        assert one.tolist() == expected.tolist(), text
    # Sentences of the recording that ftfy leaves alone, with characters beyond ASCII among them.
    same = (golden()["output.ids"] == golden()["output.ids_without_ftfy"]).all(1)
    assert 10 < same.sum() < len(SENTENCES)


def test_the_token_0_counts_by_length(wide: str) -> None:
    tokens = tokenize(load_tokenizer(wide), ["!!", ""])
    assert tokens.ids[0, :3].tolist() == [TOKENS - 2, tokens.ids[0, 1], TOKENS - 1]
    assert tokens.lengths.tolist() == [3, 2] and not tokens.cut.any()
    (bang,) = tokenize(load_tokenizer(wide), ["a!b"]).ids[:, 2]
    # The tiny vocabulary merges no "!" with the end of a word: as a word it is token 256, inside one it is 0.
    assert bang == 256 and 0 in tokenize(load_tokenizer(wide), ["!$"]).ids[0, :3]


def test_a_long_sentence_ends_in_eot(wide: str) -> None:
    tokenizer = load_tokenizer(wide)
    tokens = tokenize(tokenizer, ["a " * 75, "a " * 76, "a " * 500])
    assert tokens.lengths.tolist() == [77] * 3 and tokens.cut.tolist() == [False, True, True]
    assert (tokens.ids[:, 76] == TOKENS - 1).all() and (tokens.ids[0] == tokens.ids[2]).all()


@pytest.mark.parametrize("form", ["bare", "state_dict", "module", "half", "safetensors", "text"])
def test_each_form_of_a_checkpoint_gives_the_same_folder(form: str, wide: str, merges: str, tmp_path: Path) -> None:
    tensors = open_clip_tensors(128)
    path = tmp_path / "clip.bin"
    if form == "safetensors":
        path = tmp_path / "clip.safetensors"
        save_file(tensors, path)
    elif form == "module":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    elif form == "state_dict":
        torch.save({"state_dict": tensors, "optimizer": {"state": {}}}, path)
    elif form == "half":
        torch.save({name: tensor.half() for name, tensor in tensors.items()}, path)
    elif form == "text":
        torch.save(
            {name if "visual" in name or name == "logit_scale" else f"text.{name}": t for name, t in tensors.items()}, path
        )
    else:
        torch.save(tensors, path)
    conversion = convert_clip(path, tmp_path / "out", merges)
    assert conversion == Conversion(WIDTHS, DEPTHS, LAYERS, PROJECTION, len(tensors), (), True)
    for file in ("image/model.safetensors", "text/model.safetensors", "head.safetensors"):
        expected, got = load_file(Path(wide) / file), load_file(tmp_path / "out" / file)
        assert expected.keys() == got.keys()
        for name, tensor in got.items():
            assert tensor.dtype == torch.float32
            assert torch.allclose(tensor, expected[name], atol=4e-3 if form == "half" else 0), name
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record == {"source": path.name, "tensors": len(tensors), "unread": [], "head": True}


def test_each_tensor_changes_the_folder(tmp_path: Path, merges: str) -> None:
    """Every tensor is filled with its own number, and every number must be in the folder."""
    numbered = {name: torch.full_like(tensor, i) for i, (name, tensor) in enumerate(open_clip_tensors().items())}
    convert(numbered, tmp_path, merges)
    stored = {
        float(number)
        for file in ("image/model.safetensors", "text/model.safetensors", "head.safetensors")
        for tensor in load_file(tmp_path / "out" / file).values()
        for number in tensor.unique()
    }
    assert {float(i) for i in range(len(numbered))} <= stored


@pytest.mark.parametrize("with_head", [False, True])
def test_a_checkpoint_of_ssa_gives_its_clip(with_head: bool, tmp_path: Path, merges: str) -> None:
    conversion = convert({"model": ssa_tensors(with_head)}, tmp_path, merges)
    assert conversion.unread == ("criterion.empty_weight", "resizer.fc.weight") and conversion.has_head is with_head
    expected = split_parts(open_clip_tensors())
    assert torch.equal(load_image_tower(str(tmp_path / "out")).state_dict()["encoder.stages.3.layers.0.pwconv2.weight"],
                       expected["image"]["encoder.stages.3.layers.0.pwconv2.weight"])  # fmt: skip
    if not with_head:
        with pytest.raises(InputError, match=r"head\.safetensors: no such file; convert open_clip's own checkpoint"):
            load_image_head(str(tmp_path / "out"))


def test_the_clip_of_ssa_alone_may_lack_the_head(tmp_path: Path, merges: str) -> None:
    alone = {name: tensor for name, tensor in ssa_tensors().items() if name.startswith("backbone")}
    conversion = convert(alone, tmp_path, merges)
    assert not conversion.has_head and conversion.unread == ()


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, merges: str) -> None:
    tensors = open_clip_tensors()
    with pytest.raises(InputError, match="two tensors have the same name"):
        convert({**tensors, "text.ln_final.weight": tensors["ln_final.weight"]}, tmp_path, merges)


def test_open_clip_without_its_head_is_not_whole(tmp_path: Path, merges: str) -> None:
    tensors = {name: tensor for name, tensor in open_clip_tensors().items() if not name.startswith(IMAGE_HEAD)}
    with pytest.raises(InputError, match=r"'visual\.trunk\.head\.norm\.weight' is missing"):
        convert(tensors, tmp_path, merges)


def read(tensors: dict[str, Tensor]) -> None:
    """What the conversion reads of a checkpoint, without writing."""
    used, _, _ = clip_tensors(tensors)
    parts = split_parts(used)
    image_tower(parts["image"])
    text_tower(parts["text"])
    image_head(parts["head"], used, is_ssa=False)


def test_each_missing_tensor_is_named() -> None:
    tensors = open_clip_tensors()
    # The first tensor of each kind in the last of its blocks: the kinds differ in more than numbers.
    kinds = {"".join(c for c in name if not c.isdigit()): name for name in tensors}
    for name in {*kinds.values(), *HEAD_NAMES}:
        with pytest.raises(InputError, match=f"'{name}' is missing") as caught:
            read({other: tensor for other, tensor in tensors.items() if other != name})
        assert "\n" not in str(caught.value)


def test_each_wrong_shape_is_an_error() -> None:
    tensors = open_clip_tensors()
    kinds = {"".join(c for c in name if not c.isdigit()): name for name in tensors}
    for name in kinds.values():
        for wrong in (tensors[name][..., None].repeat_interleave(2, -1), torch.zeros((3, 5, 2, 2, 2)), torch.zeros(0)):
            with pytest.raises(InputError) as caught:
                read({**tensors, name: wrong})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "visual.head.proj.weight",
        "visual.trunk.stages.0.blocks.0.extra",
        "visual.trunk.stages.0.downsample.0.weight",
        "visual.trunk.stages.1.downsample.2.weight",
        "transformer.resblocks.0.ls_1.gamma",
        "logit_bias",
        "visual.conv1.weight",
    ],
)
def test_an_unknown_tensor_is_named_and_no_folder_is_left(name: str, tmp_path: Path, merges: str) -> None:
    with pytest.raises(InputError, match=rf"clip\.pt: the tensor '{name}'"):
        convert({**open_clip_tensors(), name: torch.ones(2, 2)}, tmp_path, merges)
    assert os.listdir(tmp_path) == ["clip.pt"]


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, merges: str) -> None:
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        convert({"state_dict": Malicious(tmp_path / "ran")}, tmp_path, merges)
    assert os.listdir(tmp_path) == ["clip.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", r"not a gzip file of text"),
        (b"#version\na b\n", r"expected 500 lines of two parts of words after the first, for 1014 tokens; it has 1;"),
        (b"#version\n" + b"zz q\n" * 500, r"a merge has 'zz', which no line before makes"),
        (b"#version\n" + b"a b\n" * 500, r"two merges make the same token"),
    ],
)
def test_a_wrong_vocabulary_says_where_the_right_one_is(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bpe.gz").write_bytes(gzip.compress(content) if content.startswith(b"#") else content)
    with pytest.raises(InputError, match=rf"tokenizer '.*bpe\.gz': .*{message}.*wheel of open_clip_torch") as caught:
        convert(open_clip_tensors(), tmp_path, str(tmp_path / "bpe.gz"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_without_a_hub_the_default_tokenizer_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rvos_cache import pretrained

    monkeypatch.setattr(pretrained, "_hub_fault", lambda: "HF_HUB_OFFLINE is set")
    torch.save(open_clip_tensors(), tmp_path / "clip.pt")
    with pytest.raises(InputError, match=r"tokenizer 'openai/clip-vit-large-patch14': .*--tokenizer bpe_simple_vocab") as caught:
        convert_clip(tmp_path / "clip.pt", tmp_path / "out")
    assert "--set" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_folder_is_the_same(wide: str, merges: str, tmp_path: Path) -> None:
    hub = write_hub_clip(tmp_path / "hub", clip_tokenizer(merges, TOKENS, 77))
    convert(open_clip_tensors(), tmp_path, str(hub))
    one, two = load_tokenizer(wide), load_tokenizer(str(tmp_path / "out"))
    assert (tokenize(one, SENTENCES).ids == tokenize(two, SENTENCES).ids).all()
    with pytest.raises(InputError, match=r"it has 1014 tokens.*expected 900, 898 and 899 from the checkpoint"):
        clip_tokenizer(str(hub), 900, 77)
    for missing in ("bpe.gz", "./nowhere", "/no/where"):
        with pytest.raises(InputError, match=rf"tokenizer '{missing}': there is no such file or folder; give --tokenizer bpe"):
            clip_tokenizer(missing, 900, 77)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"tokenizer '.*empty': .*wheel of open_clip_torch"):
        clip_tokenizer(str(tmp_path / "empty"), 900, 77)


def test_the_text_tower_of_a_hub_folder_has_the_words_of_clip_model(merges: str, tmp_path: Path) -> None:
    from transformers import CLIPModel

    hub = str(write_hub_clip(tmp_path / "hub", clip_tokenizer(merges, TOKENS, 77)))
    texts = ["a red square", "!!", "a " * 90]
    model, tokenizer = load_text_tower(hub), load_tokenizer(hub)
    words, lengths = encode_texts(model, tokenizer, texts)
    assert words.shape == (3, 77, 12)
    with torch.no_grad():
        features = CLIPModel.from_pretrained(hub).get_text_features(input_ids=torch.from_numpy(tokenize(tokenizer, texts).ids))
    features = features if isinstance(features, Tensor) else features.pooler_output
    assert (words[torch.arange(3), lengths - 1] - features).abs().max() < 1e-5
    with pytest.raises(InputError, match=r"it has no folder 'image'; give the folder that rvos-cache convert-clip"):
        load_image_tower(hub)


def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    from text_fixtures import tiny_roberta

    folder = tiny_roberta(tmp_path, ["a dog"])
    with pytest.raises(InputError, match="its model is 'roberta', expected CLIP"):
        load_text_tower(str(folder))


def test_digests_name_the_tower(wide: str) -> None:
    image, text = load_image_tower(wide), load_text_tower(wide)
    digests = tower_digest(image, wide) | tower_digest(text, wide)
    assert digests.keys() == {"CLIP/image", "CLIP/text"} and len({*digests.values()}) == 2
    text.text_projection.weight[0, 0] += 1
    assert tower_digest(text, wide)["CLIP/text"] != digests["CLIP/text"]


def test_the_command_prints_what_it_converted_and_what_is_missing(tmp_path: Path, merges: str) -> None:
    torch.save({"model": ssa_tensors()}, tmp_path / "ssa.pth")
    arguments = ["convert-clip", str(tmp_path / "ssa.pth"), "--out", str(tmp_path / "out"), "--tokenizer", merges]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "widths 8/16/24/32 and depths 1/1/2/1, text tower of 2 layers, projection 16" in result.output
    assert "not read: 2 tensors that are no part of CLIP" in result.output
    assert "missing: the image head and logit_scale" in result.output
    assert ("ftfy is not installed" in result.output) is not cleaning.has_ftfy()
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, InputError) and "already exists" in str(again.exception)
    assert np.isfinite(load_image_tower(str(tmp_path / "out")).state_dict()["layernorm.weight"]).all()
