"""What a run learns of its embedders before a private record is read: `label_features`, whitening.

Only public images and public randomness go into it. It depends on no private record and is no
release.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders import label_features, whitening
from pe_ray.components.embedders.label_features import LabelFeaturesOptions, LearntFeaturesOptions
from pe_ray.components.embedders.whitening import WhitenedOptions
from pe_ray.config import Config
from pe_ray.config.kinds import Plugin, Whitening
from pe_ray.config.yaml_tree import digest_tree
from pe_ray.files.array_files import encode_arrays, holds_arrays, keep_arrays, write_arrays
from pe_ray.files.image_batches import read_spaced
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.images import resize
from pe_ray.files.storage import Location
from pe_ray.plugins import Embedder, Images, build
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run_context import RunContext
from pe_ray.runtime.events import announce
from pe_ray.runtime.named_files import FEATURES
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.runtime.watchdog import note_progress
from pe_ray.runtime.workers import run_in_worker
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.values import ImageShape

_CHUNK = 1024  # images drawn between two signs of life


def prepare_run(config: Config, directory: RunDirectory) -> RunContext:
    """Return the run of `config` in `directory`; its embedders are learnt first where they have to.

    What is learnt stays in the run directory, so it is learnt once. Needs a connected Ray.
    """
    embedder, options = config.embedder, config.embedder.options
    if isinstance(options, LabelFeaturesOptions):
        file = _locate(config, directory, embedder)
        if not holds_arrays(file):
            announce(f"learning the embedder from {options.num_images} random images")
            resources = config.resources
            run_in_worker(_learn, file, config, options, resources=resources, end_process=True)
        learnt = LearntFeaturesOptions(
            file=str(file), num_features=options.features, pixels=options.pixels
        )
        embedder = Plugin(plugin_type="embedder", kind=label_features.KIND, options=learnt)
    elif embedder.whiten is not None:
        embedder = _whiten(config, directory, "embedder", embedder)
    if config.teacher is not None and config.teacher.embedder is not None:
        _whiten(config, directory, "teacher.embedder", config.teacher.whitened)
    return RunContext(config=config, directory=directory, embedder=embedder)


def locate_whitened(config: Config, directory: RunDirectory, embedder: Plugin) -> Plugin:
    """Return the embedder with the whitening that this run has fitted, or will fit."""
    plain = embedder.model_copy(update={"whiten": None})
    file = _locate(config, directory, embedder)
    dims = embedder.dim(config.image_shape)
    options = WhitenedOptions(embedder=plain, file=str(file), num_features=dims)
    return Plugin(plugin_type="embedder", kind=whitening.KIND, options=options)


def public_whitening(config: Config) -> Iterator[ImageTable]:
    """Yield the public images that embedders are whitened on."""
    for field, given in config.whitenings.items():
        if not given.on_population:
            yield _whitening_table(field, given)


def _whitening_table(field: str, given: Whitening) -> ImageTable:
    return ImageTable(
        block=field,
        private=False,
        data=given.data,
        image_column=given.image_column,
        label_column=None,
        where=given.where,
    )


def _locate(config: Config, directory: RunDirectory, embedder: Plugin) -> Location:
    """Return the file of what is learnt; its name is a digest of all that it depends on.

    Caches of embeddings keep the name. So runs that differ in nothing that counts share them, as
    seeds do whose embedder is whitened on public images.
    """
    if embedder.whiten is not None:  # a default number is the same as that number
        dims = {"dims": embedder.dim(config.image_shape)}
        embedder = embedder.model_copy(update={"whiten": embedder.whiten.model_copy(update=dims)})
    inputs: dict[str, Any] = {
        "embedder": embedder.model_dump(mode="json"),
        "framing": asdict(config.framing),
        "format": label_features.FORMAT,
    }
    if embedder.whiten is None or embedder.whiten.on_population:
        inputs |= {
            "generator": config.generator_at(0).model_dump(mode="json"),
            "labels": list(config.private.labels),
            "seed": config.schedule.seed,
        }
    return directory.path / FEATURES / f"{digest_tree(inputs)[:16]}.npz"


def _draw(config: Config, num: int) -> Iterator[tuple[Images, NDArray[np.int32]]]:
    """Yield `num` random images of the generator with their labels, as many of each label."""
    generator = BatchedGenerator(config.generator_at(0), config)
    num_labels = len(config.private.labels)
    for start in range(0, num, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, num), dtype=np.int64)
        labels = (ids % num_labels).astype(np.int32)
        seeds = row_seeds(config.schedule.seed, "features", 0, ids)
        yield generator.random(labels, seeds)["image"], labels
        note_progress()


def _learn(file: Location, config: Config, options: LabelFeaturesOptions) -> None:
    """Draw images, train the features on their labels and write them to `file`."""
    drawn = config.image_shape
    shape = ImageShape(
        height=min(drawn.height, options.size),
        width=min(drawn.width, options.size),
        channels=drawn.channels,
    )
    size = (options.num_images, shape.height, shape.width, shape.channels)
    images = np.empty(size, dtype=np.uint8)
    labels = np.empty(options.num_images, dtype=np.int32)
    start = 0
    for made, own in _draw(config, options.num_images):
        rows = slice(start, start := start + len(made))
        images[rows] = made if shape == drawn else [resize(image, shape) for image in made]
        labels[rows] = own
    seed = config.schedule.seed
    write_arrays(file, label_features.fit(images, labels, options.features, options.epochs, seed))


def _whiten(config: Config, directory: RunDirectory, field: str, embedder: Plugin) -> Plugin:
    """Return the embedder with its whitening, which is fitted in a worker where it isn't yet."""
    file = _locate(config, directory, embedder)
    if not holds_arrays(file):
        announce(f"fitting {field}.whiten")
        one = config.resources.model_copy(update={"cpus_per_worker": 1.0})  # threads change bits
        run_in_worker(_fit, file, config, field, embedder, resources=one)
    return locate_whitened(config, directory, embedder)


def _fit(file: Location, config: Config, field: str, plugin: Plugin) -> None:
    """Embed the images that the whitening names and write what is fitted to them."""
    given = plugin.whiten
    assert given is not None
    embedder: Embedder = build("embedder", plugin.kind, plugin.options)
    if given.on_population:
        batches = (images for images, _ in _draw(config, given.num_images))
    else:
        table = _whitening_table(field, given)
        found = read_spaced(table, config.framing, given.num_images)
        batches = (batch.images for batch in found)
    made = []
    for images in batches:
        made.append(embedder.embed(images))
        note_progress()
    dims = plugin.dim(config.image_shape)
    fitted = whitening.fit_whitening(np.concatenate(made), dims, field)
    keep_arrays(file, encode_arrays(fitted))
