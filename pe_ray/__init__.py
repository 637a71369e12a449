"""pe_ray: differentially private synthetic images by Private Evolution, on Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.errors import BudgetError, FaultError, InputError, RecordError
from pe_ray.files.storage import Location
from pe_ray.runtime.events import Event, Listener, log_to_stderr

__version__ = "0.1.0"
__all__ = [
    "BudgetError",
    "Config",
    "Event",
    "FaultError",
    "InputError",
    "RecordError",
    "ResourcesConfig",
    "evolve",
    "expand",
    "label_images",
    "save_images",
]


def evolve(config: Config, on_event: Listener | None = None) -> Location:
    """Run Private Evolution, or continue it; return the run directory (see pe_ray.evolution).

    on_event: is called with each `Event` of the run. Lines of the log go to standard error where
    the program has set up no logging.
    """
    from pe_ray.evolution import evolve as run

    log_to_stderr()
    return run(config, on_event)


def expand(
    run: str | Location,
    num_samples: int | None,
    output: str | Location,
    resources: ResourcesConfig | None = None,
    form: str = "parquet",
    *,
    per_label: Mapping[str, int] | None = None,
    drop_failed: bool = False,
    drop_near_duplicates: float = 0.0,
) -> Location:
    """Stream further variations of a run's final population (see pe_ray.expansion)."""
    from pe_ray.expansion import expand as stream

    return stream(
        run,
        num_samples,
        output,
        resources,
        form,
        per_label=per_label,
        drop_failed=drop_failed,
        drop_near_duplicates=drop_near_duplicates,
    )


def label_images(
    run: str | Location,
    images: str | Location,
    output: str | Location,
    resources: ResourcesConfig | None = None,
    image_column: str = "image",
) -> Location:
    """Write labels and scores of a run's teacher for any images (see pe_ray.labelling)."""
    from pe_ray.labelling import label_images as label

    return label(run, images, output, resources, image_column)


def save_images(
    images: Any,
    path: str | os.PathLike[str] | Location,
    labels: Sequence[str] | Sequence[int] | None = None,
    users: Sequence[str] | Sequence[int] | None = None,
) -> Location:
    """Write images that a program holds to one file for `private.data`, and return its path.

    images: a `datasets.Dataset`, a PyArrow table, or PIL images or arrays, with one of `labels` and
    `users` for each (see docs/storage.md).
    """
    from pe_ray.files.saved_images import save_images as save

    return save(images, path, labels, users)
