"""Verbs for whoever watches a run."""

from __future__ import annotations

import argparse

from pe_ray.cli.printing import AddVerb, print_json


def add_verbs(verb: AddVerb) -> None:
    """status."""
    status = verb("status", _status, "Print what of a run is done, running and left, and spent.")
    status.add_argument("run", metavar="RUN")
    status.add_argument("--json", action="store_true")


def _status(options: argparse.Namespace) -> None:
    from pe_ray.report.run_status import as_tree, lines, status

    made = status(options.run)
    if options.json:
        print_json(as_tree(made))
        return
    print("\n".join(lines(made)))
