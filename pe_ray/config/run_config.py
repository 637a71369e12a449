"""One YAML file is one run: it becomes one frozen tree, and an unknown key is an error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pe_ray.config.blocks import (
    Block,
    EmbedderPlugin,
    MetricsConfig,
    OutputConfig,
    Plugin,
    PrivacyConfig,
    PrivateConfig,
    ResourcesConfig,
    ScheduleConfig,
    SelectionConfig,
    Switch,
    TeacherConfig,
    VotesConfig,
    switch_or_plugin,
)
from pe_ray.config.credentials import refuse_credentials
from pe_ray.config.yaml_tree import read_tree, set_override
from pe_ray.errors import InputError
from pe_ray.files.storage import Location, at_home, location
from pe_ray.values import MAX_SUMS, ImageShape


class Config(Block):
    """One run."""

    private: PrivateConfig
    generator: Annotated[Switch | Plugin, BeforeValidator(switch_or_plugin)]
    """One kind, or `{kind: switch, stages: [{start: 0, generator: {kind: ...}}, ...]}`."""
    embedder: EmbedderPlugin
    votes: VotesConfig = VotesConfig()
    selection: SelectionConfig = SelectionConfig()
    schedule: ScheduleConfig
    privacy: PrivacyConfig
    teacher: TeacherConfig | None = None
    """Default: none, so that a final image has the label that it was made for."""
    metrics: MetricsConfig = MetricsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    output: OutputConfig

    @model_validator(mode="before")
    @classmethod
    def _no_credentials(cls, tree: Any) -> Any:
        refuse_credentials(tree)
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        labels = self.private.labels
        if len(set(labels)) != len(labels) or not all(labels):
            raise ValueError("private.labels: names must differ, and none may be empty")
        if self.private.label_column is None and len(labels) != 1:
            raise ValueError("private.labels: give exactly one when label_column is null")
        if self.privacy.unit == "user" and self.private.user_column is None:
            raise ValueError("private.user_column: needed for privacy.unit: user")
        if min(self.schedule.sizes) < len(labels):
            raise ValueError(f"schedule.num_samples: give at least {len(labels)}, one a label")
        fractions = self.privacy.label_fractions
        if isinstance(fractions, tuple):
            if len(fractions) != len(labels):
                raise ValueError(
                    f"privacy.label_fractions: give {len(labels)} numbers, one a label"
                )
            positive = all(math.isfinite(share) and share >= 0 for share in fractions)
            if not positive or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
                raise ValueError("privacy.label_fractions: must be shares that sum to 1")
        for iteration in self.selection.overrides:
            if not 1 <= iteration <= self.schedule.iterations:
                raise ValueError(f"selection.overrides: there is no iteration {iteration}")
            try:
                self.selection.at(iteration)
            except ValidationError as error:
                changes = self.selection.overrides[iteration]
                fault = first_fault(error, changes, f"selection.overrides.{iteration}.")
                raise ValueError(str(fault).removeprefix("config: ")) from None
        if self.votes.neighbors > min(self.schedule.sizes[:-1]):
            raise ValueError(
                "votes.neighbors: more than the samples voted on "
                f"(schedule.num_samples: {min(self.schedule.sizes[:-1])})"
            )
        if self.votes.reuse_lookahead and not self.votes.lookahead:
            raise ValueError("votes.reuse_lookahead: needs votes.lookahead above 0")
        self._check_generators()
        self._check_public_metrics()
        self._check_places()
        self._check_teacher()
        self._check_embedder()
        return self

    def _check_places(self) -> None:
        places = {
            "output.path": self.output.path,
            "output.ledger": self.output.ledger,
            "private.data": self.private.data,
            "private.cache": self.private.cache,
            "metrics.audit_data": self.metrics.audit_data,
        }
        for field, place in places.items():
            try:
                local = place is None or isinstance(location(place), Path)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
            if not local and field in ("output.ledger", "private.cache"):
                raise ValueError(f"{field}: must be a local folder")
        shown = self.metrics.public.data if self.metrics.public else None
        for field, data in (("private.data", self.private.data), ("metrics.public.data", shown)):
            if data is not None and lies_in(self.output.path, data):
                raise ValueError(
                    f"output.path: lies in {field}, so the run's own files would be read as data; "
                    "give a folder elsewhere"
                )
        run, cache = location(self.output.path), self.private.cache
        if not isinstance(run, Path):
            return
        if self.output.ledger:
            raise ValueError(
                "output.ledger: only for an output.path in a store; a local run's ledger is in it"
            )
        if cache and cache != "none" and at_home(cache).resolve().is_relative_to(run.resolve()):
            raise ValueError("private.cache: must lie outside output.path, which is publishable")

    def _check_public_metrics(self) -> None:
        """What is scored in the open must not be what is protected."""
        public, private = self.metrics.public, self.private
        if public is None:
            return
        if not apart(public.data, public.where, private):
            raise ValueError(
                "metrics.public.data: is private.data; score private records in metrics.audit, or "
                "give rows that a common `where` column keeps apart"
            )

    def _check_generators(self) -> None:
        last = self.schedule.iterations
        if isinstance(self.generator, Switch) and self.generator.stages[-1].start > last:
            raise ValueError(f"generator.stages: there is no iteration after {last} to start at")
        used = [*enumerate(self.schedule.degree_list, start=1)]
        if self.selection.initial_variation_fold:
            used.insert(0, (0, self.schedule.degree_list[0]))
        for iteration, degree in used:
            self.generator_at(iteration).options.check_degree(degree)
        for iteration in range(last + 1):
            shown = self.generator_at(iteration).options.shown_data
            if shown is not None and not apart(shown, {}, self.private):
                raise ValueError(
                    "generator.data: is private.data, whose records would be published as they "
                    "are; give a public image set"
                )

    def _check_teacher(self) -> None:
        teacher, num_labels = self.teacher, len(self.private.labels)
        if teacher is None:
            return
        if num_labels < 2:
            raise ValueError("teacher: needs at least two private.labels to tell apart")
        if min(self.image_shape.height, self.image_shape.width) < 4:
            raise ValueError("teacher: needs images of at least 4x4")
        if teacher.features * ((teacher.features + 1) / 2 + num_labels) > MAX_SUMS:
            raise ValueError("teacher.features: too many for so many labels; lower it")
        label_counts = self.privacy.label_fractions == "dp"
        if label_counts and teacher.share + self.privacy.label_count_share >= 1:
            most = 1 - self.privacy.label_count_share
            raise ValueError(f"teacher.share: must be below {most:g} with label_fractions: dp")

    def _check_embedder(self) -> None:
        if not self.embedder.options.learnt:
            return
        kind = self.embedder.kind
        if len(self.private.labels) < 2:
            raise ValueError(f"embedder: {kind} needs at least two private.labels to tell apart")
        if min(self.image_shape.height, self.image_shape.width) < 4:
            raise ValueError(f"embedder: {kind} needs images of at least 4x4")
        if self.generator_at(0).options.call_price is not None:
            raise ValueError(
                f"embedder: {kind} draws many images more, and this generator's are paid for; "
                "name another embedder"
            )
        if self.votes.metric == "inner_product":
            raise ValueError(f"votes.metric: l2 or cosine for the embedder {kind}")

    def generator_at(self, iteration: int) -> Plugin:
        """What makes S_iteration from S_(iteration-1), and draws the lookahead of its votes."""
        made = self.generator
        return made.at(iteration) if isinstance(made, Switch) else made

    @property
    def image_shape(self) -> ImageShape:
        """Shape of every synthetic image of the run."""
        shape: ImageShape = self.generator_at(0).options.image_shape
        return shape

    @classmethod
    def from_yaml(cls, path: str | Location, overrides: Sequence[str] = ()) -> Config:
        """Read a YAML file; `overrides` are `block.key=value` with a YAML value."""
        tree = read_tree(path, overrides)
        tree.pop("tuning", None)  # of a search, which a single run doesn't take part in
        return cls.from_dict(tree)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a tree of plain values; InputError names the first wrong key."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise first_fault(error, tree) from None
        except RecursionError:
            raise InputError("config: refers to itself; mend its YAML anchors") from None

    def tree(self) -> dict[str, Any]:
        """Plain values, resources and places left out: what a run is bound to."""
        places = {"output": {"ledger"}, "private": {"node_label"}}
        return self.model_dump(mode="json", exclude={"resources": True, **places})

    def bound(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """`tree`, this one's or a stored one, without what changes no output: options of generators
        that say so, the cache of private embeddings, and what an audit scores.
        """
        private = _without(tree["private"], frozenset({"cache"}))
        audit = frozenset({"audit", "audit_data", "audit_where"})
        tree = {**tree, "private": private, "metrics": _without(tree["metrics"], audit)}
        made, given = self.generator, tree["generator"]
        if isinstance(made, Plugin):
            given = _without(given, made.options.unbound)
        elif len(given.get("stages", ())) == len(made.stages):
            given = {**given, "stages": []}
            for stage, written in zip(made.stages, tree["generator"]["stages"], strict=True):
                kept = _without(written["generator"], stage.generator.options.unbound)
                given["stages"].append({**written, "generator": kept})
        return {**tree, "generator": given}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that may change the output."""
        bound = self.bound(self.tree())
        return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def first_fault(error: ValidationError, tree: Any, blocks: str = "") -> InputError:
    """The first fault of a `tree` of plain values; blocks: dotted, what stands before its key.

    Of the branches of a union, the one that fits furthest tells.
    """
    faults = [(_keys(tree, fault), fault) for fault in error.errors(include_url=False)]
    top = faults[0][0]
    keys, fault = max(
        (pair for pair in faults if pair[0][: len(top)] == top), key=lambda pair: len(pair[0])
    )
    where = f"{blocks}{'.'.join(keys)}".rstrip(".")
    unknown = fault["type"] == "extra_forbidden"
    message = "there is no such key" if unknown else fault["msg"].removeprefix("Value error, ")
    return InputError(f"config: {where + ': ' if where else ''}{message}")


def _keys(tree: Any, fault: ErrorDetails) -> list[str]:
    """Where a fault is, without the names that pydantic gives to the branches of a union."""
    keys, place = [], fault["loc"]
    for part in place:
        if isinstance(tree, list | tuple) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif not (fault["type"] == "missing" and part == place[-1]):
            continue
        keys.append(str(part))
    return keys


def apart(data: str, where: Mapping[str, Any], private: PrivateConfig) -> bool:
    """Whether records of `data` that pass `where` are others than the private ones, as far as
    paths and common columns of `where` tell."""
    ours, theirs = _parts(data), _parts(private.data)
    shorter = min(len(ours), len(theirs))
    nested = ours[:shorter] == theirs[:shorter]
    common = where.keys() & private.where.keys()
    return not nested or any(where[key] != private.where[key] for key in common)


def lies_in(place: str, folder: str) -> bool:
    """Whether `place` is `folder`, or below it."""
    outer = _parts(folder)
    return _parts(place)[: len(outer)] == outer


def _parts(place: str) -> tuple[str, ...]:
    """Where `place` is, from the root or the bucket on, however it is written."""
    try:
        found = location(place)
    except ValueError:  # whoever reads it says so
        return (place,)
    if isinstance(found, Path):
        return found.resolve().parts
    return (found.scheme, *(part for part in found.key.split("/") if part))


def _without(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def resources_of(overrides: Sequence[str]) -> ResourcesConfig:
    """Resources as `resources.key=value` give them."""
    tree: dict[str, Any] = {}
    for override in overrides:
        set_override(tree, override)
    if tree.keys() - {"resources"}:
        raise InputError("--set: only resources.key=value; the rest is the run's")
    try:
        return ResourcesConfig.model_validate(tree.get("resources", {}))
    except ValidationError as error:
        raise first_fault(error, tree.get("resources"), "resources.") from None
