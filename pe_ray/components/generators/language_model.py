"""Paraphrases from a causal language model that transformers loads.

Imports torch: import this module where the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from pe_ray.components.generators.caption_options import LanguageModelOptions
from pe_ray.components.inference import DTYPES, infer_in, pick_device
from pe_ray.components.weights import fetch_checkpoint, load_network, loading_errors
from pe_ray.errors import InputError
from pe_ray.plugins.seeds import Seeds, row_seeds, uniforms

_FIELD = "generator.captions.paraphrase.checkpoint"
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_CHUNK = 16  # rows of one call
_BUCKET = 32  # tokens; instructions are filled up to a multiple
_TOP = 50  # likeliest tokens that are drawn from


class LanguageModel:
    """A causal language model; each row's tokens are drawn by its own seed.

    Token t is the largest of log p / temperature + Gumbel noise, among the 50 likeliest (the
    Gumbel-max trick). The noise is a function of the row's seed, t and the token. Rows are computed
    16 at a time, filled up, in instructions of the same filled-up length. So a row has the same
    text in any batch on one device, as far as tried; another device or number of threads rounds
    differently, and may now and then choose another token.
    """

    def __init__(self, options: LanguageModelOptions) -> None:
        self._options, self._device = options, pick_device()
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        with loading_errors(_FIELD, options.checkpoint):
            folder = fetch_checkpoint(_FIELD, options.checkpoint, options.revision, _FILES)
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **local)
            network = load_network(
                transformers.AutoModelForCausalLM,
                _FIELD,
                folder,
                dtype=DTYPES[options.precision],
                use_safetensors=True,
                **local,
            )
        self._network: Any = network.eval().to(self._device)
        end = network.generation_config.eos_token_id
        self._ends = {end} if isinstance(end, int) else {*(end or ())}
        if not self._encode("a photo"):
            raise InputError(
                f"{_FIELD}: {options.checkpoint}: its tokenizer knows no word; get a whole "
                "checkpoint"
            )
        self._room = getattr(network.config, "max_position_embeddings", None) or np.inf
        longest = max(len(self._encode(text)) for text in options.instructions)
        if _fill_up(longest) + options.max_tokens > self._room:
            raise InputError(
                f"generator.captions.paraphrase.max_tokens: {options.checkpoint} reads and writes "
                f"{self._room} tokens in all, so an instruction and an answer of "
                f"{options.max_tokens} don't fit; give fewer"
            )

    def write(self, instructions: Sequence[str], seeds: Seeds) -> list[str]:
        """Return the model's answer to each instruction; blank where it has no room for one."""
        encoded = [self._encode(text) for text in instructions]
        lengths = np.array([_fill_up(len(ids)) for ids in encoded], dtype=np.int64)
        fitting = lengths + self._options.max_tokens <= self._room
        answers = [""] * len(encoded)
        for length in np.unique(lengths[fitting]).tolist():
            rows = np.flatnonzero(lengths == length)
            for start in range(0, len(rows), _CHUNK):
                some = rows[start : start + _CHUNK]
                texts = self._generate([encoded[row] for row in some], length, seeds[some])
                for row, text in zip(some, texts, strict=True):
                    answers[row] = text
        return answers

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer(text, verbose=False).input_ids)
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # templates that know no thinking pass over it
        )
        return list(self._tokenizer(chat, add_special_tokens=False, verbose=False).input_ids)

    def _generate(self, encoded: list[list[int]], length: int, seeds: Seeds) -> list[str]:
        """Return the answers to at most 16 instructions, filled up on the left to `length`."""
        tokens = torch.zeros((_CHUNK, length), dtype=torch.int64)
        mask = torch.zeros((_CHUNK, length), dtype=torch.int64)
        missing = _CHUNK - len(encoded)
        for row, ids in enumerate(encoded + encoded[-1:] * missing):
            tokens[row, length - len(ids) :] = torch.tensor(ids)
            mask[row, length - len(ids) :] = 1
        filled = np.concatenate([seeds, np.repeat(seeds[-1:], missing)])
        with infer_in(self._options.precision):
            made = self._network.generate(
                input_ids=tokens.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=self._options.max_tokens,
                do_sample=False,  # the processor has drawn
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=min(self._ends, default=0),
                logits_processor=[self._choose(filled, length)],
            )
        answers = made[: len(encoded), length:].cpu().tolist()
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]

    def _choose(self, seeds: Seeds, length: int) -> Any:
        """Return a logits processor that leaves each row one token."""

        def process(tokens: Any, scores: Any) -> Any:
            step = tokens.shape[1] - length
            top = scores.float().topk(min(_TOP, scores.shape[1]), dim=1)
            ids = top.indices.cpu().numpy()
            rows = np.repeat(seeds, ids.shape[1]).view(np.int64)
            drawn = uniforms(row_seeds(0, "variation", step, ids.reshape(-1), rows), 1)
            gumbel = -np.log(-np.log(drawn)).reshape(ids.shape)
            values = top.values.cpu().numpy().astype(np.float64) / self._options.temperature
            chosen = torch.from_numpy(np.argmax(values + gumbel, axis=1)).to(scores.device)
            kept = torch.full_like(scores, -torch.inf)
            return kept.scatter_(1, top.indices.gather(1, chosen[:, None]), 0.0)

        return process


def _fill_up(length: int) -> int:
    """Return the tokens that an instruction of `length` is filled up to."""
    return -(-length // _BUCKET) * _BUCKET
