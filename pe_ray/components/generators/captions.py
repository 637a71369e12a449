"""Captions: each sample's own text, which is drawn, paraphrased and selected with its image.

A caption is a column of the population. Votes choose parents by their images, so captions whose
images win votes have more descendants, at no further charge ("SPTI", 2025, arXiv
2506.07555). Captions are made from public texts and from captions of released samples. So they are
post-processing of releases, and may be published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.generators.caption_options import (
    CaptionedOptions,
    CaptionOptions,
    ChatOptions,
    LanguageModelOptions,
    clean,
)
from pe_ray.components.generators.generator_checks import pick_edit, refuse_unknown_labels
from pe_ray.errors import InputError
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import Seeds, row_seeds, uniforms


class Writer(Protocol):
    """Answers instructions with text."""

    def write(self, instructions: Sequence[str], seeds: Seeds) -> list[str]:
        """Return an answer to each instruction, as it came; blank: none."""
        ...


class Captions:
    """The prompts that images are drawn from: captions of their own, or one for each label.

    fits: tells whether the model reads the whole of a text. A row's caption depends on its own
    seed, its parent's caption and its label, never on the batch.
    """

    def __init__(
        self,
        options: CaptionedOptions,
        label_names: Sequence[str],
        fits: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._options, self._names, self._fits = options.captions, label_names, fits
        self._writer: Writer | None = None
        if self._options is None:
            refuse_unknown_labels("prompts", options.prompts, label_names)
            prompts = {name: options.prompt.replace("{label}", name) for name in label_names}
            prompts |= options.prompts
            self.initial = [[prompts[name]] for name in label_names]
            """For each label the texts that random draws are made from."""
            return
        self.initial = _list_captions(self._options, label_names)
        asked = self._options.paraphrase
        self._instructions = asked.instructions if asked else ()
        if isinstance(asked, LanguageModelOptions):
            from pe_ray.components.generators.language_model import LanguageModel

            self._writer = LanguageModel(asked)
        elif isinstance(asked, ChatOptions):
            from pe_ray.components.generators.chat import Chat

            self._writer = Chat(asked)

    def draw(self, labels: NDArray[np.int32], seeds: Seeds) -> list[str]:
        """Return one of each label's texts, all equally likely."""
        places = uniforms(_own_seeds(seeds), 1)[:, 0]
        return [self._pick(label, place) for label, place in zip(labels, places, strict=True)]

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> list[str]:
        """Return the text that a variation of each row is drawn from: a paraphrase of its caption.

        Without captions, it is the label's prompt.
        """
        if self._options is None:
            return self.draw(rows["label"], seeds)
        return self.paraphrase(rows["caption"].tolist(), rows["label"], degree, seeds)

    def paraphrase(
        self, captions: list[str], labels: NDArray[np.int32], degree: float, seeds: Seeds
    ) -> list[str]:
        """Return a paraphrase of each caption; `degree` in [0, 1] says how far it may stray.

        One that is blank, too long or more than the model reads is dropped: the caption stays.
        """
        if self._writer is None:
            changes = uniforms(_own_seeds(seeds), 2)
            return [
                self._pick(label, place) if change < degree else caption
                for caption, label, (change, place) in zip(captions, labels, changes, strict=True)
            ]
        words = pick_edit(self._instructions, degree)
        instructions = [
            # The caption last: it may hold the word {label}.
            words.replace("{label}", self._names[label]).replace("{caption}", caption)
            for caption, label in zip(captions, labels, strict=True)
        ]
        answers = self._writer.write(instructions, seeds)
        return [
            self._accept(answer, caption) for answer, caption in zip(answers, captions, strict=True)
        ]

    def of(self, rows: Rows, row: int) -> str:
        """Return the caption that a row has; blank without captions."""
        return "" if self._options is None else str(rows["caption"][row])

    def add_to(self, rows: Rows, captions: list[str]) -> Rows:
        """Add the column `caption`, if there are captions."""
        if self._options is not None:
            rows["caption"] = np.array(captions, dtype=f"U{self._options.max_characters}")
        return rows

    def _pick(self, label: int, place: float) -> str:
        texts = self.initial[label]
        return texts[int(place * len(texts))]

    def _accept(self, answer: str, caption: str) -> str:
        """Return the first line of an answer, without quotes; the caption if that can't be one."""
        assert self._options is not None
        lines = [line.strip(" \"'“”`*") for line in map(clean, answer.splitlines())]
        found = next((line for line in lines if line), "")
        usable = found and len(found) <= self._options.max_characters and self._fits(found)
        return found if usable else caption


def _list_captions(options: CaptionOptions, label_names: Sequence[str]) -> list[list[str]]:
    """Return each label's captions; InputError where one with a label's name is too long."""
    refuse_unknown_labels("captions.lists", options.lists, label_names)
    found = []
    for name in label_names:
        texts = options.lists.get(name, options.templates)
        filled = [
            text if name in options.lists else text.replace("{label}", name) for text in texts
        ]
        for text in filled:
            if len(text) > options.max_characters or clean(text) != text:
                raise InputError(
                    f"generator.captions.templates: with the label {name!r} a caption is longer "
                    f"than max_characters = {options.max_characters}, or not one line of printable "
                    "characters; give the label's captions in lists"
                )
        found.append(filled)
    return found


def _own_seeds(seeds: Seeds) -> Seeds:
    """Return seeds for texts. Images draw their first numbers from the rows' own."""
    return row_seeds(0, "selection", 1, seeds.view(np.int64))
