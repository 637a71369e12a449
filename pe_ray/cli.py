"""The command line: pe-ray plan | run | expand | report | ledger | audit.

Exit status 0 on success, 2 on bad input (one line: what, where, fix), 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from pe_ray.config import Config, ResourcesConfig
from pe_ray.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ray", "absl", "matplotlib", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        options.command(options)
    except InputError as error:
        print(f"pe-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pe-ray: stopped; the same command continues", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pe-ray", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    for name, command, text in (
        ("plan", _plan, "Validate a configuration and print what a run would cost."),
        ("run", _run, "Start a run, or continue it after any interruption."),
        ("audit", _audit, "Score a finished run on private records (never publish the output)."),
    ):
        added = verb(name, command, text)
        added.add_argument("config", metavar="CONFIG" if name != "audit" else "RUN")
        if name != "audit":
            added.add_argument("--set", action="append", default=[], metavar="block.key=value")
        if name == "run":
            added.add_argument("--address", help="address of a Ray cluster")
        else:
            added.add_argument("--json", action="store_true")
    added = verb("expand", _expand, "Write further variations of a run's final population.")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--num-samples", type=int, help="default: the final set itself, unvaried")
    added.add_argument("--output", required=True)
    added.add_argument("--format", choices=("parquet", "webdataset", "folder"), default="parquet")
    added.add_argument("--address", help="address of a Ray cluster")
    added = verb("report", _report, "Write RUN/report.html, samples and metrics.")
    added.add_argument("run", metavar="RUN")
    added = verb("ledger", _ledger, "Print what was released and the (epsilon, delta) spent.")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--json", action="store_true")
    return parser


def _plan(options: argparse.Namespace) -> None:
    from pe_ray.planning import plan, worker_seconds

    config = Config.from_yaml(options.config, options.set)
    made = plan(config)
    seconds = worker_seconds(config, made.calls)
    if options.json:
        _print_json(
            {
                "epsilon": made.epsilon,
                "delta": made.delta,
                "unit": made.unit,
                "releases": [
                    {
                        "key": release.key,
                        "kind": release.kind,
                        "iteration": release.iteration,
                        "mechanism": "discrete Gaussian",
                        "sigma": release.sigma,
                        "sensitivity": release.sensitivity,
                    }
                    for release in made.releases
                ],
                "calls": {"random": made.random_calls, "variation": made.variation_calls},
                "images": {"populations": sum(config.schedule.sizes)},
                "disk_bytes": made.disk_bytes,
                "worker_seconds": seconds,
            }
        )
        return
    print(f"guarantee   {_guarantee(made.epsilon, made.delta, made.unit)}")
    for release in made.releases:
        what = f"votes, iteration {release.iteration}" if release.iteration else "label counts"
        print(f"release     {what}: sigma {release.sigma:g}, sensitivity {release.sensitivity:g}")
    print(f"calls       {made.random_calls:,} random, {made.variation_calls:,} variation")
    print(f"images      {sum(config.schedule.sizes):,} in {len(config.schedule.sizes)} populations")
    print(f"disk        {made.disk_bytes / 2**20:,.1f} MiB at most")
    if seconds is None:
        print("time        not estimated: the generator needs a GPU; time a short run there")
    else:
        print(f"time        {seconds:,.1f} worker seconds of generation, on this machine's CPU")


def _run(options: argparse.Namespace) -> None:
    config = Config.from_yaml(options.config, options.set)
    if options.address:
        resources = config.resources.model_copy(update={"address": options.address})
        config = config.model_copy(update={"resources": resources})
    from pe_ray.evolution import evolve
    from pe_ray.report import write_report

    started = time.monotonic()
    path = evolve(config)
    page = write_report(path)
    from pe_ray.release.ledger import Ledger

    ledger = Ledger.open(path / "ledger.sqlite")
    budget = ledger.budget
    print(f"report      {page}")
    print(f"synthetic   {path / 'synthetic'}")
    print(f"spent       {_guarantee(ledger.spent(), budget.delta, budget.unit)} (from the ledger)")
    print(f"time        {time.monotonic() - started:.1f} s")


def _expand(options: argparse.Namespace) -> None:
    from pe_ray.expansion import expand

    resources = ResourcesConfig(address=options.address)
    path = expand(options.run, options.num_samples, options.output, resources, options.format)
    print(f"synthetic   {path}")


def _report(options: argparse.Namespace) -> None:
    from pe_ray.report import write_report

    print(f"report      {write_report(options.run)}")


def _ledger(options: argparse.Namespace) -> None:
    from pe_ray.release.ledger import Ledger
    from pe_ray.run_directory import opened

    run, _ = opened(options.run)
    ledger = Ledger.open(run.ledger)
    budget, spent, entries = ledger.budget, ledger.spent(), ledger.entries()
    if options.json:
        _print_json(
            {
                "epsilon": spent,
                "delta": budget.delta,
                "unit": budget.unit,
                "budget_epsilon": budget.epsilon,
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
    print(f"spent       {_guarantee(spent, budget.delta, budget.unit)}")
    print(f"budget      epsilon {budget.epsilon:g}")
    for entry in entries:
        release = entry.release
        print(
            f"{release.key:<12}sigma {release.sigma:g}, sensitivity {release.sensitivity:g}, "
            f"{entry.state} {entry.committed_at or entry.reserved_at}"
        )


def _audit(options: argparse.Namespace) -> None:
    from pe_ray.private.audit import audit

    scores = audit(options.config)
    if options.json:
        _print_json(scores)
        return
    print("PRIVATE: computed on private records without noise; do not publish", file=sys.stderr)
    for name, score in scores.items():
        print(f"{name:<28}{score:.4f}")


def _guarantee(epsilon: float, delta: float, unit: str) -> str:
    if math.isinf(epsilon):
        return "epsilon inf: no noise, NOT private"
    return f"epsilon {epsilon:.6g}, delta {delta:g}, adding or removing one {unit}"


def _print_json(tree: Any) -> None:
    """JSON without the non-standard Infinity: an infinite epsilon is the string "inf"."""

    def standard(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        if isinstance(value, dict):
            return {key: standard(below) for key, below in value.items()}
        return [standard(below) for below in value] if isinstance(value, list) else value

    print(json.dumps(standard(tree), indent=2))
