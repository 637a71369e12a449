"""The command line: one module for each user's verbs, each of which adds its own.

Exit status 0 on success, 2 on bad input (one line: what, where, fix), 1 otherwise: a failure, or
stopped by Ctrl-C or SIGTERM, after which the same command continues.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pe_ray.cli import attack_verbs as attacking
from pe_ray.cli import look_verbs as looking
from pe_ray.cli import run_verbs as running
from pe_ray.cli import status_verbs as watching
from pe_ray.cli import tune_verbs as tuning
from pe_ray.errors import FaultError, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ray", "absl", "matplotlib", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with _stopped_by_sigterm():
            options.command(options)
    except InputError as error:
        print(f"pe-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FaultError as error:
        print(f"pe-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:  # Ray's own, as it starts
            raise
        print("pe-ray: stopped; the same command continues", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does: schedulers, `ray job stop` and spot notices send it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pe-ray", description="Differentially private synthetic images by Private Evolution."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, command: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    for module in (running, tuning, watching, looking, attacking):
        module.add_verbs(verb)
    return parser
