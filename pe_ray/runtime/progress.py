"""Progress of long work: a bar on a terminal, otherwise a plain line now and then; at the end of a
stage one line for machines; all along, gauges that Ray exports to Prometheus.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0

_GAUGES = {
    "pe_ray_rows": "Rows of the stage.",
    "pe_ray_rows_done": "Rows of the stage done so far.",
}


def log_stage(stage: str, **facts: Any) -> None:
    """Log one line per stage for machines: `stage=NAME key=value`, strings with spaces quoted."""
    pairs = {"stage": stage, **facts}
    logger.info(" ".join(f"{name}={_value(value)}" for name, value in pairs.items()))


def _value(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if " " in text or '"' in text else text


class _Log(io.StringIO):
    """Takes what a bar writes, as lines of the log."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info(text.strip())
        return len(text)


class Progress:
    """Shows the rows done of one stage, rows per second and the time left.

    stage: its name, with the iteration last where it has one, as in `population 3`.

    Guarantee: is told only sizes that the configuration fixes, never anything about private
    records.
    """

    def __init__(self, stage: str, num_rows: int, num_done: int = 0) -> None:
        self._stage = stage
        shown: dict[str, Any] = {}
        if not sys.stderr.isatty():
            shown = {
                "file": _Log(),
                "bar_format": "{desc}: {n:,} of {total:,} rows, {rate_fmt}, {remaining} left",
                "mininterval": LINE_SECONDS,
                "delay": LINE_SECONDS,
                "leave": False,
            }
        self._bar = tqdm(
            desc=stage, total=num_rows, initial=num_done, unit=" rows", miniters=1, **shown
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
        name, _, last = self._stage.rpartition(" ")
        iteration = {"iteration": int(last)} if last.isdecimal() else {}
        made, seconds = self._bar.n - self._bar.initial, self._bar.format_dict["elapsed"]
        log_stage(
            (name if iteration else self._stage).replace(" ", "_"),
            **iteration,
            state="done",
            rows=self._bar.total,
            made=made,
            seconds=round(seconds, 3),
            rows_per_second=round(made / max(seconds, 1e-9), 3),
        )

    def add(self, num_rows: int) -> None:
        """Count `num_rows` more as done."""
        self._bar.update(num_rows)
        self._export()

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
