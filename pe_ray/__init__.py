"""pe_ray: differentially private synthetic images by Private Evolution, on Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.errors import BudgetError, FaultError, InputError, RecordError
from pe_ray.files.storage import GivenPath, Location
from pe_ray.run import ImageSet, Run
from pe_ray.runtime.events import Event, Listener, listening, log_to_stderr

if TYPE_CHECKING:
    from pe_ray.tuning.search import Search

__version__ = "0.1.0"
__all__ = [
    "BudgetError",
    "Config",
    "Event",
    "FaultError",
    "ImageSet",
    "InputError",
    "RecordError",
    "ResourcesConfig",
    "Run",
    "Search",
    "evolve",
    "expand",
    "label_images",
    "save_images",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import `Search` when it is asked for: it loads the accounting, which takes seconds."""
    if name != "Search":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pe_ray.tuning.search import Search

    return Search


def evolve(config: Config, on_event: Listener | None = None) -> Run:
    """Run Private Evolution, or continue it; return the run (see pe_ray.evolution).

    on_event: is called with each `Event` of the run. Lines of the log go to standard error where
    the program has set up no logging.
    """
    from pe_ray.evolution import evolve as run

    if not isinstance(config, Config):
        raise InputError(f"config: {_WRONG.format(type(config).__name__, 'Config', 'Config')}")
    log_to_stderr()
    return Run.open(run(config, on_event), config.resources)


def tune(search: Search, on_event: Listener | None = None) -> Run:
    """Search hyperparameters inside the privacy budget, then run; return the final run.

    search: as `Search.from_yaml(PATH)` reads it (docs/tuning.md). The run's `search` says how it
    ended. on_event: is called with each `Event` of this process, not with those of trials.
    """
    from pe_ray.tuning.search import Search
    from pe_ray.tuning.tune import tune as run

    if not isinstance(search, Search):
        raise InputError(f"search: {_WRONG.format(type(search).__name__, 'Search', 'Search')}")
    log_to_stderr()
    with listening(on_event):
        return Run.open(run(search).path, search.config.resources)


_WRONG = "is a {}; give a {}, as {}.from_yaml(PATH) or from_dict(TREE) makes it"


def expand(
    run: GivenPath,
    num_samples: int | None,
    output: GivenPath,
    resources: ResourcesConfig | None = None,
    form: str = "parquet",
    *,
    per_label: Mapping[str, int] | None = None,
    drop_failed: bool = False,
    drop_near_duplicates: float = 0.0,
) -> ImageSet:
    """Stream further variations of a run's final set (see `Run.expand`)."""
    return Run.open(run, resources).expand(
        num_samples,
        output,
        form,
        per_label=per_label,
        drop_failed=drop_failed,
        drop_near_duplicates=drop_near_duplicates,
    )


def label_images(
    run: GivenPath,
    images: GivenPath,
    output: GivenPath,
    resources: ResourcesConfig | None = None,
    image_column: str = "image",
) -> Location:
    """Write labels and scores of a run's teacher for any images (see pe_ray.labelling)."""
    from pe_ray.labelling import label_images as label

    return label(run, images, output, resources, image_column)


def save_images(
    images: Any,
    path: GivenPath,
    labels: Sequence[str] | Sequence[int] | None = None,
    users: Sequence[str] | Sequence[int] | None = None,
) -> Location:
    """Write images that a program holds to one file for `private.data`, and return its path.

    images: a `datasets.Dataset`, a PyArrow table, or PIL images or arrays, with one of `labels` and
    `users` for each (see docs/storage.md).
    """
    from pe_ray.files.saved_images import save_images as save

    return save(images, path, labels, users)
