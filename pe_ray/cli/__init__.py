"""The command line; each module adds its verbs.

Exit status: 0 on success; 2 on bad input (one line: what, where, fix); 1 on a failure, or where
Ctrl-C or SIGTERM stopped the command. The same command continues then. 1 without a word where the
reader of its output is gone.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from pe_ray.cli import (
    account_verbs,
    audit_verbs,
    check_verbs,
    look_verbs,
    run_verbs,
    tune_verbs,
)
from pe_ray.cli.printing import Command
from pe_ray.errors import FaultError, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ray", "absl", "matplotlib", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise
        return 1
    except (InputError, FaultError) as error:
        print(f"pe-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:  # of Ray, as it starts
            raise
        print("pe-ray: stopped; the same command continues", file=sys.stderr)
        return 1
    return 0


def _is_closed(stream: TextIO) -> bool:
    """Tell whether the reader of `stream` is gone, as `head` is; then nothing more goes there."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # of errors it tells always
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python's exit complains
    return True


def _interrupt(number: int, frame: object) -> None:
    """Treat SIGTERM as Ctrl-C: schedulers, `ray job stop` and spot notices send it."""
    raise KeyboardInterrupt


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pe-ray", description="Differentially private synthetic images by Private Evolution."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add_verb(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    for module in (run_verbs, check_verbs, tune_verbs, look_verbs, account_verbs, audit_verbs):
        module.add_verbs(add_verb)
    return parser
