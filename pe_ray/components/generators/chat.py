"""Paraphrases from a service or server with the OpenAI chat interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from pe_ray.components.generators.caption_options import ChatOptions
from pe_ray.components.generators.service_client import Call, ServiceClient, Unusable
from pe_ray.plugins.seeds import Seeds


class Chat:
    """A chat service, which gets captions of released samples and names of labels, nothing else.

    The store keeps the first answer to a call, or its refusal, as the only one: a paraphrase is
    paid for once.
    """

    def __init__(self, options: ChatOptions) -> None:
        self._options = options
        self._client = ServiceClient(options, "generator.captions.paraphrase")

    def write(self, instructions: Sequence[str], seeds: Seeds) -> list[str]:
        """Return the service's answer to each instruction; blank where it is refused."""
        return self._client.ask_all(self._ask, instructions, seeds.tolist())

    def _ask(self, instruction: str, seed: int, stop: threading.Event) -> str:
        options = self._options
        fields = {
            **options.parameters,
            "model": options.model,
            "messages": [{"role": "user", "content": instruction}],
        }
        call = Call("/chat/completions", fields)
        with self._client.ask(call, seed, options.price, stop) as (key, outcome, content):
            if outcome == "refused":
                self._client.calls.settle(key, "refused", content)
                return ""
            try:
                return str(json.loads(content)["choices"][0]["message"]["content"] or "")
            except (ValueError, LookupError, TypeError):
                said = self._client.read_message(content)
                raise Unusable(f"no message ({said})") from None
