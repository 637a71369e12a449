"""The verb that searches hyperparameters inside a privacy budget: tune."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

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
    tune = verb(
        "tune", _tune, "Search hyperparameters inside the privacy budget, then run.", "search.yaml"
    )
    add_config(tune)
    add_json(tune)
    add_address(tune)


def _tune(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from pe_ray.report import write_report
    from pe_ray.report.run_status import read_status
    from pe_ray.tuning.outcomes import describe_trial
    from pe_ray.tuning.search import Search
    from pe_ray.tuning.tune import tune

    search = Search.from_yaml(options.config, options.set)
    search = replace(search, config=use_address(search.config, options.address))
    started = time.monotonic()
    outcome = tune(search)
    page = write_report(outcome.path)
    spent = read_status(outcome.path)["spent"]
    if options.json:
        print_json(
            {
                "path": str(outcome.path),
                "strategy": search.tuning.strategy.kind,
                "settings": outcome.settings,
                "score": outcome.score,
                "trials": outcome.trials,
                **spent,
            }
        )
        return
    better = search.objective.better
    for trial in outcome.trials:
        print(f"trial       {describe_trial(trial, better)}")
    best = f"score {outcome.score:.6g} ({better} is better)"
    print(f"best        {json.dumps(outcome.settings)}, {best}")
    print(f"report      {page}")
    print(f"synthetic   {outcome.path / 'synthetic'}")
    print(f"spent       {state_claim(**spent)}, search included (from the ledger)")
    print(f"time        {time.monotonic() - started:.1f} s")


def print_cost(search: Search, as_json: bool) -> None:
    """Print what a search costs and what it leaves for the final run."""
    from dataclasses import asdict

    from pe_ray.tuning.budget import plan_cost
    from pe_ray.tuning.checks import check_search

    check_search(search)
    files = plan_inputs(search.config, search.public_tables())
    cost, budget = plan_cost(search), search.config.privacy.budget
    if as_json:
        print_json({**cost, "data": [asdict(read) for read in files]})
        return
    print_inputs(files)
    print(f"guarantee   {state_claim(budget.epsilon, budget.delta, budget.unit)}, search included")
    print(f"search      {cost['strategy']}: {cost['search_share']:.0%} of mu^2")
    print(
        f"final run   epsilon {cost['final_epsilon']:.4g}, sigma {cost['final_sigma']:.4g}: "
        f"{cost['noise']:.2f} times the noise without a search"
    )
