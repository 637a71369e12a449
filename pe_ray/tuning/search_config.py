"""The `tuning` block of a configuration: what is searched, how it is paid for and how it is scored.

It is no part of a single run's configuration: `pe-ray run` passes over it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import Block, FixedEmbedderPlugin, MetricPlugin
from pe_ray.config.places import apart
from pe_ray.config.yaml_tree import first_fault, read_tree
from pe_ray.errors import InputError
from pe_ray.plugins.options import BOUND

Strategy = Literal["public", "proxy", "compose"]
Mode = Literal["min", "max"]

NO_FINAL_RUN = (
    "it is released in a final run, which this search doesn't make; leave the block out, or take "
    "public, proxy, or compose with final_share above 0"
)


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


class PublicObjective(Block):
    """A metric of the trial's population against a public reference."""

    kind: Literal["public"]
    metric: MetricPlugin
    score: str | None = None
    """Which of the metric's scores, where it has several."""
    mode: Mode
    """Whether a small (`min`) or a large score (`max`) is good."""
    reference: PrivateConfig | None = None
    """PUBLIC records to compare with, written like `private`; default: tuning.public_data."""
    max_images: int = Field(default=10_000, ge=1)
    """Synthetic images scored at most (evenly spaced rows)."""


class MomentsObjective(Block):
    """Frechet distance to moments of the private records, released once for all trials."""

    kind: Literal["moments"]
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the budget's mu^2 that the release costs."""
    embedder: FixedEmbedderPlugin | None = None
    """Default: the run's own. Scores of trials with different embedders are comparable."""
    dim: int = Field(default=8, ge=1, le=64)
    """Dimensions of the public random projection."""
    radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Projected embeddings are clipped to this norm, in the embedder's units."""
    seed: int = Field(default=0, ge=0)
    """Of the projection; public."""


Objective = Annotated[
    PublicObjective | MomentsObjective,
    Field(discriminator="kind"),
]


class TuningConfig(Block):
    """One search."""

    unbound: ClassVar[frozenset[str]] = frozenset({"max_concurrent"})

    strategy: Strategy
    space: dict[str, Range | Choices] = Field(min_length=1)
    """Dotted key of the configuration -> values to choose from, or {low, high, log, integer}."""
    objective: Objective
    num_trials: int = Field(default=8, ge=1, le=10_000)
    """Settings tried."""
    search: Literal["random", "optuna"] = "random"
    scheduler: Literal["none", "asha"] = "none"
    """asha: stop a trial early whose score falls behind."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials at once; changes speed, and for optuna and asha what they know when they decide."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the search, never of noise."""
    public_data: PrivateConfig | None = None
    """`public` only: PUBLIC stand-in records that trials vote with, written like `private`."""
    proxy_share: float = Field(default=0.2, gt=0, lt=1)
    """`proxy` only: share of the budget's mu^2 spent on the run that trials vote with."""
    proxy_voters: int | None = Field(default=None, ge=1)
    """`proxy` only: vote with this many variations of its final population (about as many as there
    are private records); default: with the population itself."""
    full_trials: float | None = Field(default=None, ge=1)
    """`compose` only: complete trials that the budget must last for; default: num_trials. With
    asha fewer will do: what stopped trials didn't spend pays for others."""
    final_share: float = Field(default=0.5, ge=0, lt=1)
    """`compose` only: share of mu^2 kept for a final run with the best settings, which also gets
    what the search left over; 0: the best trial's population is the result."""

    @property
    def modules(self) -> tuple[str, ...]:  # type: ignore[override]
        """Optional dependencies of the search (see pe_ray.config.extras)."""
        return ("optuna",) if self.search == "optuna" else ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "public" and self.public_data is None:
            raise ValueError("public_data: needed for strategy: public")
        if isinstance(self.objective, PublicObjective) and not self.reference:
            raise ValueError("objective.reference: needed without public_data")
        return self

    @property
    def mode(self) -> Mode:
        """Whether a small or a large score is good."""
        objective = self.objective
        if isinstance(objective, PublicObjective):
            return objective.mode
        return "min"

    @property
    def final_run(self) -> bool:
        """Whether a run with the best settings follows; if not, the best trial is the result."""
        return self.strategy != "compose" or self.final_share > 0

    @property
    def reference(self) -> PrivateConfig | None:
        """Public records to compare with."""
        objective = self.objective
        own = objective.reference if isinstance(objective, PublicObjective) else None
        return own or self.public_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search as it was asked for. tree: the configuration's plain values without `tuning`."""

    tree: dict[str, Any]
    config: Config
    tuning: TuningConfig

    def values(self) -> dict[str, Any]:
        """Plain values, without what changes speed only."""
        return {
            **self.config.tree(),
            "tuning": self.tuning.model_dump(mode="json", context=BOUND),
        }

    def bound(self) -> dict[str, Any]:
        """Return the plain values that may change the outcome; others can't continue the search."""
        return {
            **self.config.bound(),
            "tuning": self.tuning.model_dump(mode="json", context=BOUND),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that may change the outcome."""
        return hashlib.sha256(json.dumps(self.bound(), sort_keys=True).encode()).hexdigest()


def read_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """The search that a YAML file and `overrides` describe; InputError names the first fault."""
    tree = read_tree(path, overrides)
    if "tuning" not in tree:
        raise InputError(f"config {path}: has no `tuning` block; see docs/tuning.md")
    return search_of(tree)


def search_of(tree: dict[str, Any]) -> Search:
    """The search that plain values describe."""
    rest = {key: value for key, value in tree.items() if key != "tuning"}
    config = Config.from_dict(rest)
    try:
        tuning = TuningConfig.model_validate(tree["tuning"])
    except ValidationError as error:
        raise first_fault(error, tree["tuning"], "tuning.") from None
    if not math.isfinite(config.privacy.epsilon):
        raise InputError("privacy.epsilon: a search inside a budget needs a finite one")
    named = {"public_data": tuning.public_data, "objective.reference": tuning.reference}
    for name, public in named.items():
        if public and not apart(public.data, public.where, config.private):
            raise InputError(
                f"tuning.{name}: these are the private records; name public ones, or rows that a "
                "common `where` column keeps apart"
            )
    _check_labels(config, tuning)
    return Search(tree=rest, config=config, tuning=tuning)


def _check_labels(config: Config, tuning: TuningConfig) -> None:
    """What trials are compared with must have the trials' labels."""
    public = tuning.public_data if tuning.strategy == "public" else None
    labels = public.labels if public else config.private.labels
    reference = tuning.reference if tuning.objective.kind == "public" else None
    if reference and reference.labels != labels:
        raise InputError(
            "tuning.objective.reference.labels: must be those that trials have: "
            f"{', '.join(labels[:20])}"
        )
    own = tuning.objective.embedder if tuning.objective.kind == "moments" else config.embedder
    if own is None and config.embedder.options.learnt:
        raise InputError(
            "tuning.objective.embedder: needed, since each trial learns an embedder of its own"
        )
    if tuning.objective.kind == "moments" and len(labels) != len(config.private.labels):
        raise InputError(
            "tuning.objective: moments of the private records have other labels than "
            "tuning.public_data; use another objective, or a stand-in with as many labels"
        )
