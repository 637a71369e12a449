"""Progress of long work: a bar on a terminal, otherwise a plain line now and then; at the end of a
stage one line for machines; all along, gauges that Ray exports to Prometheus.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0

_GAUGES = {
    "pe_ray_rows": "Rows of the stage.",
    "pe_ray_rows_done": "Rows of the stage done so far.",
    "pe_ray_rows_per_second": "Rows a second since this start began with the stage.",
}


def log_stage(stage: str, **facts: Any) -> None:
    """Log one line per stage for machines: `stage=NAME key=value`, strings with spaces quoted."""
    pairs = {"stage": stage, **facts}
    logger.info(" ".join(f"{name}={_value(value)}" for name, value in pairs.items()))


def _value(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if " " in text or '"' in text else text


class Progress:
    """Shows the rows done of one stage, rows per second and the time left.

    stage: its name, with the iteration last where it has one, as in `population 3`.

    Guarantee: is told only sizes that the configuration fixes, never anything about private
    records.
    """

    def __init__(self, stage: str, num_rows: int, num_done: int = 0) -> None:
        self._stage, self._num_rows, self._done = stage, num_rows, num_done
        self._first = num_done
        self._started = self._last_line = time.monotonic()
        self._gauges = _gauges(stage)
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=stage, total=num_rows, initial=num_done, unit="rows", unit_scale=True
            )
        self._export()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if error is None:
            name, _, last = self._stage.rpartition(" ")
            iteration = {"iteration": int(last)} if last.isdecimal() else {}
            log_stage(
                (name if iteration else self._stage).replace(" ", "_"),
                **iteration,
                state="done",
                rows=self._num_rows,
                made=self._done - self._first,
                seconds=round(time.monotonic() - self._started, 3),
                rows_per_second=round(self._speed(), 3),
            )

    def add(self, num_rows: int) -> None:
        """Count `num_rows` more as done."""
        self._done += num_rows
        self._export()
        if self._bar is not None:
            self._bar.update(num_rows)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            logger.info("%s: %s", self._stage, self._line())

    def _speed(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _export(self) -> None:
        values = (self._num_rows, self._done, self._speed())
        for gauge, value in zip(self._gauges, values, strict=False):
            gauge.set(value)

    def _line(self) -> str:
        speed = self._speed()
        text = f"{self._done:,} of {self._num_rows:,} rows, {speed:,.0f} rows/s"
        left = self._num_rows - self._done
        if left and speed:
            text += f", {left / speed:,.0f} s left"
        return text


def _gauges(stage: str) -> list[Any]:
    """Return the stage's gauges, in the order of _GAUGES; empty where no Ray runs."""
    import ray

    if not ray.is_initialized():
        return []
    from ray.util.metrics import Gauge

    made = [Gauge(name, description=text, tag_keys=("stage",)) for name, text in _GAUGES.items()]
    return [gauge.set_default_tags({"stage": stage}) for gauge in made]
