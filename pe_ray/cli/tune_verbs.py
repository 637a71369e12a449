"""The verb that searches hyperparameters inside a privacy budget."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pe_ray.cli.printing import AddVerb, guarantee, print_json

if TYPE_CHECKING:
    from pe_ray.tuning.search_config import Search


def add_verbs(verb: AddVerb) -> None:
    """tune."""
    tune = verb("tune", _tune, "Search hyperparameters inside the privacy budget, then run.")
    tune.add_argument("config", metavar="CONFIG")
    tune.add_argument("--set", action="append", default=[], metavar="block.key=value")
    tune.add_argument("--json", action="store_true")
    tune.add_argument("--plan", action="store_true", help="only print what each strategy costs")
    tune.add_argument("--max-concurrent", type=int, help="trials at once")
    tune.add_argument("--address", help="address of a Ray cluster")


def _tune(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from pe_ray.errors import InputError
    from pe_ray.release.ledger import Ledger
    from pe_ray.report import write_report
    from pe_ray.tuning.search_config import read_search
    from pe_ray.tuning.strategies import tune

    search = read_search(options.config, options.set)
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise InputError("--max-concurrent: must be at least 1")
    if options.address:
        resources = search.config.resources.model_copy(update={"address": options.address})
        config = search.config.model_copy(update={"resources": resources})
        search = replace(search, config=config)
    if options.plan:
        print_costs(search, options.json)
        return
    started = time.monotonic()
    outcome = tune(search, options.max_concurrent)
    page = write_report(outcome.path)
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    budget, epsilon = ledger.budget, ledger.spent()
    if options.json:
        print_json(
            {
                "path": str(outcome.path),
                "strategy": search.tuning.strategy,
                "settings": outcome.settings,
                "score": outcome.score,
                "trials": list(outcome.trials),
                "epsilon": epsilon,
                "delta": budget.delta,
                "unit": budget.unit,
            }
        )
        return
    for trial in outcome.trials:
        print(f"trial       {_trial(trial)}")
    print(f"best        {json.dumps(outcome.settings)}, score {outcome.score:.6g}")
    print(f"report      {page}")
    print(f"synthetic   {outcome.path / 'synthetic'}")
    spent = guarantee(epsilon, budget.delta, budget.unit)
    print(f"spent       {spent}, search included (from the ledger)")
    print(f"time        {time.monotonic() - started:.1f} s")
    sys.stdout.flush()


def print_costs(search: Search, as_json: bool) -> None:
    """Every strategy side by side, and the one to take."""
    from dataclasses import asdict

    from pe_ray.tuning.checks import check
    from pe_ray.tuning.costs import costs, recommended

    check(search)
    found = costs(search)
    strategy, reason = recommended(found)
    if as_json:
        strategies = [asdict(cost) for cost in found]
        print_json({"strategies": strategies, "recommended": strategy, "reason": reason})
        return
    budget = search.config.privacy.budget
    print(f"guarantee   {guarantee(budget.epsilon, budget.delta, budget.unit)}, search included")
    for cost in found:
        if cost.impossible:
            print(f"{cost.strategy:<12}not here: {cost.impossible}")
            continue
        text = (
            f"search costs {cost.search_share:.0%} of mu^2; the result gets epsilon "
            f"{cost.final_epsilon:.4g}, sigma {cost.final_sigma:.4g} ({cost.noise:.2f} times "
            "that of a run without search)"
        )
        print(f"{cost.strategy:<12}{text}")
    print(f"recommended {strategy}: {reason}")
    print(f"configured  {search.tuning.strategy}")


def _trial(record: dict[str, Any]) -> str:
    scores = record["scores"]
    score = f"{scores[max(scores, key=int)]:.6g}" if scores else "none"
    return f"{record['state']:<9} score {score}, {json.dumps(record['settings'])}"
