"""Verbs that look at a run's released values: status, report, compare, ledger."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from pe_ray.cli.printing import (
    PRIVATE,
    AddVerb,
    add_json,
    print_json,
    release_as_tree,
    state_claim,
)
from pe_ray.errors import InputError
from pe_ray.files.storage import expand_home


def add_verbs(verb: AddVerb) -> None:
    """Add status, report, compare and ledger."""
    status = verb("status", _status, "Print what a run has done, what is left and what was spent.")
    report = verb("report", _report, "Write RUN/report.html, samples and metrics.")
    compare = verb("compare", _compare, "Print guarantees, settings and metrics of several runs.")
    ledger = verb("ledger", _ledger, "Print what was released and the (epsilon, delta) spent.")
    for added in (status, report, ledger):
        added.add_argument("run", metavar="RUN")
    for added in (status, compare, ledger):
        add_json(added)
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument(
        "--output", type=expand_home, metavar="PAGE", help="write an HTML page with charts too"
    )
    compare.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="RUN=FILE",
        help="add the output of `pe-ray audit RUN --json`; the result is PRIVATE then",
    )


def _status(options: argparse.Namespace) -> None:
    from pe_ray.report.run_status import read_status

    status = read_status(options.run)
    if options.json:
        print_json(asdict(status))
        return
    print(f"state       {status.state}")
    for stage in status.stages:
        if stage.state != "waiting":
            name = stage.stage if stage.iteration is None else f"{stage.stage} {stage.iteration}"
            part = "" if stage.rows is None else f" {stage.rows_done:,} of {stage.rows:,} rows"
            print(f"{stage.state:<12}{name}{part}")
    waiting = sum(stage.state == "waiting" for stage in status.stages)
    rows, releases = status.left["rows"], status.left["releases"]
    print(f"left        {rows:,} rows, {releases} releases, {waiting} stages to begin")
    print(f"spent       {state_claim(**status.spent)}")
    print(f"budget      epsilon {status.budget_epsilon:g}")
    if status.state == "stopped":
        print("continue    repeat the same `pe-ray run` command")


def _report(options: argparse.Namespace) -> None:
    from pe_ray.report import write_report

    print(f"report      {write_report(options.run)}")


def _compare(options: argparse.Namespace) -> None:
    from pe_ray.report.comparison import compare, tabulate, write_comparison

    scores = {}
    for given in options.scores:
        run, _, file = given.rpartition("=")
        if not run or not file:
            raise InputError(f"--scores {given}: write it as RUN=FILE")
        scores[run] = expand_home(file)
    runs = compare(options.runs, scores)
    if scores:
        print(PRIVATE, file=sys.stderr)
    if options.json:
        print_json({"runs": [asdict(run) for run in runs]})
    else:
        rows = tabulate(runs)
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
        if len({(run.unit, run.delta) for run in runs}) > 1:
            print("units or deltas differ: these epsilons can't be compared")
    if options.output:
        page = write_comparison(runs, options.output)
        print(f"page        {page}", file=sys.stderr if options.json else sys.stdout)


def _ledger(options: argparse.Namespace) -> None:
    from pe_ray.release.ledger import Ledger
    from pe_ray.runtime.run_directory import find_ledger

    ledger = Ledger.open(find_ledger(options.run))
    budget, spent, entries = ledger.budget, ledger.spent(), ledger.entries()
    if options.json:
        print_json(
            {
                "epsilon": spent,
                "delta": budget.delta,
                "unit": budget.unit,
                "budget_epsilon": budget.epsilon,
                "accounting": ledger.accounting,
                "releases": [
                    {
                        **release_as_tree(entry.release),
                        "state": entry.state,
                        "reserved_at": entry.reserved_at,
                        "committed_at": entry.committed_at,
                    }
                    for entry in entries
                ],
            }
        )
        return
    print(f"spent       {state_claim(spent, budget.delta, budget.unit)}")
    print(f"budget      epsilon {budget.epsilon:g}")
    print(f"accounting  {ledger.accounting}")
    width = max([12, *(len(entry.release.key) + 2 for entry in entries)])
    for entry in entries:
        release = entry.release
        print(
            f"{release.key:<{width}}sigma {release.sigma:g}, sensitivity {release.sensitivity:g}, "
            f"{entry.state} {entry.committed_at or entry.reserved_at}"
        )
