"""Generator on a public image set: its images are the samples, their neighbours the variations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.components.generators.cached_images import CachedImages, PartedArray, fill_parts
from pe_ray.components.generators.generator_checks import refuse_unknown_labels, within
from pe_ray.components.generators.views import view_images
from pe_ray.components.nearest import find_others, rows_at_once
from pe_ray.config.kinds import FixedEmbedderPlugin
from pe_ray.config.places import Color, LocalFolder, Place
from pe_ray.errors import InputError
from pe_ray.files.image_tables import ImageTable
from pe_ray.plugins import Embedder, GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, choose_step
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import Framing, ImageShape, Resize

MOST_NEIGHBORS = 4096

_EMBEDDED = 4096  # images of one part of the cache


class NearestImageOptions(GeneratorOptions):
    """Options of NearestImage."""

    unbound: ClassVar[frozenset[str]] = frozenset({"cache"})

    data: Place
    """The public images, as in private.data, at the same path on every machine or in a store."""
    image_column: str = "image"
    label_column: str | None = "label"
    """Column with the public class (not of class folders); null: the images have none."""
    image_size: int = Field(ge=1, le=4096)
    """Height and width, in pixels."""
    channels: Literal[1, 3] = 3
    resize: Resize = "crop"
    """What is done to images that aren't square, as in private.resize."""
    background: Color = "black"
    """As in private.background."""
    classes: Literal["match", "random"] | dict[str, tuple[str, ...]] = "match"
    """Which public images stand for a label: those whose class has the label's name (match), all
    (random), or label -> names of public classes. Variations stay among them."""
    start: Literal["random", "distinct"] = "random"
    """How S_0 is drawn: each image on its own (random), or none twice of a label while there are
    others (distinct). As many samples of a label as it has images are then all of them."""
    view: Annotated[tuple[float, float], within(0.1, 4)] = (1.0, 1.0)
    """Range of the side of what a sample shows, in sides of the public image: below 1 a part of it,
    above 1 all of it in more background. The place is random, too."""
    mirror: bool = False
    """Whether half of the samples are mirrored, left to right."""
    embedder: FixedEmbedderPlugin = Field(default="pixels", validate_default=True)
    """In whose space images are near; one that is meant for l2 or cosine."""
    cache: LocalFolder | None = None
    """Folder for decoded images and neighbours; default: pe_ray/public in the user's cache."""

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=self.channels)

    @property
    def framing(self) -> Framing:
        return Framing(shape=self.image_shape, resize=self.resize, background=self.background)

    @property
    def public_table(self) -> ImageTable:
        return ImageTable(
            block="generator",
            private=False,
            data=self.data,
            image_column=self.image_column,
            label_column=self.label_column,
        )

    @property
    def numbers_draws(self) -> bool:
        return self.start == "distinct"

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """public_image: which public image a sample is."""
        return {"public_image": ("int64", 1)}

    @property
    def shown_data(self) -> str:
        return self.data

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        own = self.classes if isinstance(self.classes, dict) else {}
        classes = [*dict.fromkeys(name for names in own.values() for name in names)]
        public = rehearsal.write_images("public", classes or None)
        places = {"label_column": self.label_column and "label"}
        return self.model_copy(update=public | places | {"cache": str(rehearsal.folder / "public")})

    def check_degree(self, degree: float) -> None:
        if degree not in range(MOST_NEIGHBORS + 1):
            raise ValueError(
                f"degree {degree:g}: is the number of nearest public images to choose from; give a "
                f"whole number from 0 (the image itself) to {MOST_NEIGHBORS}"
            )


class NearestImage:
    """A public image set as the API (Lin et al. 2025, arXiv 2502.05505, "Sim-PE").

    RANDOM_API: a public image of the label, all equally likely; with `start: distinct`, the next
    one in an order that spreads them. VARIATION_API with degree m: one of
    the m nearest other public images of the label, all equally likely; of all, if there are fewer;
    for m = 0, the image itself. Neighbours are found once, and again for a larger m. With `view`
    or `mirror` both show a new view of that image.

    A sample depends on the public set and the seed alone.
    """

    Options: ClassVar[type[GeneratorOptions]] = NearestImageOptions

    def __init__(self, options: NearestImageOptions, label_names: Sequence[str]) -> None:
        self._options = options
        side = math.ceil(options.image_size / min(1.0, options.view[0]))  # as fine as the samples
        shape = ImageShape(height=side, width=side, channels=options.channels)
        framing = replace(options.framing, shape=shape)
        self._public = CachedImages(options.public_table, framing, options.cache)
        self._members = _members(options, self._public, label_names)
        embedder = options.embedder
        self._embedder = plugins.digest_plugin("embedder", embedder.kind, embedder.options)
        self._tables: dict[str, PartedArray] = {}

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw a public image of each label."""
        chosen = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members, of_label = self._members[label], labels == label
            places = seeds[of_label] % np.uint64(len(members))
            if self._options.start == "distinct":  # consecutive numbers, to be spread out
                places = places * np.uint64(choose_step(len(members))) % np.uint64(len(members))
            chosen[of_label] = members[places]
        return self._to_rows(chosen, seeds)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Draw one of the `degree` nearest public images of each row's own."""
        self._options.check_degree(degree)
        current = rows["public_image"]
        chosen = current.copy()
        for label in np.unique(rows["label"]):
            members, of_label = self._members[label], rows["label"] == label
            num_neighbors = min(int(degree), len(members) - 1)
            if num_neighbors:
                table = self._load_table(members, num_neighbors)
                drawn = (seeds[of_label] % np.uint64(num_neighbors)).astype(np.int64)
                positions = np.searchsorted(members, current[of_label])
                near = table.take(positions)[np.arange(len(drawn)), drawn]
                chosen[of_label] = members[near]
        return self._to_rows(chosen, seeds)

    def _to_rows(self, chosen: NDArray[np.int64], seeds: Seeds) -> Rows:
        images, options = self._public.images.take(chosen), self._options
        if options.mirror or options.view != (1.0, 1.0):
            images = view_images(
                images,
                options.image_size,
                seeds,
                options.view,
                mirror=options.mirror,
                background=options.background,
            )
        return {"image": images, "public_image": chosen}

    def _load_table(self, members: NDArray[np.int64], num_neighbors: int) -> PartedArray:
        """Return neighbours int32 [members, at least `num_neighbors`], positions in `members`.

        A table in the cache that is wide enough is used; else one is written, its width rounded up
        to a power of two.
        """
        key = hashlib.sha256(f"{self._embedder}|".encode() + members.tobytes()).hexdigest()[:32]
        table = self._tables.get(key)
        if table is None or table.parts[0].shape[1] < num_neighbors:
            folder = self._public.folder / f"neighbors-{key}"
            widths = [int(cached.name) for cached in folder.glob("[0-9]*")]
            rounded = min(len(members) - 1, max(16, 1 << (num_neighbors - 1).bit_length()))
            width = min((width for width in widths if width >= num_neighbors), default=rounded)
            table = self._write_table(folder, members, width)
            self._tables[key] = table
        return table

    def _write_table(self, folder: Path, members: NDArray[np.int64], width: int) -> PartedArray:
        """Write each member's `width` nearest other members, in parts; embed them first."""
        plugin = self._options.embedder
        embedder = cast(Embedder, plugins.load("embedder", plugin.kind)(plugin.options))
        if embedder.metric not in ("l2", "cosine"):
            raise InputError(
                f"generator.embedder: {embedder.metric} is no distance; use l2 or cosine"
            )

        def embed(number: int, made: Path) -> None:
            rows = members[number * _EMBEDDED : (number + 1) * _EMBEDDED]
            vectors = embedder.embed(self._public.images.take(rows))
            if not np.isfinite(vectors).all():
                raise InputError(
                    "generator.embedder: gives public images values that are no numbers"
                )
            np.save(made / "vectors.npy", vectors)

        found = fill_parts(folder / "vectors", -(-len(members) // _EMBEDDED), embed)
        vectors, step = PartedArray([part / "vectors.npy" for part in found]), rows_at_once(width)

        def search(number: int, made: Path) -> None:
            rows = np.arange(number * step, min((number + 1) * step, len(members)))
            queries, blocks = vectors.take(rows), (np.asarray(part) for part in vectors.parts)
            others = find_others(queries, number * step, blocks, width, embedder.metric)
            np.save(made / "neighbors.npy", others.astype(np.int32))

        found = fill_parts(folder / f"{width:05d}", -(-len(members) // step), search)
        return PartedArray([part / "neighbors.npy" for part in found])


def _members(
    options: NearestImageOptions, public: CachedImages, label_names: Sequence[str]
) -> list[NDArray[np.int64]]:
    """Return ascending row numbers of the public images that stand for each label; none empty."""
    if options.classes == "random":
        return [np.arange(len(public.images), dtype=np.int64)] * len(label_names)
    classes: dict[str, tuple[str, ...]] = {name: (name,) for name in label_names}
    if options.classes != "match":
        classes = options.classes
        refuse_unknown_labels("classes", classes, label_names)
    members = []
    for name in label_names:
        wanted = classes.get(name, ())
        if not wanted or not set(wanted) <= set(public.classes):
            shown = ", ".join(map(repr, public.classes[:10]))
            more = ", ..." if len(public.classes) > 10 else ""
            raise InputError(
                f"generator.classes: give label {name!r} public classes out of {shown}{more}, not "
                f"{list(wanted)}; or write classes: random"
            )
        numbers = [public.classes.index(each) for each in wanted]
        members.append(np.flatnonzero(np.isin(public.class_of, numbers)))
    return members
