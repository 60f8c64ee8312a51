"""A text checkpoint small enough to write in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def tiny_roberta(folder: Path, sentences: Sequence[str], max_length: int = 40) -> Path:
    """A random RoBERTa of 32 channels whose byte-level tokenizer is trained on `sentences`; takes `max_length` tokens."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(sentences, vocab_size=400, special_tokens=special)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(str(folder), model_max_length=max_length)
    tokenizer.save_pretrained(str(folder))
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=max_length + 8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RobertaModel(config).save_pretrained(str(folder))
    return folder
