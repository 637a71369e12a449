"""Paraphrases from a service or server with the OpenAI chat interface."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence

from pe_ray.components.generators.caption_options import ChatOptions
from pe_ray.components.generators.service_client import Call, ServiceClient
from pe_ray.errors import InputError
from pe_ray.plugins.seeds import Seeds

_FIELD = "generator.captions.paraphrase"


class Chat:
    """A chat service, which gets captions of released samples and names of labels, nothing else.

    The key of a call is everything sent and the row's seed. The store keeps the first answer to a
    key, or its refusal, as the only one: a paraphrase is paid for once.
    """

    def __init__(self, options: ChatOptions) -> None:
        self._options = options
        self._client = ServiceClient(options, _FIELD)

    def write(self, instructions: Sequence[str], seeds: Seeds) -> list[str]:
        """Return the service's answer to each instruction; blank where it is refused."""
        return self._client.ask_all(self._ask, instructions, seeds.tolist())

    def _ask(self, instruction: str, seed: int, stop: threading.Event) -> str:
        options, calls = self._options, self._client.calls
        fields = {
            **options.parameters,
            "model": options.model,
            "messages": [{"role": "user", "content": instruction}],
        }
        call = Call("/chat/completions", fields)
        parts = [options.base_url, call.path, sorted(fields.items()), seed]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        with calls.claim(key):
            state, content = calls.find(key) or self._client.pay(call, key, options.price, stop)
            if state == "refused":
                calls.settle(key, "refused", content)
                return ""
            try:
                return str(json.loads(content)["choices"][0]["message"]["content"] or "")
            except (ValueError, LookupError, TypeError):
                calls.settle(key, "bad")
                raise InputError(
                    f"{_FIELD}: the service at {options.base_url} answered without a message "
                    f"({self._client.read_message(content)}); correct the options (the call was "
                    "paid for, so it isn't made again)"
                ) from None
