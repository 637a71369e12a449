"""Ray: start it here, or connect to a cluster; quiet, and without an open dashboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pe_ray.config import ResourcesConfig
from pe_ray.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def connected(resources: ResourcesConfig) -> Iterator[None]:
    """Ray for the duration of the block; a Ray that was up before stays up after.

    Raises InputError where there is no cluster at the address, or no machine for a worker.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.data

    _quieten(ray.data.DataContext.get_current())
    if ray.is_initialized():
        _require_room(resources, ray.nodes())
        yield
        return
    arguments = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address:
        try:
            ray.init(address=resources.address, **arguments)
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"resources.address: no Ray cluster at {resources.address!r} "
                f"({type(error).__name__}); start one, or leave it out to use this machine"
            ) from error
    else:
        # `local`, since without an address Ray would join any cluster that runs on this machine.
        ray.init("local", num_cpus=resources.num_cpus, include_dashboard=False, **arguments)
    try:
        _require_room(resources, ray.nodes())
        yield
    finally:
        ray.shutdown()


def _require_room(resources: ResourcesConfig, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a worker larger than any machine, which Ray would wait for without end.

    nodes: as ray.nodes() lists them. A cluster may still grow, so there it is only said.
    """
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in alive):
        return
    wanted = f"{needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs"
    if not resources.address:
        raise InputError(
            f"resources: no machine has the {wanted} of a worker; lower resources.cpus_per_worker "
            "or resources.gpus_per_worker, or name a cluster in resources.address"
        )
    logger.warning("no machine of the cluster has the %s of a worker yet: waiting for one", wanted)


def require_object_store(num_bytes: int, field: str, what: str) -> None:
    """Raise InputError where `num_bytes` can't be in Ray's object store and can't be spilled.

    Says no size, since that of private data is not public. Only for a connected Ray.
    """
    import ray
    from ray._private.state import state

    spilling = state.get_system_config().get("automatic_object_spilling_enabled", True)
    if spilling or ray.cluster_resources().get("object_store_memory", 0) >= num_bytes:
        return
    raise InputError(
        f"{field}: {what} need more than Ray's object store holds, and spilling to disk is "
        "disabled; enable it, or start Ray with more object_store_memory"
    )


def _quieten(context: object) -> None:
    for name in ("enable_progress_bars", "print_on_execution_start"):
        setattr(context, name, False)
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
