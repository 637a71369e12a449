"""The command line; each module adds its verbs.

Exit status: 0 on success; 2 on bad input (a line for each fault: what, where, fix); 1 on a failure,
or where Ctrl-C or SIGTERM stopped the command. The same command continues then. 1 without a word
where the reader of its output is gone. A process that ends by no doing of its own, as by SIGKILL,
or by Ray where its own processes are gone, is told of by another process.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TextIO

from pe_ray import __version__
from pe_ray.cli import (
    account_verbs,
    audit_verbs,
    check_verbs,
    look_verbs,
    publish_verbs,
    run_verbs,
    start_verbs,
    tune_verbs,
    verify_verbs,
)
from pe_ray.cli.printing import Command
from pe_ray.errors import FaultError, InputError
from pe_ray.plugins import trust_plugins
from pe_ray.runtime.events import log_to_stderr

_SILENT_END = "pe-ray: was killed, or ended by Ray; nothing is lost: the same command continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _make_parser().parse_args(arguments)
    log_to_stderr(options.level, as_json=options.log_json)
    for noisy in ("ray", "absl", "matplotlib", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    trusting = trust_plugins() if getattr(options, "trust_plugins", False) else nullcontext()
    try:
        with _tell_of_silent_end(), trusting:
            options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise
        return 1
    except (InputError, FaultError) as error:
        for fault in error.faults if isinstance(error, InputError) else [str(error)]:
            print(f"pe-ray: {' '.join(fault.split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        by = ""
        # Ray exits with the number of SIGTERM where that arrives while it starts.
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            by = f" by a library that called sys.exit({stop.code!r})"
        print(f"pe-ray: stopped{by}; the same command continues", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _tell_of_silent_end() -> Iterator[None]:
    """Let another process say so where this one ends within the block without running Python.

    It waits for a word in a pipe, which the system closes when this process ends.
    """
    word = f"read -r word || echo {shlex.quote(_SILENT_END)} >&2"
    with subprocess.Popen(
        ["sh", "-c", word],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is not for it
    ) as teller:
        try:
            yield
        finally:
            assert teller.stdin is not None
            with suppress(BrokenPipeError):
                teller.stdin.write(b"ended\n")


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
        prog="pe-ray",
        description="Differentially private synthetic images by Private Evolution.",
        epilog="Begin with `pe-ray init`, then plan, check, run. `pe-ray VERB --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"pe-ray {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add_verb(name: str, command: Command, text: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  pe-ray {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command, verbs=verbs.choices)
        told = added.add_mutually_exclusive_group()
        for short, long, level, what in (
            ("-q", "--quiet", logging.WARNING, "log warnings alone"),
            ("-v", "--verbose", logging.DEBUG, "log what Ray does, too"),
        ):
            told.add_argument(
                *(short, long), dest="level", action="store_const", const=level, help=what
            )
        added.set_defaults(level=logging.INFO)
        added.add_argument("--log-json", action="store_true", help="log one JSON object a line")
        return added

    for module in (
        start_verbs,
        run_verbs,
        check_verbs,
        tune_verbs,
        look_verbs,
        publish_verbs,
        verify_verbs,
        account_verbs,
        audit_verbs,
    ):
        module.add_verbs(add_verb)
    return parser
