"""Events: what a run tells while it works, to its log and to a program that listens.

Guarantee: events carry what the configuration fixes, times of synthetic work and released values.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    kind: `phase` (something begins that may take seconds), `part` (a part of a stage is made, with
    `rows` of `total` done), `stage` (one is complete), `release` (noisy values were released) or
    `population` (S_t is complete, with its scores on public images).
    name: of the phase, stage or release. iteration: None where there is none.
    """

    kind: Literal["phase", "part", "stage", "release", "population"]
    name: str
    iteration: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Pass every event of the block to `listener`, in the driver's thread."""
    added = [listener] if listener else []
    _listeners.extend(added)
    try:
        yield
    finally:
        for one in added:
            _listeners.remove(one)


def emit(event: Event, text: str | None = None) -> None:
    """Tell the listeners, and log a line: `text`, or `stage=NAME key=value` for machines.

    Parts are not logged, as there may be thousands; a stage has lines now and then.
    """
    for listener in _listeners:
        listener(event)
    if event.kind != "part":
        logger.info(text or _join_pairs(event), extra={"event": event})


def announce(phase: str) -> None:
    """Tell that something begins which may take seconds."""
    emit(Event(kind="phase", name=phase), text=phase)


def log_to_stderr(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Log to standard error, unless the program has set up its logging.

    as_json: one object a line, with the values of an event under its fields' names.
    """
    root, handler = logging.getLogger(), logging.StreamHandler()
    if root.handlers:
        return
    form = _JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(form)
    root.addHandler(handler)
    logging.getLogger("pe_ray").setLevel(level)


class _JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower()}
        event = getattr(record, "event", None)
        fields = {"event": event.kind, **asdict(event)} if event else {}
        fields.pop("kind", None)
        return json.dumps(line | {"message": record.getMessage()} | fields, default=str)


def _join_pairs(event: Event) -> str:
    pairs: dict[str, Any] = {"stage": event.name}
    if event.iteration is not None:
        pairs["iteration"] = event.iteration
    pairs["state"] = "released" if event.kind == "release" else "done"
    return " ".join(f"{name}={_quote(value)}" for name, value in {**pairs, **event.values}.items())


def _quote(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if " " in text or '"' in text else text
