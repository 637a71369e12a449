"""The blocks of a configuration, each with its keys, what they mean, and its own checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from pe_ray.config.kinds import (
    REHEARSED_DIMS,
    Block,
    DenoiserPlugin,
    EmbedderPlugin,
    MetricPlugin,
    Plugin,
)
from pe_ray.config.places import Color, LocalFolder, PathText, Place
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.storage import parse_location
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import (
    MAX_SUMS,
    Budget,
    DistanceMetric,
    ImageShape,
    LabelValues,
    Resize,
    Unit,
)

STALL_SECONDS = 7200.0
_MOST_SAMPLES = 10**12
_REHEARSED_ROWS = 16  # of a batch and of a part
_LEAST_SIDE = 4
"""Pixels that the teacher's network needs of an image's height and width."""


class PrivateConfig(Block):
    """Where the private records are and how to read them."""

    unbound: ClassVar[frozenset[str]] = frozenset({"cache", "node_label"})

    data: Place
    """`sklearn:digits`, a parquet file, a folder of them, or a folder of images per class: local,
    or a URI as in output.path (storage.md says which files are read)."""
    labels: tuple[str, ...] = Field(min_length=1)
    """Names of all labels, in order. Public: declared here, never read off the records."""
    image_column: str = "image"
    """Column with the image; class folders have none, and lists may call it file_name."""
    label_column: str | None = "label"
    """Column with the label (not of class folders); null: all records have the one label that is
    given."""
    label_values: LabelValues = "name"
    """What integers in that column stand for, if the file doesn't say it itself: names that are
    numbers (`name`), or positions in `labels` from 0 on (`position`)."""
    user_column: str | None = None
    """Whose record it is, integers or strings; needed for `privacy.unit: user`."""
    where: dict[str, str | int | bool] = Field(default={})
    """Keep only rows whose column equals the value, e.g. {split: train}. Folders named COLUMN=VALUE
    and folders of splits are columns too."""
    resize: Resize = "crop"
    """What is done to images of other proportions than the run's, private, public and reference
    images alike: cut (crop), add background (pad), or change the proportions (stretch)."""
    background: Color = "black"
    """Colour (a name or #RRGGBB) behind what is transparent and in what is added."""
    duplicates: Literal["refuse", "allow"] = "refuse"
    """Whether files with the same content may be several records."""
    cache: LocalFolder | None = None
    """Folder (mode 0700) for private embeddings; default ~/.cache/pe_ray/private; `none` for no
    cache. Never inside the run directory."""
    node_label: str | None = Field(default=None, pattern=r"^[\w./-]+=[\w.-]+$")
    """`name=value`: records are read, embedded and searched only on Ray nodes with this label."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ValueError("labels: names must differ, and none may be empty")
        if self.label_column is None and len(self.labels) != 1:
            raise ValueError("labels: give exactly one when label_column is null")
        return self

    def table(self, block: str, *, private: bool) -> ImageTable:
        """Return where these records are, as `block` of the configuration gives them.

        private: whether errors must carry no content. False where a block for public records is
        written like `private`.
        """
        return ImageTable(
            block=block,
            private=private,
            data=self.data,
            labels=self.labels,
            image_column=self.image_column,
            label_column=self.label_column,
            label_values=self.label_values,
            user_column=self.user_column,
            where=self.where,
        )

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        columns = {
            "label_column": self.label_column and "label",
            "user_column": self.user_column and "user",
        }
        cache = str(rehearsal.folder / "cache")
        places: dict[str, Any] = {"where": {}, "cache": cache, "node_label": None}
        return self.model_copy(
            update=rehearsal.write_images("private") | columns | places | {"label_values": "name"}
        )


class VotesConfig(Block):
    """How private records vote."""

    metric: DistanceMetric = "l2"
    """Of embeddings; cosine is what networks such as `clip` and `dinov2` are meant for."""
    neighbors: int = Field(default=1, ge=1)
    """Each record votes for this many nearest samples of its label; sensitivity sqrt(neighbors)."""
    across_labels: bool = False
    """Records vote for the nearest samples of any label, so votes say which images are like the
    records, whatever they show. Needs a teacher, which gives final images their labels."""
    lookahead: int = Field(default=0, ge=0, le=1024)
    """Embed each sample as the mean of this many variations of it; 0: the sample itself."""
    reuse_lookahead: bool = False
    """Take a parent's first `lookahead` children from the variations that it was embedded by: saves
    their calls, costs disk for `lookahead` images a sample during an iteration."""
    max_votes_per_user: int = Field(default=1, ge=1, le=1_000_000)
    """`unit: user` only: a user votes for at most this many samples, over all labels together."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reuse_lookahead and not self.lookahead:
            raise ValueError("reuse_lookahead: needs lookahead above 0")
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(
            update={
                "neighbors": min(self.neighbors, rehearsal.num_samples),
                "lookahead": min(self.lookahead, 1),
            }
        )


class SelectionSettings(Block):
    """How the released histogram becomes parents."""

    denoise: DenoiserPlugin = Field(default="threshold", validate_default=True)
    """How noisy counts become weights."""
    threshold: float | Literal["auto"] | None = Field(default=None, exclude=True)
    """Short for `denoise: {kind: threshold, threshold: ...}`; other kinds take no notice of it."""
    smooth: int = Field(default=1, ge=1, le=1024)
    """Before that, average each count over at most this many near samples of its label, as many as
    the votes and their known noise say is best; 1: none (synthetic/smoothing.py)."""
    method: Literal["systematic", "multinomial", "rank"] = "systematic"
    """How parents are drawn by their weights; rank: the heaviest, each equally often."""
    keep_selected: bool = False
    """Keep each selected parent together with its variations."""
    next_variation_fold: int = Field(default=1, ge=1)
    """Variations of each selected parent."""

    @model_validator(mode="before")
    @classmethod
    def _fold_threshold(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or tree.get("threshold") is None:
            return tree
        kind = tree.get("denoise", "threshold")
        denoiser = {"kind": kind} if isinstance(kind, str) else kind
        if isinstance(denoiser, Mapping) and denoiser.get("kind") == "threshold":
            denoiser = {"threshold": tree["threshold"], **denoiser}
        rest = {name: value for name, value in tree.items() if name != "threshold"}
        return {**rest, "denoise": denoiser}


class SelectionConfig(SelectionSettings):
    """Selection, the same in every iteration but for `overrides`."""

    initial_variation_fold: int = Field(default=0, ge=0)
    """Variations of each random draw in the initial population."""
    overrides: dict[int, SelectionSettings] = Field(default={})
    """Iteration (from 1) -> settings that differ there."""

    @field_serializer("overrides")
    def _only_what_differs(self, overrides: dict[int, SelectionSettings]) -> dict[int, Any]:
        return {
            iteration: given.model_dump(mode="json", exclude_unset=True)
            for iteration, given in overrides.items()
        }

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        kept = [t for t in self.overrides if t in rehearsal.iterations]
        return self.model_copy(
            update={"overrides": {rehearsal.move(t): self.overrides[t] for t in kept}}
        )

    def at(self, iteration: int) -> SelectionSettings:
        """Return the settings of one iteration."""
        given = self.overrides.get(iteration)
        changed = given.model_fields_set if given else frozenset()
        settings = {
            name: getattr(given if name in changed else self, name)
            for name in SelectionSettings.model_fields
        }
        return SelectionSettings(**settings)


class Ramp(Block):
    """Evenly spaced values from `start` to `end`, one per iteration."""

    start: float
    """Of the first iteration."""
    end: float
    """Of the last iteration."""


class ScheduleConfig(Block):
    """How many iterations, samples and how much variation."""

    iterations: int = Field(ge=1, le=10_000)
    """T, the number of votes."""
    num_samples: int | tuple[int, ...]
    """Population size, or the sizes of S_0 .. S_T (iterations + 1 numbers)."""
    degrees: float | tuple[float, ...] | Ramp
    """Variation degree of each iteration, in the generator's units; `expand` takes the last."""
    noise: Literal["constant"] | float | tuple[float, ...] = "constant"
    """sigma of the last release over that of the first (geometric between; below 1 spends late),
    or one relative sigma per iteration."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the public randomness (never of the privacy noise)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.sizes) != self.iterations + 1:
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
        ratios = self.noise if isinstance(self.noise, tuple) else (self._noise_ratio,)
        if not all(1e-6 <= ratio <= 1e6 for ratio in ratios):
            raise ValueError("noise: must be from 1e-6 to 1e6")
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        kept = rehearsal.iterations
        return self.model_copy(
            update={
                "iterations": len(kept),
                "num_samples": rehearsal.num_samples,
                "degrees": tuple(self.degree_list[t - 1] for t in kept),
                "noise": tuple(self.relative_sigmas[t - 1] for t in kept),
            }
        )

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
            return tuple(self.degrees.start + span * share for share in self._elapsed)
        return (self.degrees,) * self.iterations

    @property
    def relative_sigmas(self) -> tuple[float, ...]:
        """sigma_1, ..., sigma_T up to a common factor."""
        if isinstance(self.noise, tuple):
            return self.noise
        return tuple(self._noise_ratio**share for share in self._elapsed)

    @property
    def _noise_ratio(self) -> float:
        return self.noise if isinstance(self.noise, float) else 1.0

    @property
    def _elapsed(self) -> list[float]:
        """0 in the first iteration, 1 in the last, evenly spaced between."""
        return [t / max(1, self.iterations - 1) for t in range(self.iterations)]


class PrivacyConfig(Block):
    """The guarantee. None of the first four has a default."""

    unbound: ClassVar[frozenset[str]] = frozenset({"account", "spender"})

    label_count_share: ClassVar[float] = 0.05
    """With `label_fractions: dp`, share of sum(1/sigma^2) that the label counts get."""

    epsilon: float = Field(gt=0, allow_inf_nan=True)
    """Of the whole run; .inf adds no noise and protects nobody."""
    delta: float = Field(gt=0, lt=1)
    """Of the whole run; well below one over the number of records."""
    unit: Unit
    """What is added or removed between neighbouring data sets: one record, or all of a user's."""
    label_fractions: Literal["uniform", "dp"] | tuple[float, ...]
    """Share of each label in the population: uniform, given here (public), or released (dp)."""
    account: PathText | None = None
    """File of the data set's account, where runs and searches reserve before they spend
    (account.md); default: none."""
    spender: str | None = None
    """Who spends, as the account's policy names them; default: the user's login name."""

    @field_validator("label_fractions")
    @classmethod
    def _are_shares(cls, fractions: Any) -> Any:
        if isinstance(fractions, tuple):
            positive = all(math.isfinite(share) and share >= 0 for share in fractions)
            if not positive or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
                raise ValueError("must be shares that sum to 1")
        return fractions

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(update={"account": None, "spender": None})

    @property
    def budget(self) -> Budget:
        """The guarantee as a value."""
        return Budget(epsilon=self.epsilon, delta=self.delta, unit=self.unit)


class TeacherConfig(Block):
    """One more release after the last vote, with which final images get the labels that the
    private records give images like them (synthetic/teacher.py). Needs torch, no GPU.
    """

    modules: ClassVar[tuple[str, ...]] = ("torch",)

    share: float = Field(default=0.5, ge=1e-6, lt=1)
    """Share of sum(1/sigma^2) that this release gets; the votes get the rest."""
    embedder: EmbedderPlugin | None = None
    """What makes the features, with `whiten`; default: a network that learns the last population,
    as it is labelled."""
    features: int = Field(default=128, ge=2, le=1024)
    """Features of the regression; features^2 / 2 noisy numbers are released."""
    keep: int | None = Field(default=None, ge=1)
    """Images of S_T in the final set, shared out to labels as samples are; default: all of S_T,
    with the teacher's labels."""
    keep_by: Literal["mean", "score"] = "mean"
    """Which of a label: so many that their mean feature follows the released one of the records
    (mean), or those that the teacher is surest of (score)."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the last population when training that network: 2 do for 60,000 images, a few
    thousand need more. Of no effect with an embedder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embedder is None:
            return self
        if self.embedder.options.learnt:
            raise ValueError(f"embedder: {self.embedder.kind} is for votes; leave it out")
        if self.embedder.whiten is None:
            raise ValueError("embedder.whiten: needed; name public images, or the population")
        if self.embedder.whiten.dims not in (None, self.features):
            raise ValueError("embedder.whiten.dims: are the teacher's `features`; leave it out")
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        whiten = self.embedder.whiten if self.embedder else None
        features = min(self.features, REHEARSED_DIMS)
        if whiten is not None and whiten.dims is None:
            features = REHEARSED_DIMS  # as the whitening's
        keep = self.keep and rehearsal.num_samples
        return self.model_copy(update={"features": features, "epochs": 1, "keep": keep})

    @property
    def whitened(self) -> Plugin:
        """The embedder, whitened to the number of features."""
        assert self.embedder is not None
        assert self.embedder.whiten is not None
        whiten = self.embedder.whiten.model_copy(update={"dims": self.features})
        return self.embedder.model_copy(update={"whiten": whiten})

    def check_run(
        self, *, num_labels: int, num_images: int, shape: ImageShape, left: float
    ) -> None:
        """Raise ValueError, naming the key, where a run like this can't have a teacher.

        num_images: of the last population. left: share of the budget that other sums and counts
        leave.
        """
        if self.keep is not None and not num_labels <= self.keep <= num_images:
            raise ValueError(
                f"teacher.keep: give a number from {num_labels}, one a label, to the "
                f"size of S_T, {num_images:,}"
            )
        if num_labels < 2:
            raise ValueError("teacher: needs at least two private.labels to tell apart")
        if self.embedder is None and min(shape.height, shape.width) < _LEAST_SIDE:
            raise ValueError(f"teacher: needs images of at least {_LEAST_SIDE}x{_LEAST_SIDE}")
        if self.features * ((self.features + 1) / 2 + num_labels) > MAX_SUMS:
            raise ValueError("teacher.features: too many for so many labels; lower it")
        if self.share >= left:
            raise ValueError(f"teacher.share: must be below {left:g}, which other releases leave")
        if self.embedder is None and num_images < self.features:
            raise ValueError(
                f"teacher.features: must be at most {num_images}, the last of schedule.num_samples"
            )


class PublicMetricsConfig(Block):
    """Scores of released populations against public images, into metrics.jsonl: free."""

    data: Place
    """As in private.data. Must be public."""
    image_column: str = "image"
    """Column with the image; class folders have none, and lists may call it file_name."""
    label_column: str | None = "label"
    """null: the images have no labels, so metrics that compare labels refuse them."""
    label_values: LabelValues = "name"
    """As in private.label_values."""
    where: dict[str, str | int | bool] = Field(default={})
    """Keep only rows whose column equals the value."""
    every: int = Field(default=1, ge=1)
    """Score S_0, S_every, S_(2 every), ... and the last."""
    max_images: int = Field(default=10_000, ge=2)
    """Images scored at most, of either side (evenly spaced rows)."""
    metrics: tuple[MetricPlugin, ...] = Field(
        default=("frechet", "precision_recall"), min_length=1, validate_default=True
    )
    """What is scored."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        columns = {"label_column": self.label_column and "label", "label_values": "name"}
        return self.model_copy(
            update=rehearsal.write_images("reference") | columns | {"where": {}, "every": 1}
        )


class MetricsConfig(Block):
    """What a run scores on public images, and `pe-ray audit` on private ones."""

    public: PublicMetricsConfig | None = None
    """Default: nothing is scored in the run."""
    audit: tuple[MetricPlugin, ...] = ()
    """What `pe-ray audit` scores on private records."""
    audit_data: Place | None = None
    """Reference records of the audit, held-out ones for its privacy score; default:
    private.data."""
    audit_where: dict[str, str | int | bool] | None = None
    """Row filter of the reference; default: private.where."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(update={"audit_data": None, "audit_where": None})


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
    """CPUs that a worker reserves."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that a worker reserves; a fraction shares one."""
    batch_size: int = Field(default=256, ge=1)
    """Images a generator makes at once."""
    stall_seconds: float = Field(default=STALL_SECONDS, gt=0, le=1e6)
    """Hang detection: a worker without progress for so long is killed and its work made again. Set
    it longer than any step takes: a part of a population, 64 private records, a block of the
    search or of a sum."""

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return type(self)(
            num_cpus=self.num_cpus,
            workers=min(self.workers or 2, 2),
            batch_size=min(self.batch_size, _REHEARSED_ROWS),
        )


class OutputConfig(Block):
    """Where the run goes."""

    unbound: ClassVar[frozenset[str]] = frozenset({"ledger"})

    path: Place
    """Run directory; everything in it is safe to publish. A folder that all machines of the run
    reach by this path, or the URI of a store: s3://BUCKET/FOLDER (docs/storage.md)."""
    ledger: LocalFolder | None = None
    """Run directories in a store only, needed there: a local folder on the driver's durable disk
    for ledger.sqlite, which is copied into the run after each release."""
    rows_per_part: int | None = Field(default=None, ge=1)
    """Rows of one file; default: a 32nd of the population, at most 4096 rows and 32 MiB."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ledger and isinstance(parse_location(self.path), Path):
            raise ValueError(
                "ledger: only for an output.path in a store; a local run's ledger is in it"
            )
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return type(self)(path=str(rehearsal.folder / "run"), rows_per_part=_REHEARSED_ROWS)
