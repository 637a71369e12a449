"""Ray tasks that see private records: where they run, when they end, what their errors say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pe_ray.errors import InputError
from pe_ray.runtime.cluster import on_nodes
from pe_ray.runtime.watchdog import exit_on_stall

INLINE_LIMIT = 100 << 10  # bytes: Ray sends smaller results to the caller with its answer
RETRIES = 5  # of a task whose worker or node died, and of a slice whose node was lost


def private_task(
    task: Callable[..., Any], node_label: str | None, *, gpus: float = 0.0, num_returns: int = 1
) -> Any:
    """Return `task` as a Ray task of one CPU, which is repeated if its worker or node dies.

    Guarantee: it runs only on nodes with the label, if there is one.
    """
    return ray.remote(
        num_cpus=1,
        num_gpus=gpus,
        num_returns=num_returns,
        max_retries=RETRIES,
        **on_nodes(node_label),
    )(task)


def look_at_private_data(
    doing: str, look: Callable[..., Any], node_label: str | None, *given: Any
) -> Any:
    """Return what `look` finds, here or on a labelled node; raise the InputError that it raises.

    Guarantee: of another exception only the type passes on.
    """
    if node_label is None:
        found = _look(doing, look, *given)
    else:
        found = ray.get(private_task(_look, node_label).remote(doing, look, *given))
    if isinstance(found, InputError):
        raise found
    return found


def _look(doing: str, look: Callable[..., Any], *given: Any) -> Any:
    """Return an InputError instead of raising it, as Ray would send its causes along."""
    try:
        return look(*given)
    except InputError as error:
        return error
    except Exception as error:
        raise RuntimeError(f"{doing} failed: {type(error).__name__}") from None


@contextmanager
def hide_private_errors(doing: str, stall_seconds: float) -> Iterator[None]:
    """Run the body of such a task; end its worker if it makes no progress for `stall_seconds`.

    Ray then repeats the task elsewhere.

    Guarantee: only an exception's type passes on, because its text may quote a record. An
    InputError passes unchanged: it is about configuration or machine, and quotes no record.
    """
    try:
        with exit_on_stall(stall_seconds):
            yield
    except InputError:
        raise
    except Exception as error:
        raise RuntimeError(f"{doing} failed: {type(error).__name__}") from None
