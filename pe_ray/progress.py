"""Progress of long work: a bar on a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0


class Progress:
    """Rows done of one stage, rows per second and time left.

    Guarantee: told only sizes that the configuration fixes, never anything about private records.
    """

    def __init__(self, stage: str, num_rows: int, num_done: int = 0) -> None:
        self._stage, self._num_rows, self._done = stage, num_rows, num_done
        self._first = num_done
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=stage, total=num_rows, initial=num_done, unit="rows", unit_scale=True
            )

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
            logger.info("%s: done, %s", self._stage, self._line())

    def add(self, num_rows: int) -> None:
        """Count `num_rows` more as done."""
        self._done += num_rows
        if self._bar is not None:
            self._bar.update(num_rows)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            logger.info("%s: %s", self._stage, self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        speed = (self._done - self._first) / max(seconds, 1e-9)
        text = f"{self._done:,} of {self._num_rows:,} rows, {speed:,.0f} rows/s"
        left = self._num_rows - self._done
        if left and speed:
            text += f", {left / speed:,.0f} s left"
        return text
