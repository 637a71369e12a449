"""Verbs that look at a run's released values: status, report, compare, ledger."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pe_ray.cli.printing import (
    AddVerb,
    add_json,
    add_run,
    add_trust,
    print_json,
    say_score,
    state_claim,
)
from pe_ray.files.storage import expand_home


def add_verbs(verb: AddVerb) -> None:
    """Add status, report, compare and ledger."""
    status = verb(
        "status",
        _status,
        "Print what a run has done, what is left and what was spent.",
        "runs/digits",
    )
    report = verb("report", _report, "Write RUN/report.html, samples and metrics.", "runs/digits")
    compare = verb(
        "compare",
        _compare,
        "Print guarantees, settings and metrics of several runs.",
        "runs/a runs/b",
    )
    ledger = verb(
        "ledger", _ledger, "Print what was released and the (epsilon, delta) spent.", "runs/digits"
    )
    for added in (status, report, ledger):
        add_run(added)
    for added in (status, compare, ledger):
        add_json(added)
    for added in (status, report, compare):
        add_trust(added)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    compare.add_argument(
        "--html", metavar="FILE", type=expand_home, help="write a page with pictures, too"
    )


def _status(options: argparse.Namespace) -> None:
    from pe_ray.report.run_status import read_status
    from pe_ray.tuning.outcomes import read_search

    search = read_search(options.run)
    if search is None or search["state"] == "finished":
        status = read_status(options.run)
    else:  # its final run is not complete
        kept = {name: search[name] for name in ("state", "spent", "budget_epsilon")}
        status = {"run": options.run, **kept, "stages": [], "scores": {}, "left": None}
    if options.json:
        print_json(status if search is None else {**status, "search": search})
        return
    print(f"state       {status['state']}")
    if search is not None:
        _print_search(search)
    for stage in status["stages"]:
        if stage["state"] != "waiting":
            iteration = "" if stage["iteration"] is None else f" {stage['iteration']}"
            rows = " {rows_done:,} of {rows:,} rows".format(**stage) if stage["rows"] else ""
            print(f"{stage['state']:<12}{stage['stage']}{iteration}{rows}")
    for name, score in status["scores"].items():
        print(f"score       {name}: {say_score(score, status['better'].get(name))}")
    if status["left"]:
        print(f"left        {status['left']['rows']:,} rows, {status['left']['releases']} releases")
    print(f"spent       {state_claim(**status['spent'])}")
    print(f"budget      epsilon {status['budget_epsilon']:g}")
    if status["state"] == "stopped":
        print(f"continue    repeat the same `pe-ray {'tune' if search else 'run'}` command")


def _print_search(search: Mapping[str, Any]) -> None:
    from pe_ray.tuning.outcomes import describe_trial

    trials, better = search["trials"], search["better"]
    complete = sum(trial["state"] == "complete" for trial in trials)
    print(
        f"search      {search['strategy']}: {complete} of {search['num_trials']} trials are "
        f"complete, {len(trials) - complete} begun"
    )
    for trial in trials:
        print(f"trial       {describe_trial(trial, better)}")
    if search["best"]:
        print(f"best        {describe_trial(search['best'], better)}")


def _report(options: argparse.Namespace) -> None:
    from pe_ray.report import write_report

    print(f"report      {write_report(options.run)}")


def _compare(options: argparse.Namespace) -> None:
    from pe_ray.report.comparison import compare, tabulate, write_comparison

    if options.html is not None:
        write_comparison(options.runs, options.html)
    runs = compare(options.runs)
    if options.json:
        print_json({"runs": runs})
        return
    results, settings = tabulate(runs)
    rows = [*results, *([["SETTINGS THAT DIFFER"], *settings] if settings else [])]
    width = max(len(row[0]) for row in rows)
    widths = [max(map(len, column)) for column in zip(*results, *settings, strict=True)][1:]
    for name, *cells in rows:
        padded = (cell.ljust(wide) for cell, wide in zip(cells, widths, strict=False))
        print("  ".join([name.ljust(width), *padded]).rstrip())
    if options.html is not None:
        print(f"page: {options.html}")
    if len({(run["unit"], run["delta"]) for run in runs}) > 1:
        print("units or deltas differ: these epsilons can't be compared")


def _ledger(options: argparse.Namespace) -> None:
    from pe_ray.release.ledger import Ledger, describe_ledger
    from pe_ray.runtime.run_directory import find_ledger

    told = describe_ledger(Ledger.open(find_ledger(options.run)))
    if options.json:
        print_json(told)
        return
    print(f"spent       {state_claim(told['epsilon'], told['delta'], told['unit'])}")
    print(f"budget      epsilon {told['budget_epsilon']:g}")
    print(f"accounting  {told['accounting']}")
    for release in told["releases"]:
        print(
            "{key:<12}sigma {sigma:g}, sensitivity {sensitivity:g}, {state} {reserved_at}".format(
                **release
            )
        )
