"""Ray tasks that see private records: where they run, when they end, what their errors say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pe_ray.errors import InputError
from pe_ray.runtime.cluster import on_nodes
from pe_ray.runtime.watchdog import limited

RETRIES = 5  # of a task whose worker or node died, and of a slice whose node was lost


def private_task(
    task: Callable[..., Any], node_label: str | None, *, gpus: float = 0.0, num_returns: int = 1
) -> Any:
    """`task` as a Ray task of one CPU, on nodes with the label only, tried again when it dies."""
    return ray.remote(
        num_cpus=1,
        num_gpus=gpus,
        num_returns=num_returns,
        max_retries=RETRIES,
        **on_nodes(node_label),
    )(task)


@contextmanager
def guarded(doing: str, stall_seconds: float) -> Iterator[None]:
    """The body of such a task: without headway for so long its worker ends, and it is repeated.

    Guarantee: an exception's text may quote a record, so only its type passes on; an InputError
    passes as it is, since it is of the configuration or the machine and quotes none.
    """
    try:
        with limited(stall_seconds):
            yield
    except InputError:
        raise
    except Exception as error:
        raise RuntimeError(f"{doing} failed: {type(error).__name__}") from None
