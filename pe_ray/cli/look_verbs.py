"""Verbs that look at a run: what it made, what it spent, how good it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pe_ray.cli.printing import AddVerb, guarantee, print_json
from pe_ray.errors import InputError

PRIVATE = "PRIVATE: computed on private records without noise; do not publish"


def add_verbs(verb: AddVerb) -> None:
    """report, compare, ledger, audit."""
    verb("report", _report, "Write RUN/report.html, samples and metrics.").add_argument(
        "run", metavar="RUN"
    )
    compare = verb(
        "compare", _compare, "Show several runs side by side: epsilon, quality, samples."
    )
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--output", metavar="PAGE", help="write an HTML page with samples too")
    compare.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="RUN=FILE",
        help="show the output of `pe-ray audit RUN --json`: PRIVATE, as is the result then",
    )
    compare.add_argument("--json", action="store_true")
    ledger = verb("ledger", _ledger, "Print what was released and the (epsilon, delta) spent.")
    audit = verb(
        "audit", _audit, "Score a finished run on private records (never publish the output)."
    )
    for added in (ledger, audit):
        added.add_argument("run", metavar="RUN")
        added.add_argument("--json", action="store_true")


def _report(options: argparse.Namespace) -> None:
    from pe_ray.report import write_report

    print(f"report      {write_report(options.run)}")


def _compare(options: argparse.Namespace) -> None:
    from pe_ray.report.comparison import compare, table_of, tree_of, write_comparison

    scores = {}
    for given in options.scores:
        run, equals, file = given.rpartition("=")
        if not equals or not run or not file:
            raise InputError(f"--scores {given}: write it as RUN=FILE")
        scores[run] = Path(file)
    runs = compare(options.runs, scores)
    if scores:
        print(PRIVATE, file=sys.stderr)
    if options.json:
        print_json(tree_of(runs))
    else:
        lines = table_of(runs)
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())
        if len({(run.facts.budget.unit, run.facts.budget.delta) for run in runs}) > 1:
            print("units or deltas differ: these epsilons can't be compared")
    if options.output:
        page = write_comparison(runs, Path(options.output))
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
                        "key": entry.release.key,
                        "kind": entry.release.kind,
                        "iteration": entry.release.iteration,
                        "mechanism": "discrete Gaussian",
                        "sigma": entry.release.sigma,
                        "sensitivity": entry.release.sensitivity,
                        "state": entry.state,
                        "reserved_at": entry.reserved_at,
                        "committed_at": entry.committed_at,
                    }
                    for entry in entries
                ],
            }
        )
        return
    print(f"spent       {guarantee(spent, budget.delta, budget.unit)}")
    print(f"budget      epsilon {budget.epsilon:g}")
    print(f"accounting  {ledger.accounting}")
    width = max([12, *(len(entry.release.key) + 2 for entry in entries)])
    for entry in entries:
        release = entry.release
        print(
            f"{release.key:<{width}}sigma {release.sigma:g}, sensitivity {release.sensitivity:g}, "
            f"{entry.state} {entry.committed_at or entry.reserved_at}"
        )


def _audit(options: argparse.Namespace) -> None:
    from pe_ray.private.evaluation import audit

    scores = audit(options.run)
    if options.json:
        print_json(scores)
        return
    print(PRIVATE, file=sys.stderr)
    for name, score in scores.items():
        print(f"{name:<28}{score:.4f}")
