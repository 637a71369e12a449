"""What every section is given: its deadline, and how to time what runs on a card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How a section runs: until when it begins rows, and whether everything is tiny."""

    deadline: float
    rehearse: bool

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.deadline


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], turns: int = 3) -> float:
    """Return the median time of a call, after one that warms up."""
    times = []
    for turn in range(turns + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times += [time.perf_counter() - start] if turn else []
    return statistics.median(times)
