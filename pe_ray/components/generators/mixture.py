"""Several generators in one population; the votes decide how many samples each has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray import plugins
from pe_ray.config.kinds import Block, GeneratorPlugin, Plugin
from pe_ray.plugins import Generator, GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, row_seeds, uniforms
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import Framing, ImageShape


class Member(Block):
    """One generator of a mixture."""

    generator: GeneratorPlugin
    """Any kind but mixture and those whose calls are paid for."""
    share: float = Field(default=1.0, ge=0)
    """Of the random draws, relative to the others'; 0: it only takes over from another."""
    degree: float = Field(default=1.0, gt=0)
    """The schedule's degrees times this are its own, as units differ from kind to kind."""
    end: int | None = Field(default=None, ge=1)
    """From this iteration on, `heir` varies its samples."""
    heir: str | None = None
    """Name of the member that takes them over, with `end`. It needs nothing but images."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(update={"end": rehearsal.move(self.end or 0) or None})

    def to_own_degree(self, degree: float) -> float:
        """Return the schedule's degree in its own units; rounded, as some must be whole."""
        return round(degree * self.degree, 9)


class MixtureOptions(GeneratorOptions):
    """Options of Mixture."""

    members: dict[str, Member] = Field(min_length=1)
    """Name (small letters and digits) -> generator; all make images of one shape."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(member.share for member in self.members.values()):
            raise ValueError("members: give at least one a share above 0")
        for name, member in self.members.items():
            options, where = member.generator.options, f"members.{name}"
            if not re.fullmatch("[a-z][a-z0-9]*", name):
                raise ValueError(f"{where}: name it by small letters and digits, a letter first")
            if options.parts:
                raise ValueError(f"{where}: is a mixture itself; give its members here")
            if options.call_prices:
                raise ValueError(
                    f"{where}: its calls are paid for, and no plan knows how many the votes take"
                )
            if options.numbers_draws:
                raise ValueError(f"{where}: start: distinct is for a generator alone")
            if options.image_shape != self.image_shape:
                raise ValueError(f"{where}: makes images of another shape than the first member")
            if options.framing not in (None, self.framing):
                raise ValueError(f"{where}: needs the same resize and background as the others")
            if (member.end is None) != (member.heir is None):
                raise ValueError(f"{where}: end and heir go together")
            if member.heir is not None:
                heir = self.members.get(member.heir)
                if heir is None or heir.end is not None or heir.generator.options.columns:
                    raise ValueError(
                        f"{where}.heir: must name a member that doesn't end and needs no more than "
                        "an image (its kind has no columns of its own)"
                    )
        return self

    @property
    def parts(self) -> Sequence[Plugin]:
        return [member.generator for member in self.members.values()]

    @property
    def image_shape(self) -> ImageShape:
        shape: ImageShape = self.parts[0].options.image_shape
        return shape

    @property
    def framing(self) -> Framing | None:
        found = (plugin.options.framing for plugin in self.parts)
        return next((framing for framing in found if framing is not None), None)

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """member: position of the sample's member among their sorted names; and the members' own
        columns as NAME_COLUMN, 0 in samples of others.
        """
        own = {
            f"{name}_{column}": kind
            for name, member in self.members.items()
            for column, kind in member.generator.options.columns.items()
        }
        return {"member": ("int32", 1), **own}

    @property
    def at_work(self) -> list[str]:
        """Sorted names of the members that make samples, once `at` has told which have ended."""
        return sorted(
            {self.find_successor(name) for name, member in self.members.items() if member.share}
        )

    def find_successor(self, name: str) -> str:
        """Return who varies the samples of a member: itself, or its heir once `at` has ended it."""
        member = self.members[name]
        return member.heir if member.heir and member.end == 0 else name

    def at(self, iteration: int) -> MixtureOptions:
        """Return the options of one iteration: `end` is 0 where a member has ended, else None."""
        if all(member.end is None for member in self.members.values()):
            return self

        def update(member: Member) -> dict[str, int | None]:
            return {"end": 0 if member.end is not None and member.end <= iteration else None}

        return self._with_members(update)

    def with_sums(self, file: str) -> MixtureOptions:
        def update(member: Member) -> dict[str, Plugin]:
            options = member.generator.options.with_sums(file)
            return {"generator": member.generator.model_copy(update={"options": options})}

        return self._with_members(update)

    def _with_members(self, update: Callable[[Member], Mapping[str, object]]) -> MixtureOptions:
        members = {
            name: member.model_copy(update=update(member)) for name, member in self.members.items()
        }
        return self.model_copy(update={"members": members})

    def check_degree(self, degree: float) -> None:
        for name in self.at_work:
            member = self.members[name]
            member.generator.options.check_degree(member.to_own_degree(degree))


class Mixture:
    """Samples of several generators, each varied by its own.

    RANDOM_API: a draw of a member, chosen by share. VARIATION_API: a variation by the sample's
    member, or by its heir once it has ended. So parents that get votes pass on their member.
    """

    Options: ClassVar[type[GeneratorOptions]] = MixtureOptions

    def __init__(self, options: MixtureOptions, label_names: Sequence[str]) -> None:
        self._options, self._names = options, sorted(options.members)
        shares = np.cumsum([options.members[name].share for name in self._names])
        self._edges = shares / shares[-1]
        successors = [self._names.index(options.find_successor(name)) for name in self._names]
        self._successor = np.array(successors, dtype=np.int32)
        self._generators: dict[int, Generator] = {}
        for name in options.at_work:
            plugin = options.members[name].generator
            made = plugins.load("generator", plugin.kind)(plugin.options, label_names)
            self._generators[self._names.index(name)] = made

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw a sample of each label."""
        # Not the rows' own seeds: a member draws its first number from those.
        others = row_seeds(0, "selection", 0, seeds.view(np.int64))
        chosen = np.searchsorted(self._edges, uniforms(others, 1)[:, 0], side="right")

        def draw(number: int, rows: NDArray[np.int64]) -> Rows:
            return self._generators[number].random(labels[rows], seeds[rows])

        return self._merge(chosen.astype(np.int32), draw)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Vary each sample by its member."""

        def vary(number: int, some: NDArray[np.int64]) -> Rows:
            member = self._options.members[self._names[number]]
            given = {"image": rows["image"][some], "label": rows["label"][some]}
            for name in member.generator.options.columns:
                given[name] = rows[f"{self._names[number]}_{name}"][some]
            return self._generators[number].vary(given, member.to_own_degree(degree), seeds[some])

        return self._merge(self._successor[rows["member"]], vary)

    def _merge(
        self, member: NDArray[np.int32], make: Callable[[int, NDArray[np.int64]], Rows]
    ) -> Rows:
        """Return the rows that `make` makes for each member and the positions of its samples."""
        options, count = self._options, len(member)
        shape = options.image_shape
        merged: Rows = {
            name: np.zeros((count,) if width == 1 else (count, width), dtype)
            for name, (dtype, width) in options.columns.items()
        }
        merged["image"] = np.empty((count, shape.height, shape.width, shape.channels), np.uint8)
        merged["member"] = member
        for number in np.unique(member).tolist():
            rows, name = np.flatnonzero(member == number), self._names[number]
            made = make(number, rows)
            merged["image"][rows] = made["image"]
            for column in options.members[name].generator.options.columns:
                own = merged[f"{name}_{column}"]
                own[rows] = np.asarray(made[column]).reshape(len(rows), *own.shape[1:])
        return merged
