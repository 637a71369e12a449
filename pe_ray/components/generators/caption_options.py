"""What generators that draw from text are told: prompts by label, or captions that evolve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pe_ray.components.generators.service_account import AccountOptions
from pe_ray.components.weights import Precision
from pe_ray.config.places import PathText
from pe_ray.plugins import GeneratorOptions, Options
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import Price

PARAPHRASES = (
    "Rewrite this image caption with one word changed: {caption}",
    "Rewrite this image caption in other words, with the same meaning: {caption}",
    "Rewrite this image caption with other details, such as colours, pose or light: {caption}",
    "Rewrite this image caption for another scene with the same subject: {caption}",
    "Write the caption of a quite different image of: {label}. It must not resemble: {caption}",
)
"""Instructions to change a caption, from the weakest to the strongest."""
_ANSWER = " Answer with the caption alone, in one sentence."
_PROMPT = "a photo of {label}"


def clean(text: str) -> str:
    """Return a text in one line: no control characters, no surrogates, single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Instructions(Options):
    """How a paraphrase is asked for."""

    instructions: tuple[str, ...] = Field(
        default=tuple(text + _ANSWER for text in PARAPHRASES), min_length=1
    )
    """From the weakest to the strongest change; {caption} stands for the parent's caption, {label}
    for the label's name. Of k instructions, a degree picks number floor(k degree), 1 the last."""

    @field_validator("instructions")
    @classmethod
    def _check(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for text in given:
            if "{caption}" not in text and "{label}" not in text:
                raise ValueError(f"{text!r} holds neither {{caption}} nor {{label}}")
        return given


class LanguageModelOptions(Instructions):
    """A local causal language model."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    kind: Literal["model"]
    checkpoint: PathText
    """Folder, or id on the Hugging Face hub. Weights are read from safetensors only; code that
    comes with a checkpoint is never run."""
    revision: str = "main"
    """Branch, tag or commit of a hub id; only a commit can't change later."""
    precision: Precision = "fp32"
    """Of weights and activations."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of the draws, among the 50 likeliest tokens."""
    max_tokens: int = Field(default=96, ge=1, le=4096)
    """Tokens of an answer at most."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.generators.tiny_language_model import save_language_model

        folder = save_language_model(rehearsal.make_folder("language"), chat=True)
        return self.model_copy(update={"checkpoint": folder})


class ChatOptions(Instructions, AccountOptions):
    """A service or server with the OpenAI chat interface."""

    kind: Literal["chat"]
    base_url: str = "https://api.openai.com/v1"
    """What comes before /chat/completions."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, wherever Ray's workers run; null: the
    service needs none. The key is read nowhere else and written nowhere."""
    model: str = Field(min_length=1)
    """Name of the service's model."""
    parameters: dict[str, str | int | float | bool] = Field(default={})
    """Sent along as they are, e.g. {temperature: 1.2, max_completion_tokens: 96}."""
    price: float = Field(ge=0, allow_inf_nan=False)
    """The most that one call may cost."""

    @field_validator("parameters")
    @classmethod
    def _refuse_own(cls, given: dict[str, object]) -> dict[str, object]:
        taken = sorted({"model", "messages", "n", "stream"} & set(given))
        if taken:
            raise ValueError(f"{taken[0]} is sent by the generator itself; leave it out")
        return given


class CaptionOptions(Options):
    """Captions that evolve with the images that are drawn from them."""

    templates: tuple[str, ...] = Field(default=(_PROMPT,), min_length=1)
    """Captions of every label that `lists` doesn't name; {label} stands for the label's name."""
    lists: dict[str, tuple[str, ...]] = Field(default={})
    """Label name -> its captions. They must be public."""
    variation: Literal["text", "image"] = "text"
    """text: a variation is drawn anew from its caption, a paraphrase of the parent's. image: the
    generator varies the parent's image as it does without captions, with that paraphrase."""
    paraphrase: (
        Annotated[LanguageModelOptions | ChatOptions, Field(discriminator="kind")] | None
    ) = None
    """What rewrites a caption. Default: with probability `degree` another of the label's captions
    takes its place."""
    max_characters: int = Field(default=300, ge=8, le=2000)
    """Of a caption. A longer paraphrase is dropped, and the caption stays as it was."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, texts in {"templates": self.templates, **self.lists}.items():
            if not texts:
                raise ValueError(f"lists: {name} has no caption; give one, or leave the label out")
            for text in texts:
                if clean(text) != text or not text or len(text) > self.max_characters:
                    raise ValueError(
                        f"{text[:40]!r} of {name} must be one line of printable characters, no "
                        f"more than max_characters = {self.max_characters}"
                    )
        return self


class CaptionedOptions(GeneratorOptions):
    """Options of generators that draw from text."""

    prompt: str = Field(default=_PROMPT, min_length=1)
    """Prompt of every label that `prompts` doesn't name; {label} stands for the label's name."""
    prompts: dict[str, str] = Field(default={})
    """Label name -> its prompt."""
    captions: CaptionOptions | None = None
    """In place of prompts: each sample has a caption of its own, and votes select captions by their
    images."""

    @model_validator(mode="after")
    def _check_captions(self) -> Self:
        if self.captions and (self.prompts or self.prompt != _PROMPT):
            raise ValueError(
                "captions: take the place of prompt and prompts; move those to captions.templates "
                "and captions.lists"
            )
        return self

    @property
    def redraws(self) -> bool:
        """Whether variations are drawn from text alone."""
        return self.captions is not None and self.captions.variation == "text"

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        if self.captions is None:
            return {}
        return {"caption": (f"U{self.captions.max_characters}", 1)}

    @property
    def call_prices(self) -> Mapping[str, Price]:
        chat = self.captions and self.captions.paraphrase
        if not isinstance(chat, ChatOptions):
            return {}
        due = Price(random=None, vary=chat.price, max_calls=chat.max_calls, max_cost=chat.max_cost)
        return {"generator.captions.paraphrase": due}
