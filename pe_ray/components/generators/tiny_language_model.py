"""A tiny language model with random weights, saved as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_END = 256


def save_language_model(folder: Path, *, chat: bool = False) -> str:
    """Write a random Llama that reads and writes bytes, and prefers some; return its folder.

    chat: its tokenizer lays out conversations.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate([*letters, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    given: dict[str, Any] = {"eos_token": "<end>"}
    if chat:
        given["chat_template"] = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_END + 1,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=_END,
        eos_token_id=_END,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight *= 20
    network.save_pretrained(folder)
    return str(folder)
