"""The blocks of a configuration, each with the keys that a user may write in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from pe_ray import plugins
from pe_ray.errors import InputError
from pe_ray.values import Budget, DistanceMetric, Unit

STALL_SECONDS = 7200.0
_MOST_SAMPLES = 10**12


class Block(BaseModel):
    """Base of every block: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Plugin(Block):
    """A plugin's kind and its validated options; written flat in YAML: {kind: ..., option: ...}."""

    plugin_type: plugins.PluginType
    kind: str
    options: Any

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.options.model_dump(mode="json")}


def _plugin(plugin_type: plugins.PluginType) -> BeforeValidator:
    def validate(raw: Any) -> Any:
        if isinstance(raw, Plugin):
            return raw
        if not isinstance(raw, Mapping) or not isinstance(raw.get("kind"), str):
            raise ValueError("needs a `kind`")
        rest = {key: value for key, value in raw.items() if key != "kind"}
        try:
            plugin_class = plugins.load(plugin_type, raw["kind"])
        except InputError as error:
            raise ValueError(str(error).removeprefix(f"{plugin_type}.")) from None
        options = plugin_class.Options.model_validate(rest)
        return Plugin(plugin_type=plugin_type, kind=raw["kind"], options=options)

    return BeforeValidator(validate)


GeneratorPlugin = Annotated[Plugin, _plugin("generator")]
EmbedderPlugin = Annotated[Plugin, _plugin("embedder")]
MetricPlugin = Annotated[Plugin, _plugin("metric")]


def _not_learnt(embedder: Plugin) -> Plugin:
    if embedder.options.learnt:
        raise ValueError(f"{embedder.kind} is learnt by a run, for its votes; name another")
    return embedder


FixedEmbedderPlugin = Annotated[EmbedderPlugin, AfterValidator(_not_learnt)]
"""An embedder that is the same for every run."""


class Stage(Block):
    """A generator and the iteration from which on it is used."""

    start: int = Field(ge=0)
    """0 is the random draws."""
    generator: GeneratorPlugin


class Switch(Block):
    """Generators by iteration: the last stage with start <= t makes S_t, and the lookahead for it.

    A stage reads the samples of the one before: same image shape, and no column of its own that
    the one before doesn't write (a rendered text's genome can't be read off an image).
    """

    kind: Literal["switch"]
    stages: tuple[Stage, ...] = Field(min_length=1)

    def at(self, iteration: int) -> Plugin:
        return [stage.generator for stage in self.stages if stage.start <= iteration][-1]

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.stages[0].start != 0:
            raise ValueError("stages: the first must start at 0, the random draws")
        for before, after in pairwise(self.stages):
            if after.start <= before.start:
                raise ValueError("stages: each must start after the one before")
            old, new = before.generator.options, after.generator.options
            where = f"stages: {after.generator.kind}, start {after.start},"
            if new.image_shape != old.image_shape:
                raise ValueError(f"{where} makes images of another shape than the stage before it")
            for name, column in new.columns.items():
                if old.columns.get(name) != column:
                    raise ValueError(
                        f"{where} needs the column {name!r}, which the {before.generator.kind} "
                        "before it doesn't write and an image doesn't show"
                    )
        return self


def switch_or_plugin(raw: Any) -> Switch | Plugin:
    """Decided by `kind` alone, so that an error is about the one that was meant."""
    if isinstance(raw, Switch) or (isinstance(raw, Mapping) and raw.get("kind") == "switch"):
        return Switch.model_validate(raw)
    plugin: Plugin = TypeAdapter(GeneratorPlugin).validate_python(raw)
    return plugin


class PrivateConfig(Block):
    """Where the private records are and how to read them."""

    data: str
    """`sklearn:digits`, a parquet file or folder of them (local, or a URI as in output.path), or a
    local folder of images per class (storage.md says which files are read)."""
    labels: tuple[str, ...] = Field(min_length=1)
    """Names of all labels, in order. Public: declared here, never read off the records."""
    image_column: str = "image"
    label_column: str | None = "label"
    user_column: str | None = None
    """Whose record it is, integers or strings; needed for `privacy.unit: user`."""
    where: dict[str, str | int | bool] = {}
    """Keep only rows whose column equals the value, e.g. {split: train}."""
    cache: str | None = None
    """Folder (mode 0700) for private embeddings; default ~/.cache/pe_ray/private; `none` for no
    cache. Never inside the run directory. A run isn't bound to it."""
    node_label: str | None = Field(default=None, pattern=r"^[\w./-]+=[\w.-]+$")
    """`name=value`: records are read, embedded and searched only on Ray nodes with this label. Like
    `resources` it changes neither output nor epsilon, so a run isn't bound to it."""


class VotesConfig(Block):
    """How private records vote."""

    metric: DistanceMetric = "l2"
    """Of embeddings; cosine is what `clip` and `dinov2` are meant for."""
    neighbors: int = Field(default=1, ge=1)
    """Each record votes for this many nearest samples of its label; sensitivity sqrt(neighbors)."""
    lookahead: int = Field(default=0, ge=0, le=1024)
    """Embed each sample as the mean of this many variations of it; 0: the sample itself."""
    reuse_lookahead: bool = False
    """Take a parent's first `lookahead` children from the variations that it was embedded by: saves
    their calls, costs disk for `lookahead` images a sample during an iteration."""
    max_votes_per_user: int = Field(default=1, ge=1, le=1_000_000)
    """`unit: user` only: a user votes for at most this many samples, over all labels together."""


class SelectionSettings(Block):
    """How the released histogram becomes parents."""

    denoise: Literal["threshold", "simplex", "none"] = "threshold"
    threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["auto"] = "auto"
    """Votes subtracted from each count before clipping at 0; auto: see synthetic/selection.py."""
    smooth: int = Field(default=1, ge=1, le=1024)
    """Before that, average each count over at most this many near samples of its label, as many as
    the votes and their known noise say is best; 1: none (synthetic/smoothing.py)."""
    method: Literal["systematic", "multinomial", "rank"] = "systematic"
    keep_selected: bool = False
    """Keep each selected parent beside its variations."""
    next_variation_fold: int = Field(default=1, ge=1)
    """Variations of each selected parent."""


class SelectionConfig(SelectionSettings):
    """Selection, the same in every iteration but for `overrides`."""

    initial_variation_fold: int = Field(default=0, ge=0)
    """Variations of each random draw in the initial population."""
    overrides: dict[int, dict[str, Any]] = {}
    """Iteration (from 1) -> settings that differ there."""

    def at(self, iteration: int) -> SelectionSettings:
        """The settings of one iteration."""
        common = {name: getattr(self, name) for name in SelectionSettings.model_fields}
        changes = self.overrides.get(iteration, {})
        return SelectionSettings.model_validate({**common, **changes})


class Ramp(Block):
    """Evenly spaced values from `start` to `end`, one per iteration."""

    start: float
    end: float


class ScheduleConfig(Block):
    """How many iterations, samples and how much variation."""

    iterations: int = Field(ge=1, le=10_000)
    num_samples: int | tuple[int, ...]
    """Population size, or the sizes of S_0 .. S_T (iterations + 1 numbers)."""
    degrees: float | tuple[float, ...] | Ramp
    """Variation degree of each iteration, in the generator's units."""
    noise: Literal["constant"] | float | tuple[float, ...] = "constant"
    """sigma of the last release over that of the first (geometric between; below 1 spends late),
    or one relative sigma per iteration."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the public randomness (never of the privacy noise)."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if isinstance(self.num_samples, tuple) and len(self.num_samples) != self.iterations + 1:
            raise ValueError(
                f"num_samples: give one number or iterations + 1 = {self.iterations + 1}"
            )
        if not all(1 <= size <= _MOST_SAMPLES for size in self.sizes):
            raise ValueError(f"num_samples: must be from 1 to {_MOST_SAMPLES:,}")
        for name in ("degrees", "noise"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.iterations:
                raise ValueError(f"{name}: give one number or iterations = {self.iterations}")
        if not all(math.isfinite(degree) and degree >= 0 for degree in self.degree_list):
            raise ValueError("degrees: must be finite and not negative")
        if not all(1e-6 <= weight <= 1e6 for weight in self.relative_sigmas):
            raise ValueError("noise: must be from 1e-6 to 1e6")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """|S_0|, ..., |S_T|."""
        if isinstance(self.num_samples, tuple):
            return self.num_samples
        return (self.num_samples,) * (self.iterations + 1)

    @property
    def degree_list(self) -> tuple[float, ...]:
        """v_1, ..., v_T."""
        if isinstance(self.degrees, tuple):
            return self.degrees
        if isinstance(self.degrees, Ramp):
            span = self.degrees.end - self.degrees.start
            last = max(1, self.iterations - 1)
            return tuple(self.degrees.start + span * t / last for t in range(self.iterations))
        return (self.degrees,) * self.iterations

    @property
    def relative_sigmas(self) -> tuple[float, ...]:
        """sigma_t up to a common factor."""
        if isinstance(self.noise, tuple):
            return self.noise
        ratio = 1.0 if self.noise == "constant" else float(self.noise)
        if not 1e-6 <= ratio <= 1e6:
            raise ValueError("noise: must be from 1e-6 to 1e6")
        last = max(1, self.iterations - 1)
        return tuple(ratio ** (t / last) for t in range(self.iterations))


class PrivacyConfig(Block):
    """The guarantee. No field has a default."""

    label_count_share: ClassVar[float] = 0.05
    """With `label_fractions: dp`, share of sum(1/sigma^2) that the label counts get."""
    epsilon: float = Field(gt=0)
    """Of the whole run; .inf adds no noise and protects nobody."""
    delta: float = Field(gt=0, lt=1)
    unit: Unit
    """What is added or removed between neighbouring data sets: one record, or all of a user's."""
    label_fractions: Literal["uniform", "dp"] | tuple[float, ...]
    """Share of each label in the population: uniform, given here (public), or released (dp)."""

    @property
    def budget(self) -> Budget:
        return Budget(epsilon=self.epsilon, delta=self.delta, unit=self.unit)


class TeacherConfig(Block):
    """One more release after the last vote, with which final images get the labels that the
    private records give images like them (synthetic/teacher.py). Needs torch, no GPU.
    """

    modules: ClassVar[tuple[str, ...]] = ("torch",)

    share: float = Field(default=0.5, ge=1e-6, lt=1)
    """Share of sum(1/sigma^2) that this release gets; the votes get the rest."""
    features: int = Field(default=128, ge=2, le=1024)
    """Features of the regression; features^2 / 2 noisy numbers are released."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the last population when training the network that makes the features: 2 do for
    60,000 images, a few thousand need more."""


class PublicMetricsConfig(Block):
    """Scores of released populations against public images, into metrics.jsonl: free."""

    data: str
    """Parquet file or folder of them, or a folder of images per class. Must be public."""
    image_column: str = "image"
    label_column: str | None = "label"
    """null: the images have no labels, so metrics that compare labels refuse them."""
    where: dict[str, str | int | bool] = {}
    """Keep only rows whose column equals the value."""
    every: int = Field(default=1, ge=1)
    """Score S_0, S_every, S_(2 every), ... and the last."""
    max_images: int = Field(default=10_000, ge=2)
    """Images scored at most, of either side (evenly spaced rows)."""
    metrics: tuple[MetricPlugin, ...] = Field(min_length=1)


class MetricsConfig(Block):
    """What a run scores on public images, and `pe-ray audit` on private ones."""

    public: PublicMetricsConfig | None = None
    audit: tuple[MetricPlugin, ...] = ()
    """A run isn't bound to this or the next two: on a finished one, `run` takes new ones over."""
    audit_data: str | None = None
    """Reference records of the audit; default: private.data."""
    audit_where: dict[str, str | int | bool] | None = None
    """Row filter of the reference; default: private.where."""


class ResourcesConfig(Block):
    """What the run may use. Changes neither output nor epsilon."""

    address: str | None = None
    """Of a Ray cluster (`auto` for the one on this machine); default: the RAY_ADDRESS of the
    environment, as in a submitted job, otherwise start one here."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs of the Ray started here; default: all."""
    workers: int | None = Field(default=None, ge=1)
    """Generator (and embedding) workers at most; default: as many as the cluster holds. Set it on
    an autoscaling cluster, where it is what the autoscaler is asked for."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=256, ge=1)
    """Images a generator makes at once."""
    stall_seconds: float = Field(default=STALL_SECONDS, gt=0, le=1e6)
    """A worker that makes no headway for so long (a part of a population, 64 private records, a
    block of the search or of a sum) hangs: it is killed and its work made again. Longer than any
    part takes."""


class OutputConfig(Block):
    """Where the run goes."""

    path: str
    """Run directory; everything in it is safe to publish. A folder that all machines of the run
    reach by this path, or the URI of a store: s3://BUCKET/FOLDER (docs/storage.md)."""
    ledger: str | None = None
    """Run directories in a store only, needed there: a local folder on the driver's durable disk
    for ledger.sqlite, which is copied beside the run after each release. Not bound to the run."""
    rows_per_part: int | None = Field(default=None, ge=1)
    """Rows of one file; default: a 32nd of the population, at most 4096 rows and 32 MiB."""
