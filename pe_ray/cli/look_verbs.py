"""Verbs that look at a run's released values: status, report, compare, ledger."""

from __future__ import annotations

import argparse

from pe_ray.cli.printing import AddVerb, add_json, add_trust, print_json, state_claim


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
    for added in (status, report, compare):
        add_trust(added)
    compare.add_argument("runs", nargs="+", metavar="RUN")


def _status(options: argparse.Namespace) -> None:
    from pe_ray.report.run_status import read_status

    status = read_status(options.run)
    if options.json:
        print_json(status)
        return
    print(f"state       {status['state']}")
    for stage in status["stages"]:
        if stage["state"] != "waiting":
            iteration = "" if stage["iteration"] is None else f" {stage['iteration']}"
            rows = " {rows_done:,} of {rows:,} rows".format(**stage) if stage["rows"] else ""
            print(f"{stage['state']:<12}{stage['stage']}{iteration}{rows}")
    print(f"left        {status['left']['rows']:,} rows, {status['left']['releases']} releases")
    print(f"spent       {state_claim(**status['spent'])}")
    print(f"budget      epsilon {status['budget_epsilon']:g}")
    if status["state"] == "stopped":
        print("continue    repeat the same `pe-ray run` command")


def _report(options: argparse.Namespace) -> None:
    from pe_ray.report import write_report

    print(f"report      {write_report(options.run)}")


def _compare(options: argparse.Namespace) -> None:
    from pe_ray.report.comparison import compare, tabulate

    runs = compare(options.runs)
    if options.json:
        print_json({"runs": runs})
        return
    rows = tabulate(runs)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    if len({(run["unit"], run["delta"]) for run in runs}) > 1:
        print("units or deltas differ: these epsilons can't be compared")


def _ledger(options: argparse.Namespace) -> None:
    from pe_ray.release.ledger import Ledger
    from pe_ray.runtime.run_directory import find_ledger

    ledger = Ledger.open(find_ledger(options.run))
    budget, spent = ledger.budget, ledger.spent(recall=True)
    releases = [
        {
            **entry.release.as_tree(),
            "state": entry.state,
            "reserved_at": entry.reserved_at,
            "committed_at": entry.committed_at,
        }
        for entry in ledger.entries()
    ]
    if options.json:
        print_json(
            {
                "epsilon": spent,
                "delta": budget.delta,
                "unit": budget.unit,
                "budget_epsilon": budget.epsilon,
                "accounting": ledger.accounting,
                "releases": releases,
            }
        )
        return
    print(f"spent       {state_claim(spent, budget.delta, budget.unit)}")
    print(f"budget      epsilon {budget.epsilon:g}")
    print(f"accounting  {ledger.accounting}")
    for release in releases:
        print(
            "{key:<12}sigma {sigma:g}, sensitivity {sensitivity:g}, {state} {reserved_at}".format(
                **release
            )
        )
