"""Plugins as a configuration names them: a kind and its options, written flat in YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from pe_ray import plugins
from pe_ray.config.places import Place
from pe_ray.errors import InputError
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import ImageShape

WHITENED_DIMS = 256
REHEARSED_DIMS = 8


class Block(plugins.Options):
    """Base of every block: frozen, unknown keys refused."""


class Whitening(Block):
    """Images on which an embedder is whitened before a private record is read: its numbers get the
    same variance in all directions there, and each embedding norm 1.
    """

    data: Place
    """Public images, as in private.data; or `population`: random images of the generator."""
    image_column: str = "image"
    """Column with the image; class folders have none, and lists may call it file_name."""
    where: dict[str, str | int | bool] = Field(default={})
    """Keep only rows whose column equals the value."""
    num_images: int = Field(default=5_000, ge=100, le=1_000_000)
    """Images that are used at most, evenly spaced; one worker embeds them all."""
    dims: int | None = Field(default=None, ge=2, le=4096)
    """Numbers per image, those in which images differ most; default: 256, in a teacher its
    `features`."""

    @property
    def on_population(self) -> bool:
        """Whether the images are the generator's."""
        return self.data == "population"

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        images = {} if self.on_population else rehearsal.write_images("public") | {"where": {}}
        dims = min(self.dims or REHEARSED_DIMS, REHEARSED_DIMS)
        return self.model_copy(update={**images, "num_images": 100, "dims": dims})


class Plugin(Block):
    """A plugin's kind and its validated options; of an embedder, its whitening too."""

    plugin_type: plugins.PluginType
    kind: str
    options: Any
    whiten: Whitening | None = None

    @property
    def learnt(self) -> bool:
        """Whether each run learns its own, so that embeddings of two runs can't be compared."""
        return self.whiten is not None or self.options.learnt

    def dim(self, shape: ImageShape) -> int:
        """Return the length of the embedding of an image of `shape`."""
        if self.whiten is not None:
            return self.whiten.dims or WHITENED_DIMS
        found: int = self.options.dim(shape)
        return found

    @model_serializer
    def _serialize(self, info: SerializationInfo) -> dict[str, Any]:  # type: ignore[override]
        options = self.options.model_dump(mode="json", context=info.context)
        whiten = {"whiten": self.whiten.model_dump(mode="json")} if self.whiten else {}
        return {"kind": self.kind, **options, **whiten}


@dataclass(frozen=True, slots=True)
class PluginOf:
    """Reads {kind: KIND, option: ...}, or KIND alone, as a Plugin of this type."""

    plugin_type: plugins.PluginType

    def read(self, raw: Any) -> Any:
        """Load the plugin that `raw` names and validate its options."""
        if isinstance(raw, Plugin):
            return raw
        tree = {"kind": raw} if isinstance(raw, str) else raw
        if not isinstance(tree, Mapping) or not isinstance(tree.get("kind"), str):
            raise ValueError("needs a `kind`")
        given = dict(tree)
        kind = given.pop("kind")
        whiten = given.pop("whiten", None) if self.plugin_type == "embedder" else None
        try:
            loaded = plugins.load(self.plugin_type, kind)
        except InputError as error:
            raise ValueError(str(error).removeprefix(f"{self.plugin_type}.")) from None
        options = plugins.options_of(loaded).model_validate(given)
        if whiten is not None and options.learnt:
            raise ValueError(f"whiten: {kind} is whitened already; leave it out")
        return Plugin(plugin_type=self.plugin_type, kind=kind, options=options, whiten=whiten)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"plugin_type": self.plugin_type}  # docs/generate.py lists the kinds


GeneratorPlugin = Annotated[Plugin, PluginOf("generator")]
EmbedderPlugin = Annotated[Plugin, PluginOf("embedder")]
MetricPlugin = Annotated[Plugin, PluginOf("metric")]
DenoiserPlugin = Annotated[Plugin, PluginOf("denoiser")]
StrategyPlugin = Annotated[Plugin, PluginOf("tuning_strategy")]
ObjectivePlugin = Annotated[Plugin, PluginOf("tuning_objective")]


def _refuse_learnt(embedder: Plugin) -> Plugin:
    if embedder.learnt:
        what = "whiten" if embedder.whiten else embedder.kind
        raise ValueError(f"{what} is learnt by each run for its votes; name another")
    return embedder


FixedEmbedderPlugin = Annotated[EmbedderPlugin, AfterValidator(_refuse_learnt)]
"""An embedder that is the same for every run."""


def check_metric(field: str, metric: Plugin, *, num_labels: int, num_images: int) -> None:
    """Raise InputError naming `field` where a set has too few labels or images for a metric."""
    options = metric.options
    if not isinstance(options, plugins.MetricOptions):
        return
    for what, least, given in (
        ("labels", options.least_labels, num_labels),
        ("images", options.least_images, num_images),
    ):
        if given < least:
            raise InputError(
                f"{field}: {metric.kind} needs at least {least} {what}, and there are {given}; "
                "leave it out, or give more"
            )


def better_scores(metrics: Iterable[Plugin], names: Iterable[str]) -> dict[str, str]:
    """Return `lower` or `higher`, whichever is better, of the scores whose metric says so."""
    stated = {"accuracy_teacher": "higher"}
    for metric in metrics:
        stated |= getattr(plugins.load("metric", metric.kind), "better", {})
    heads = {name: name.removeprefix("public/").partition("/")[0] for name in names}
    return {name: stated[head] for name, head in heads.items() if head in stated}


class Stage(Block):
    """A generator and the iteration from which on it is used."""

    start: int = Field(ge=0)
    """0 is the random draws."""
    generator: GeneratorPlugin

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        return self.model_copy(update={"start": rehearsal.move(self.start)})


class Switch(Block):
    """Generators by iteration: the last stage with start <= t makes S_t, and the lookahead for it.

    A stage reads the samples of the stage before it. So both make images of the same shape, and
    the earlier one writes every own column that the later one reads.
    """

    kind: Literal["switch"]
    stages: tuple[Stage, ...] = Field(min_length=1)

    def at(self, iteration: int) -> Plugin:
        """Return the generator that makes S_iteration."""
        return [stage.generator for stage in self.stages if stage.start <= iteration][-1]

    @model_validator(mode="after")
    def _check(self) -> Self:
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


def _one_or_several(raw: Any) -> str:
    kind = raw.get("kind") if isinstance(raw, Mapping) else None
    return "several" if isinstance(raw, Switch) or kind == "switch" else "one"


Generators = Annotated[
    Annotated[Switch, Tag("several")] | Annotated[GeneratorPlugin, Tag("one")],
    Discriminator(_one_or_several),
]
"""One generator, or several that follow each other."""
