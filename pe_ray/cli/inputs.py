"""The files that a run or a search would read, as plans print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pe_ray.config import Config

if TYPE_CHECKING:
    from pe_ray.files.image_tables import ImageTable
    from pe_ray.planning import PlannedFiles
    from pe_ray.values import Framing


def plan_inputs(
    config: Config, public: Sequence[tuple[ImageTable, Framing]] = ()
) -> list[PlannedFiles]:
    """Find all files that a run would read, those of `public` too, from names and schemas.

    InputError where a path of the configuration does not exist here, unless a cluster may have it.
    """
    from pe_ray.config.extras import require_paths
    from pe_ray.planning import plan_files
    from pe_ray.private.records import private_table
    from pe_ray.synthetic.scoring import public_tables

    private, resources = config.private, config.resources
    files = [plan_files(private_table(private), resources, private.node_label)]
    for table, _ in [*public_tables(config), *public]:
        files.append(plan_files(table, resources))
    if not resources.address:
        require_paths(config)
    return files


def print_inputs(files: Sequence[PlannedFiles]) -> None:
    """Print what a run would read."""
    for read in files:
        print(f"files       {read.field}: {read.summary}")
