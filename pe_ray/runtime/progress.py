"""Progress of long work: a bar on a terminal, otherwise a plain line now and then.

Each part and stage is an event besides. Gauges that Ray exports to Prometheus follow it.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from types import TracebackType
from typing import Any, Literal, Self

from tqdm import tqdm

from pe_ray.runtime.events import Event, emit

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0

_GAUGES = {
    "pe_ray_rows": "Rows of the stage.",
    "pe_ray_rows_done": "Rows of the stage done so far.",
}


class _Log(io.StringIO):
    """Takes what a bar writes, as lines of the log."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info(text.strip())
        return len(text)


class Progress:
    """Shows the rows done of one stage, rows per second and the time left.

    stage: its name, with the iteration last where it has one, as in `population 3`. warm_up: parts
    made before speed and time left are told, as workers load what they need first.

    Guarantee: is told only sizes that the configuration fixes, never anything about private
    records.
    """

    def __init__(self, stage: str, num_rows: int, num_done: int = 0, warm_up: int = 0) -> None:
        self._stage, self._warm_up = stage, warm_up
        self._found, self._started = num_done, time.monotonic()
        shown: dict[str, Any] = {}
        if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
            shown = {
                "file": _Log(),
                "bar_format": "{desc}: {n:,} of {total:,} rows, {rate_fmt}, {remaining} left",
                "mininterval": LINE_SECONDS,
                "delay": LINE_SECONDS,
                "leave": False,
            }
        self._bar = tqdm(
            desc=stage,
            total=num_rows,
            initial=num_done,
            unit=" rows",
            miniters=1,
            smoothing=0,
            **shown,
        )
        self._gauges = _make_gauges(stage)
        self._export()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if error is not None:
            return
        made, seconds = self._bar.n - self._found, time.monotonic() - self._started
        self._emit(
            "stage",
            rows=self._bar.total,
            made=made,
            seconds=round(seconds, 3),
            rows_per_second=round(made / max(seconds, 1e-9), 3),
        )

    def add(self, num_rows: int) -> None:
        """Count `num_rows` more as done."""
        if self._warm_up:
            self._bar.initial += num_rows  # so that it shows no speed
        self._bar.update(num_rows)
        if self._warm_up:
            self._warm_up -= 1
            self._bar.start_t = time.time()
        self._export()
        self._emit("part", rows=self._bar.n, total=self._bar.total)

    def _emit(self, kind: Literal["part", "stage"], **values: Any) -> None:
        name, _, last = self._stage.rpartition(" ")
        iteration = int(last) if last.isdecimal() else None
        name = (self._stage if iteration is None else name).replace(" ", "_")
        emit(Event(kind=kind, name=name, iteration=iteration, values=values))

    def _export(self) -> None:
        for gauge, value in zip(self._gauges, (self._bar.total, self._bar.n), strict=False):
            gauge.set(value)


def _make_gauges(stage: str) -> list[Any]:
    """Return the stage's gauges, in the order of _GAUGES; empty where no Ray runs."""
    import ray

    if not ray.is_initialized():
        return []
    from ray.util.metrics import Gauge

    made = [Gauge(name, description=text, tag_keys=("stage",)) for name, text in _GAUGES.items()]
    return [gauge.set_default_tags({"stage": stage}) for gauge in made]
