"""Learn an embedder from the generator's random images, before a private record is read.

Only public randomness goes into it. It depends on no private record and is no release.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from pe_ray.components.embedders import label_features
from pe_ray.components.embedders.label_features import LabelFeaturesOptions, LearntFeaturesOptions
from pe_ray.config import Config
from pe_ray.config.kinds import Plugin
from pe_ray.errors import DamagedFileError
from pe_ray.files.images import resize
from pe_ray.files.storage import Location
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run import Run
from pe_ray.runtime.events import announce
from pe_ray.runtime.named_files import FEATURES
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.runtime.stages import run_in_worker
from pe_ray.runtime.watchdog import note_progress
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.values import ImageShape

_CHUNK = 1024  # images drawn between two signs of life


def prepare_run(config: Config, directory: RunDirectory) -> Run:
    """Return the run of `config` in `directory`; its embedder is learnt first where it has to be.

    What is learnt stays in the run directory, so it is learnt once. Needs a connected Ray.
    """
    embedder, options = config.embedder, config.embedder.options
    if isinstance(options, LabelFeaturesOptions):
        file = directory.path / FEATURES / f"{_name(config)}.npz"
        if not _is_learnt(file):
            announce(f"learning the embedder from {options.num_images} random images")
            run_in_worker(
                *(_learn, file, config, options), resources=config.resources, end_process=True
            )
        learnt = LearntFeaturesOptions(file=str(file), num_features=options.features)
        embedder = Plugin(plugin_type="embedder", kind=label_features.KIND, options=learnt)
    return Run(config=config, directory=directory, embedder=embedder)


def _is_learnt(file: Location) -> bool:
    """Tell whether the features are there and undamaged."""
    try:
        return file.exists() and bool(label_features.read_arrays(file))
    except DamagedFileError:
        return False


def _name(config: Config) -> str:
    """Return a digest of all that the features depend on."""
    inputs = {
        "generator": config.generator_at(0).model_dump(mode="json"),
        "embedder": config.embedder.model_dump(mode="json"),
        "labels": list(config.private.labels),
        "seed": config.schedule.seed,
        "format": label_features.FORMAT,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _learn(file: Location, config: Config, options: LabelFeaturesOptions) -> None:
    """Draw images, train the features on their labels and write them to `file`."""
    num, seed = options.num_images, config.schedule.seed
    drawn = config.image_shape
    shape = ImageShape(
        height=min(drawn.height, options.size),
        width=min(drawn.width, options.size),
        channels=drawn.channels,
    )
    images = np.empty((num, shape.height, shape.width, shape.channels), dtype=np.uint8)
    labels = (np.arange(num) % len(config.private.labels)).astype(np.int32)
    generator = BatchedGenerator(config.generator_at(0), config)
    for start in range(0, num, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, num), dtype=np.int64)
        made = generator.random(labels[ids], row_seeds(seed, "features", 0, ids))["image"]
        images[ids] = made if shape == drawn else [resize(image, shape) for image in made]
        note_progress()
    arrays = label_features.fit(images, labels, options.features, options.epochs, seed)
    label_features.write(file, arrays)
