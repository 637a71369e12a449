"""The verb that searches hyperparameters inside a privacy budget: tune."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pe_ray.cli.inputs import plan_inputs, print_inputs
from pe_ray.cli.printing import (
    AddVerb,
    add_address,
    add_config,
    add_json,
    print_json,
    state_claim,
    use_address,
)

if TYPE_CHECKING:
    from pe_ray.tuning.search import Search


def add_verbs(verb: AddVerb) -> None:
    """Add tune."""
    tune = verb("tune", _tune, "Search hyperparameters inside the privacy budget, then run.")
    add_config(tune)
    add_json(tune)
    tune.add_argument("--plan", action="store_true", help="only print what each strategy costs")
    tune.add_argument("--max-concurrent", type=int, metavar="N", help="most trials at once")
    add_address(tune)


def _tune(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from pe_ray.errors import InputError
    from pe_ray.release.ledger import Ledger
    from pe_ray.report import write_report
    from pe_ray.tuning.search import read_search
    from pe_ray.tuning.tune import tune

    search = read_search(options.config, options.set)
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise InputError("--max-concurrent: must be at least 1")
    search = replace(search, config=use_address(search.config, options.address))
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
                "strategy": search.tuning.strategy.kind,
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
        print(f"trial       {_describe_trial(trial)}")
    print(f"best        {json.dumps(outcome.settings)}, score {outcome.score:.6g}")
    print(f"report      {page}")
    print(f"synthetic   {outcome.path / 'synthetic'}")
    spent = state_claim(epsilon, budget.delta, budget.unit)
    print(f"spent       {spent}, search included (from the ledger)")
    print(f"time        {time.monotonic() - started:.1f} s")
    sys.stdout.flush()


def print_costs(search: Search, as_json: bool) -> None:
    """Print what each strategy costs, and which one is recommended."""
    from dataclasses import asdict

    from pe_ray.tuning import search as searches
    from pe_ray.tuning.checks import check_search
    from pe_ray.tuning.costs import compare_costs, recommend

    check_search(search)
    files = plan_inputs(search.config, searches.public_tables(search))
    found = compare_costs(search)
    best = recommend(found)
    if as_json:
        strategies = [asdict(cost) for cost in found]
        chosen = {"recommended": best.strategy, "reason": best.reason}
        data = [asdict(read) for read in files]
        print_json({"strategies": strategies, **chosen, "data": data})
        return
    print_inputs(files)
    budget = search.config.privacy.budget
    print(f"guarantee   {state_claim(budget.epsilon, budget.delta, budget.unit)}, search included")
    for cost in found:
        if cost.impossible:
            print(f"{cost.strategy:<12}impossible: {cost.impossible}")
            continue
        text = (
            f"search costs {cost.search_share:.0%} of mu^2; the result gets epsilon "
            f"{cost.final_epsilon:.4g}, sigma {cost.final_sigma:.4g} ({cost.noise:.2f} times "
            "that of a run without search)"
        )
        print(f"{cost.strategy:<12}{text}")
    print(f"recommended {best.strategy}: {best.reason}")
    print(f"configured  {search.tuning.strategy.kind}")


def _describe_trial(record: dict[str, Any]) -> str:
    scores = record["scores"]
    score = f"{scores[max(scores, key=int)]:.6g}" if scores else "none"
    return f"{record['state']:<9} score {score}, {json.dumps(record['settings'])}"
