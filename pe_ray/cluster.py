"""Ray: start it here, or connect to a cluster; quiet, and without an open dashboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pe_ray.config import ResourcesConfig


@contextmanager
def connected(resources: ResourcesConfig) -> Iterator[None]:
    """Ray for the duration of the block; a Ray that was up before stays up after."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.data

    _quieten(ray.data.DataContext.get_current())
    if ray.is_initialized():
        yield
        return
    arguments = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address:
        ray.init(address=resources.address, **arguments)
    else:
        ray.init(num_cpus=resources.num_cpus, include_dashboard=False, **arguments)
    try:
        yield
    finally:
        ray.shutdown()


def _quieten(context: object) -> None:
    for name in ("enable_progress_bars", "print_on_execution_start"):
        setattr(context, name, False)
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
