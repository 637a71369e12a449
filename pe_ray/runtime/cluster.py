"""Ray: start it here, or connect to a cluster; what it may hold, and what runs where.

Quiet, with token authentication, and without an open dashboard.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.errors import FaultError, InputError
from pe_ray.files.storage import find_home
from pe_ray.runtime.events import announce

logger = logging.getLogger(__name__)

_LEAST_FREE = 1 << 20  # bytes; with less, Ray's processes fail in ways of their own
_LONGEST_REASON = 200
_LONGEST_SOCKET = 107  # bytes of a Unix socket's path on Linux
_SESSION_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.12")


_connect: Callable[[], None] | None = None
"""Connects to Ray, where a block of `connect_on_demand` waits for that."""


@contextmanager
def connect_on_demand(resources: ResourcesConfig, node_label: str | None = None) -> Iterator[None]:
    """Connect as `connect_to_ray` does, but only when `use_ray` is first called within the block.

    Starting Ray takes seconds, and work that is complete needs none.
    """
    global _connect
    with ExitStack() as stack:
        _connect = partial(stack.enter_context, connect_to_ray(resources, node_label))
        try:
            yield
        finally:
            _connect = None


def use_ray() -> Any:
    """Return the module `ray`, connected if a block around this call was to connect."""
    global _connect
    if _connect is not None:
        _connect()
        _connect = None
    import ray

    return ray


@contextmanager
def connect_to_ray(resources: ResourcesConfig, node_label: str | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block; a Ray that was up before stays up after.

    Without resources.address, the environment's RAY_ADDRESS counts (a submitted job has it). Raises
    InputError where there is no cluster at the address, no machine for a worker, or none with
    `node_label`.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.util.client import ray as client

    logging.getLogger("ray").setLevel(logging.ERROR)
    resources = resources.model_copy(update={"address": _address(resources)})
    with ExitStack() as stack:
        if not ray.is_initialized():
            _check_token(starts_here=resources.address is None)
            if resources.address is None:
                folder = _make_private_folder()
                stack.enter_context(_full_disk_as_input_error(folder))
                _start(resources, f"{folder}/ray")
            else:
                _join(resources.address)
            stack.callback(_stop)
        if client.is_connected():
            raise InputError(_NO_CLIENT)
        _require_room(resources, ray.nodes(), node_label)
        yield


def _log_options() -> dict[str, Any]:
    """Return how much Ray prints here: what it does where DEBUG is logged, else errors.

    Guarantee: never what workers print. Libraries may quote private records in their warnings.
    """
    wordy = logger.isEnabledFor(logging.DEBUG)
    return {"log_to_driver": False, "logging_level": logging.INFO if wordy else logging.ERROR}


def _start(resources: ResourcesConfig, folder: str) -> None:
    """Start Ray here, with its files in `folder`."""
    import ray

    try:
        # `local`, since without an address Ray would join any cluster on this machine.
        ray.init(
            "local",
            num_cpus=resources.num_cpus,
            include_dashboard=False,
            _temp_dir=folder,
            **_log_options(),
        )
    except Exception as error:  # of any type: it waits 30 s for its processes
        raise FaultError(
            f"Ray did not start on this machine ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:_LONGEST_REASON]}); it may be overloaded, see to that"
        ) from error


def _join(address: str) -> None:
    import ray

    if address.startswith("ray://"):
        raise InputError(_NO_CLIENT)
    announce(f"joining the Ray cluster at {address}")
    try:
        _knock(address)  # where nothing listens, ray.init was seen to try for minutes
        ray.init(address=address, **_log_options())
    except (ray.exceptions.AuthenticationError, OSError, ValueError) as error:
        raise InputError(
            f"resources.address: no Ray cluster at {address!r} that takes this token "
            f"({type(error).__name__}); start one, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
            "to a file with its token, or leave the address out to use this machine"
        ) from error


def _stop() -> None:
    """Stop Ray; its own failure to stop must not hide why the block ended."""
    import ray

    try:
        ray.shutdown()
    except Exception as error:  # of any kind, on a full disk for example
        logger.warning("Ray did not stop in order (%s)", type(error).__name__)


def _make_private_folder() -> str:
    """Return a folder for Ray's files that nobody else can reach, and log where it is.

    Ray opens its own folders to everybody, again and again, and spills objects into them, private
    embeddings among them. Nobody else gets past the folder above them.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    place = os.environ[name] if name else "/tmp"
    try:
        folder = tempfile.mkdtemp(prefix="pe-ray-", dir=place)
    except OSError as error:
        raise InputError(
            f"{name or 'TMPDIR'}: no folder can be made in {place} ({error.strerror}); give one "
            "on a local disk that you can write to"
        ) from None
    spare = _LONGEST_SOCKET - _SESSION_BYTES - len(os.fsencode(folder))
    if spare < 0:
        os.rmdir(folder)
        raise InputError(
            f"{name}: {place} is {-spare} bytes too long for Ray's sockets; give a shorter path, "
            "such as TMPDIR=/tmp"
        )
    announce(f"starting Ray; its logs and what it spills: {folder}")
    return folder


@contextmanager
def _full_disk_as_input_error(folder: str) -> Iterator[None]:
    """Re-raise what Ray makes of a full disk under its own folder as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free >= _LEAST_FREE:
            raise
        raise InputError(
            f"TMPDIR: no space left on the disk of {folder}, where Ray keeps its files "
            f"({type(error).__name__}); free some, or set TMPDIR to a folder on a larger disk; "
            "then the same command continues"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError where nothing answers at host:port; other forms are left to Ray."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


_NO_CLIENT = (
    "resources.address: a Ray client (ray://) runs outside the cluster, where the ledger can't be "
    "reached; use `ray job submit -- python -m pe_ray run ...`, or run on the head node"
)


def _address(resources: ResourcesConfig) -> str | None:
    """Return where the cluster is; None: start one here.

    A job server in RAY_ADDRESS is passed over: it takes jobs but no drivers.
    """
    found = resources.address or os.environ.get("RAY_ADDRESS") or None
    is_job_server = found and not resources.address and found.startswith(("http://", "https://"))
    return None if is_job_server else found


def _check_token(*, starts_here: bool) -> None:
    """Refuse a missing token file, at which Ray would abort; make one that only we can read.

    A Ray started here has token authentication on by default and would write its token readable
    to everybody on this machine.
    """
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given and not Path(given).is_file():
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH: {given} is not a file; write the cluster's token to it"
        )
    unset = os.environ.get("RAY_AUTH_MODE", "token") == "token"
    if not starts_here or not unset or given or os.environ.get("RAY_AUTH_TOKEN"):
        return
    token = find_home() / ".ray" / "auth_token"
    try:
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise InputError(
            f"HOME: {token} can't be written ({error.strerror}), which Ray needs; set HOME to a "
            "folder that you can write to, or RAY_AUTH_TOKEN_PATH to a file with a token"
        ) from None
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def _require_room(
    resources: ResourcesConfig, nodes: Sequence[Mapping[str, Any]], node_label: str | None
) -> None:
    """Refuse a worker larger than any machine: Ray would wait for one without end.

    nodes: as ray.nodes() lists them. A cluster may still grow, so there it is only logged. A label
    that no node has is waited for only where resources.workers says that the cluster grows.
    """
    alive = [node for node in nodes if node["Alive"]]
    if node_label is not None and not any(_has(node, node_label) for node in alive):
        if not (resources.address and resources.workers):
            raise InputError(
                f"private.node_label: no node of the cluster is labelled {node_label}; start Ray "
                f"with --labels {node_label} where private records may be (where an autoscaler "
                "does that, set resources.workers)"
            )
        logger.warning("no node of the cluster is labelled %s yet: waiting for one", node_label)
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    if any(
        all(node["Resources"].get(name, 0) >= need for name, need in needs.items())
        for node in alive
    ):
        return
    lacking = f"no machine has the {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs of a worker"
    if not resources.address:
        raise InputError(
            f"resources: {lacking}; lower resources.cpus_per_worker or resources.gpus_per_worker, "
            "or name a cluster in resources.address"
        )
    logger.warning("%s yet: waiting for one", lacking)


def _has(node: Mapping[str, Any], node_label: str) -> bool:
    name, _, value = node_label.partition("=")
    return bool((node.get("Labels") or {}).get(name) == value)


def on_nodes(node_label: str | None) -> dict[str, Any]:
    """Return the options of a Ray task that may run only on nodes with the label."""
    return {} if node_label is None else {"label_selector": dict([node_label.split("=", 1)])}


def on_this_node() -> dict[str, Any]:
    """Return the options of an actor that is, and stays, on the node of this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def count_resource(name: str) -> int:
    """Return the whole units of a resource that the cluster holds now."""
    return int(use_ray().cluster_resources().get(name, 0.0))


def num_workers(resources: ResourcesConfig) -> int:
    """Return `resources.workers`, or as many as fit into the cluster now; at least one.

    A cluster may grow, even from no worker, and does not say how far. There its autoscaler is asked
    for what was configured. A Ray that was started here can't grow.
    """
    fits = count_resource("CPU") / resources.cpus_per_worker
    if resources.gpus_per_worker:
        fits = min(fits, count_resource("GPU") / resources.gpus_per_worker)
    if resources.workers and _address(resources):
        return resources.workers
    return max(1, min(int(fits), resources.workers or int(fits)))
