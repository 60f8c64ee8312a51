"""A GroundingDINO checkpoint small enough to write in a test: model, tokenizer and image processor in one folder."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

WORDS = ("the", "a", "red", "blue", "square", "dog", "bird", "moving", "left", "right", "that", "is", "and", "then")
MAX_LENGTH = 32
"""The model's limit of tokens, special ones included."""


def tiny_grounding_dino(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random model of 64 channels, 20 queries and frames of short side 64, long <= 96. changes: to its configuration."""
    import torch
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoProcessor, SwinConfig
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    tokenizer = tiny_bert_tokenizer()
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(str(folder))
    swin = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=2 * MAX_LENGTH,
    )  # fmt: skip
    small = {
        "backbone_config": swin, "text_config": bert, "d_model": 64, "num_queries": 20, "max_text_len": MAX_LENGTH,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GroundingDinoForObjectDetection(GroundingDinoConfig(**{**small, **changes}))
        # With the default initialisation, boxes do not move and no text changes a score.
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=0.5 / tensor[0].numel() ** 0.5)
            elif "vision_param" in name or "text_param" in name:
                torch.nn.init.constant_(tensor, 0.5)
            else:
                torch.nn.init.normal_(tensor, mean=float("norm" in name and "weight" in name), std=0.1)
        model.save_pretrained(str(folder))
    return folder


def tiny_bert_tokenizer() -> Any:
    """A WordPiece tokenizer of single letters and WORDS, with BERT's ids of the tokens that GroundingDINO compares."""
    from transformers import BertTokenizer

    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    free_ids = (number for number in range(2000) if number not in set(vocabulary.values()))
    pieces = [*WORDS, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *string.digits, ",", "-"]
    vocabulary.update(zip(pieces, free_ids))
    used = set(vocabulary.values())
    vocabulary.update({f"[unused{number}]": number for number in range(1030) if number not in used})
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)
