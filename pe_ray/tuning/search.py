"""What a search is asked for: the `tuning` block, its strategy and its objective.

A strategy and an objective are objects that say everything about themselves. Whoever uses them asks
them and never looks at their names. To add one, write a subclass of `Strategy` or `Objective` in a
module and name it as `module:Class`, or in an entry point (see plugins.registry).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import Block, ObjectivePlugin, Plugin, StrategyPlugin
from pe_ray.config.places import apart, refuse_credentials
from pe_ray.config.yaml_tree import digest_tree, name_faults, read_tree
from pe_ray.errors import InputError
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.storage import GivenPath
from pe_ray.plugins import Images, Options, PrivateSums
from pe_ray.plugins.options import BOUND
from pe_ray.release.ledger import Ledger
from pe_ray.values import Framing, ImageShape, Release

Mode = Literal["min", "max"]
Floats = NDArray[np.float64]
Fractions = tuple[float, ...]
Scorer = Callable[[Images, NDArray[np.int32]], float]
"""Images uint8 [n, h, w, c] and labels int32 [n] of a population -> its score."""


class Range(Block):
    """Numbers from `low` to `high`."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    """Draw the logarithm evenly."""
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low: must be below high")
        if self.log and self.low <= 0:
            raise ValueError("log: needs low above 0")
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError("integer: low and high must be whole numbers")
        return self


Choices = Annotated[tuple[Any, ...], Field(min_length=1)]


class TuningConfig(Block):
    """One search."""

    unbound: ClassVar[frozenset[str]] = frozenset({"max_concurrent"})

    strategy: StrategyPlugin
    """How trials get votes."""
    space: dict[str, Range | Choices] = Field(min_length=1)
    """Dotted key of the configuration -> values to choose from, or {low, high, log, integer}."""
    objective: ObjectivePlugin
    """What trials are scored by."""
    num_trials: int = Field(default=8, ge=1, le=10_000)
    """Settings tried."""
    search: Literal["random", "optuna"] = "random"
    scheduler: Literal["none", "asha"] = "none"
    """asha: stop a trial early whose score falls behind."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials at once. It changes speed, and for optuna and asha what they know when they decide."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the search, never of noise."""
    public_data: PrivateConfig | None = None
    """PUBLIC stand-in records, written like `private`: what trials of `public` vote with."""

    @property
    def modules(self) -> tuple[str, ...]:  # type: ignore[override]
        """Optional dependencies of the search (see pe_ray.config.extras)."""
        return ("optuna",) if self.search == "optuna" else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search as it was asked for.

    tree: the configuration's plain values without `tuning`.
    """

    tree: dict[str, Any]
    config: Config
    tuning: TuningConfig
    strategy: Strategy
    objective: Objective

    @classmethod
    def from_yaml(cls, path: GivenPath, overrides: Sequence[str] = ()) -> Search:
        """Read a YAML file with a `tuning` block; `overrides` are `block.key=value`."""
        return cls.from_dict(read_tree(path, overrides))

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Search:
        """Validate a tree of plain values; InputError where its parts don't fit."""
        if "tuning" not in tree:
            raise InputError("config: has no `tuning` block; see docs/tuning.md")
        rest = {key: value for key, value in tree.items() if key != "tuning"}
        config = tuning = None
        faults: list[str] = []
        try:
            config = Config.from_dict(rest)
        except InputError as error:
            faults += error.faults
        try:
            refuse_credentials(tree["tuning"], "tuning")
            tuning = TuningConfig.model_validate(tree["tuning"])
        except ValidationError as error:
            faults += name_faults(error, tree["tuning"], "config: tuning.").faults
        except ValueError as error:
            faults.append(f"config: {error}")
        if config is None or tuning is None:
            raise InputError(*faults)
        search = cls(
            tree=rest,
            config=config,
            tuning=tuning,
            strategy=_make("tuning_strategy", tuning.strategy),
            objective=_make("tuning_objective", tuning.objective),
        )
        if not math.isfinite(config.privacy.epsilon):
            raise InputError("privacy.epsilon: a search inside a budget needs a finite one")
        require_public(tuning.public_data, "tuning.public_data", config.private)
        search.strategy.check(search)
        search.objective.check(search)
        return search

    def public_tables(self) -> list[tuple[ImageTable, Framing]]:
        """List the public images that the search reads besides its final run, each once."""
        tables = [*self.objective.public_tables(self)]
        stand_in = self.tuning.public_data
        if stand_in is not None:
            tables.append(stand_in.table("tuning.public_data", private=False))
        distinct = {table.block: table for table in tables}
        return [(table, self.config.framing) for table in distinct.values()]

    def values(self) -> dict[str, Any]:
        """Return the plain values that the search publishes."""
        return self.config.tree() | {"tuning": self.tuning.model_dump(mode="json", context=BOUND)}

    def bound(self) -> dict[str, Any]:
        """Return the plain values that may change the outcome."""
        return self.config.bound() | {"tuning": self.values()["tuning"]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that may change the outcome."""
        return digest_tree(self.bound())


class Strategy:
    """How the trials of a search get votes, and what that costs.

    mu adds up in squares (see release.adaptive); tuning.budget says what is left to spend.
    """

    Options: ClassVar[type[Options]] = Options
    """Its keys of `tuning.strategy`."""
    charged: ClassVar[bool]
    """Whether trials vote with the private records, so that each of their releases is charged."""
    adaptive: ClassVar[bool] = True
    """Whether released values decide about later releases."""

    prepared_prefix: ClassVar[str | None] = None
    """Of the keys of the run that `prepare` makes in its folder; None where nothing is charged."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, search: Search) -> None:
        """Raise InputError where the search can't use this strategy."""

    def configure_trial(self, search: Search, config: Config) -> Config:
        """Return a trial's configuration, made from that of a run with the trial's settings."""
        return config

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        """Return every release of a trial. Keys of votes begin with `prefix`."""
        raise NotImplementedError

    def result_mu(self, search: Search) -> float:
        """Return the mu of the final run, if the search costs what was planned."""
        raise NotImplementedError

    def search_releases(self, search: Search) -> tuple[Release, ...]:
        """Return the least that the search charges, without what is shared by all trials."""
        return ()

    def prepare(
        self, search: Search, ledger: Ledger, folder: Path, fractions: Fractions | None
    ) -> PrivateConfig | None:
        """Make what trials need before the first; return the records that vote in trials.

        folder: empty and part of what is published. fractions: of labels, where they were released.
        None: a trial's configuration names the records.
        """
        return None


class Objective:
    """What a trial is scored by: public data, or private sums that were released once.

    Nothing else of the private records reaches it.
    """

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def mode(self) -> Mode:
        """Whether a small (`min`) or a large score (`max`) is good."""
        return "min"

    @property
    def better(self) -> str:
        """Which score is good, in words: `lower` or `higher`."""
        return "lower" if self.mode == "min" else "higher"

    def check(self, search: Search) -> None:
        """Raise InputError where the search can't use this objective."""

    def try_out(self, search: Search) -> None:
        """Load and use what scoring needs, in a worker, before anything is spent."""

    def public_tables(self, search: Search) -> tuple[ImageTable, ...]:
        """Return the public images that scoring reads."""
        return ()

    def private_sums(self, search: Search) -> PrivateSums | None:
        """Return what is to be released for it."""
        return None

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        """Return what scores images of `shape`. released: the private sums, with noise."""
        raise NotImplementedError


def require_public(public: PrivateConfig | None, field: str, private: PrivateConfig) -> None:
    """Refuse `public` where its path says that it is the private data."""
    if public and not apart(public.data, public.where, private):
        raise InputError(
            f"{field}: these are the private records; name public ones, or rows that a common "
            "`where` column keeps apart"
        )


def _make(plugin_type: plugins.PluginType, plugin: Plugin) -> Any:
    return plugins.load(plugin_type, plugin.kind)(plugin.options)
