"""The files that a run or a search would read, as plans print them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.files.storage import require_creatable, resolve_place

if TYPE_CHECKING:
    from pe_ray.files.image_tables import ImageTable
    from pe_ray.planning import PlannedFiles
    from pe_ray.values import Framing

_ANSWER_SECONDS = 5.0


def plan_inputs(
    config: Config, public: Sequence[tuple[ImageTable, Framing]] = ()
) -> list[PlannedFiles]:
    """Find all files that a run would read, those of `public` too, from names and schemas.

    InputError names all paths of the configuration that can't be used here, unless a cluster may
    have them.
    """
    from pe_ray.config.extras import require_paths
    from pe_ray.planning import plan_files
    from pe_ray.private.evaluation import audited_table
    from pe_ray.private.records import private_table
    from pe_ray.synthetic.scoring import public_tables

    private, resources = config.private, config.resources
    tables = [(private_table(private), private.node_label)]
    if config.metrics.audit_data:
        tables.append((audited_table(config), private.node_label))
    tables += [(table, None) for table, _ in [*public_tables(config), *public]]
    files: list[PlannedFiles] = []
    faults: list[str] = []

    def note(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except InputError as error:
            faults.extend(error.faults)

    for table, node_label in tables:
        found = note(partial(plan_files, table, resources, node_label))
        files += [found] if found else []
    if not resources.address:
        note(partial(require_paths, config))
        output = resolve_place(config.output.path, "output.path")
        if isinstance(output, Path):
            note(partial(require_creatable, output, "output.path"))
    if faults:
        raise InputError(*dict.fromkeys(faults))
    return files


def find_address_warnings(address: str | None) -> list[str]:
    """Return a warning where nothing answers at the address of a Ray cluster, host:port."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return []
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        return [f"resources.address: {address} does not answer here ({type(error).__name__})"]
    return []


def print_inputs(files: Sequence[PlannedFiles]) -> None:
    """Print what a run would read."""
    for read in files:
        print(f"files       {read.field}: {read.summary}")
