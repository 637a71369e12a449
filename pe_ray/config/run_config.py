"""Config: one YAML file is one run. It becomes one frozen tree; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from pe_ray.config.blocks import (
    MetricsConfig,
    OutputConfig,
    PrivacyConfig,
    PrivateConfig,
    ResourcesConfig,
    ScheduleConfig,
    SelectionConfig,
    TeacherConfig,
    VotesConfig,
)
from pe_ray.config.kinds import (
    Block,
    EmbedderPlugin,
    Generators,
    Plugin,
    Switch,
    Whitening,
    check_metric,
)
from pe_ray.config.places import apart, lies_in, refuse_credentials
from pe_ray.config.yaml_tree import (
    digest_tree,
    drop_removed_keys,
    name_faults,
    read_stored,
    read_tree,
    set_override,
)
from pe_ray.errors import InputError
from pe_ray.files.storage import GivenPath, Location
from pe_ray.plugins import PrivateSums, only_known
from pe_ray.plugins.options import BOUND, as_validation_error
from pe_ray.values import Framing, ImageShape

_STORED = "stored"
"""Context of the validation of a run directory's configuration."""


class Config(Block):
    """One run."""

    unbound: ClassVar[frozenset[str]] = frozenset({"resources", "metrics"})

    private: PrivateConfig
    generator: Generators
    """One kind, or `{kind: switch, stages: [{start: 0, generator: {kind: ...}}, ...]}`."""
    embedder: EmbedderPlugin
    """In whose space images are near to each other."""
    votes: VotesConfig = VotesConfig()
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    schedule: ScheduleConfig
    privacy: PrivacyConfig
    teacher: TeacherConfig | None = None
    """Default: none, so that a final image has the label that it was made for."""
    metrics: MetricsConfig = MetricsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    output: OutputConfig

    @classmethod
    def from_yaml(cls, path: GivenPath, overrides: Sequence[str] = ()) -> Config:
        """Read a YAML file; `overrides` are `block.key=value` with a YAML value."""
        return cls._from_file(read_tree(path, overrides))

    @classmethod
    def from_run(cls, path: Location) -> Config:
        """Read the config.yaml of a run directory, which an older version may have written.

        Guarantee: imports nothing that only this file names, except within `trust_plugins`.
        """
        with only_known():
            return cls._from_file(drop_removed_keys(read_stored(path)), context=_STORED)

    @classmethod
    def _from_file(cls, tree: dict[str, Any], context: str | None = None) -> Config:
        tree.pop("tuning", None)  # of a search; a single run takes no notice of it
        return cls._validate(tree, context)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Config:
        """Validate a tree of plain values; InputError names all wrong keys."""
        return cls._validate(tree)

    @classmethod
    def _validate(cls, tree: Mapping[str, Any], context: str | None = None) -> Config:
        try:
            return cls.model_validate(tree, context=context)
        except ValidationError as error:
            raise name_faults(error, tree) from None
        except RecursionError:
            raise InputError("config: refers to itself; correct its YAML anchors") from None

    def tree(self) -> dict[str, Any]:
        """Return the plain values that a run directory publishes: without resources and places."""
        places = {"output": {"ledger"}, "private": {"node_label"}}
        places |= {"privacy": {"account", "spender"}}
        return self.model_dump(mode="json", exclude={"resources": True, **places})

    def bound(self) -> dict[str, Any]:
        """Return the plain values that may change the output. A run continues with no others."""
        return self.model_dump(mode="json", context=BOUND)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that may change the output."""
        return digest_tree(self.bound())

    def generator_at(self, iteration: int) -> Plugin:
        """Return what makes S_iteration from S_(iteration-1) and the lookahead of its votes."""
        given = self.generator
        plugin = given.at(iteration) if isinstance(given, Switch) else given
        options = plugin.options.at(iteration)
        if options is plugin.options:
            return plugin
        return plugin.model_copy(update={"options": options})

    @property
    def generators(self) -> list[Plugin]:
        """The generators of the run, each once; those of a mixture by themselves."""
        steps = (self.generator_at(t) for t in range(self.schedule.iterations + 1))
        made = [plugin for step in steps for plugin in step.options.parts or (step,)]
        return [plugin for number, plugin in enumerate(made) if plugin not in made[:number]]

    @property
    def num_kept(self) -> int | None:
        """How many images of S_T the teacher keeps, at most; None: all of them."""
        return self.teacher.keep if self.teacher else None

    @property
    def num_final(self) -> int:
        """Images of the final set; fewer where a label has too few for the teacher to keep."""
        return self.num_kept or self.schedule.sizes[-1]

    @property
    def whitenings(self) -> dict[str, Whitening]:
        """Field -> how the embedder there is whitened."""
        teacher = self.teacher.embedder if self.teacher else None
        given = {"embedder": self.embedder, "teacher.embedder": teacher}
        return {f"{name}.whiten": e.whiten for name, e in given.items() if e and e.whiten}

    @property
    def private_sums(self) -> PrivateSums | None:
        """What is released before S_0 for a generator to draw from; None: nothing."""
        num_labels = len(self.private.labels)
        asked = (plugin.options.private_sums(num_labels) for plugin in self.generators)
        found = [sums for sums in asked if sums is not None]
        if len(found) > 1:
            raise ValueError("generator: only one of a run's may draw from private sums")
        return found[0] if found else None

    @property
    def draws_after_release(self) -> bool:
        """Whether S_0 waits for a release: of label counts, or of what a generator draws from."""
        return self.privacy.label_fractions == "dp" or self.private_sums is not None

    def refuse_private_sums(self, what: str) -> None:
        """Raise InputError where a generator draws from a release, which `what` doesn't make."""
        if self.private_sums is not None:
            raise InputError(
                f"generator.kind: draws from sums of the private records, which {what} can't "
                "release; give another generator"
            )

    @property
    def image_shape(self) -> ImageShape:
        """Shape of every synthetic image of the run."""
        shape: ImageShape = self.generator_at(0).options.image_shape
        return shape

    @property
    def framing(self) -> Framing:
        """How stored images, private and public, are brought to that shape."""
        private = self.private
        return Framing(shape=self.image_shape, resize=private.resize, background=private.background)

    @model_validator(mode="before")
    @classmethod
    def _refuse_credentials(cls, tree: Any, info: ValidationInfo) -> Any:
        if info.context != _STORED:  # what is published already is read back
            refuse_credentials(tree)
        return tree

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        checks = [
            self._check_user,
            self._check_samples,
            self._check_fractions,
            self._check_overrides,
            self._check_generators,
            self._check_places,
            self._check_shares,
            self._check_learning,
        ]
        if info.context != _STORED:  # what has run is read back, even if a metric failed in it
            checks.append(self._check_metrics)
        faults: dict[str, None] = {}
        for check in checks:
            try:
                check()
            except ValueError as error:
                faults[str(error)] = None
        if faults:
            found = [((), "value_error", fault, None) for fault in faults]
            raise as_validation_error("Config", found)
        return self

    def _check_user(self) -> None:
        if self.privacy.unit == "user" and self.private.user_column is None:
            raise ValueError("private.user_column: needed for privacy.unit: user")

    def _check_samples(self) -> None:
        num_labels, sizes = len(self.private.labels), self.schedule.sizes
        if min(sizes) < num_labels:
            raise ValueError(f"schedule.num_samples: give at least {num_labels}, one a label")
        if self.votes.neighbors > min(sizes[:-1]):
            raise ValueError(
                f"votes.neighbors: more than the samples voted on (num_samples: {min(sizes[:-1])})"
            )
        if self.votes.across_labels and self.teacher is None:
            raise ValueError(
                "votes.across_labels: needs the block teacher, which gives images their labels"
            )

    def _check_fractions(self) -> None:
        num_labels, fractions = len(self.private.labels), self.privacy.label_fractions
        if isinstance(fractions, tuple) and len(fractions) != num_labels:
            raise ValueError(f"privacy.label_fractions: give {num_labels} numbers, one a label")

    def _check_overrides(self) -> None:
        for iteration in self.selection.overrides:
            if not 1 <= iteration <= self.schedule.iterations:
                raise ValueError(f"selection.overrides: there is no iteration {iteration}")

    def _check_shares(self) -> None:
        num_labels, sums = len(self.private.labels), self.private_sums
        counted = self.privacy.label_fractions == "dp"
        left = 1 - self.privacy.label_count_share if counted else 1.0
        if sums is not None:
            if sums.share >= left:
                raise ValueError(f"generator.share: must be below {left:g}")
            left -= sums.share
        if self.teacher:
            self.teacher.check_run(
                num_labels=num_labels,
                num_images=self.schedule.sizes[-1],
                shape=self.image_shape,
                left=left,
            )

    def _check_learning(self) -> None:
        sums = self.private_sums
        prices = self.generator_at(0).options.call_prices.values()
        paid = any(price.random is not None for price in prices)
        if self.embedder.options.learnt:
            if sums is not None:
                raise ValueError(
                    f"embedder: {self.embedder.kind} is learnt before anything is released, and "
                    "this generator draws from a release; name another embedder"
                )
            self.embedder.options.check_learning(
                num_labels=len(self.private.labels),
                shape=self.image_shape,
                metric=self.votes.metric,
                paid=paid,
            )
        for field, whiten in self.whitenings.items():
            if whiten.on_population and sums is not None:
                raise ValueError(
                    f"{field}.data: the population is drawn before anything is released, and this "
                    "generator draws from a release; name public images"
                )
            if whiten.on_population and paid:
                raise ValueError(
                    f"{field}.data: the population takes more calls of this generator, which are "
                    "paid for; name public images"
                )

    def _check_generators(self) -> None:
        last, degrees = self.schedule.iterations, self.schedule.degree_list
        if isinstance(self.generator, Switch) and self.generator.stages[-1].start > last:
            raise ValueError(f"generator.stages: there is no iteration after {last} to start at")
        for iteration, degree in enumerate(degrees, start=1):
            self.generator_at(iteration).options.check_degree(degree)
        if self.selection.initial_variation_fold:
            self.generator_at(0).options.check_degree(degrees[0])
        for plugin in self.generators:
            options = plugin.options
            if options.framing is not None and options.framing != self.framing:
                raise ValueError(
                    "generator.resize, generator.background: must be those of the block private, "
                    "so that the same picture is the same on both sides"
                )
            shown = options.shown_data
            if shown is not None and not apart(shown, {}, self.private):
                raise ValueError(
                    "generator.data: is private.data, whose records would be published as they "
                    "are; give a public image set"
                )

    def _check_metrics(self) -> None:
        num_labels, sizes = len(self.private.labels), self.schedule.sizes
        for position, metric in enumerate(self.metrics.audit):
            field = f"metrics.audit.{position}"
            check_metric(field, metric, num_labels=num_labels, num_images=self.num_final)
        public = self.metrics.public
        if public is None:
            return
        if public.label_column is None:
            num_labels = 0
        num_images = min(public.max_images, self.num_final, sizes[-1], *sizes[:: public.every])
        for position, metric in enumerate(public.metrics):
            field = f"metrics.public.metrics.{position}"
            check_metric(field, metric, num_labels=num_labels, num_images=num_images)

    def _check_places(self) -> None:
        public, output = self.metrics.public, self.output.path
        if public and not apart(public.data, public.where, self.private):
            raise ValueError(
                "metrics.public.data: is private.data; score private records in metrics.audit, or "
                "give rows that a common `where` column keeps apart"
            )
        read = {"private.data": self.private.data, "metrics.public.data": public and public.data}
        for field, whiten in self.whitenings.items():
            read[f"{field}.data"] = None if whiten.on_population else whiten.data
            if not apart(whiten.data, whiten.where, self.private):
                raise ValueError(
                    f"{field}.data: is private.data; give public images, or rows that a common "
                    "`where` column keeps apart"
                )
        for field, data in read.items():
            if data and lies_in(output, data):
                raise ValueError(
                    f"output.path: lies in {field}, so the run's own files would be read as data; "
                    "give a folder elsewhere"
                )
        cache = None if self.private.cache == "none" else self.private.cache
        secret = {"private.cache": cache, "privacy.account": self.privacy.account}
        for field, place in secret.items():
            if place and lies_in(place, output):
                raise ValueError(f"{field}: must lie outside output.path, which is publishable")


def read_resources(overrides: Sequence[str]) -> ResourcesConfig:
    """Return the resources that `resources.key=value` give."""
    tree: dict[str, Any] = {}
    for override in overrides:
        set_override(tree, override)
    if tree.keys() - {"resources"}:
        raise InputError("--set: only resources.key=value; the rest is the run's")
    try:
        refuse_credentials(tree)
        return ResourcesConfig.model_validate(tree.get("resources", {}))
    except ValidationError as error:
        raise name_faults(error, tree.get("resources"), "config: resources.") from None
    except ValueError as error:
        raise InputError(f"config: {error}") from None
