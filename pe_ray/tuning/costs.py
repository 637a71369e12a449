"""What each strategy would cost and leave for the final run, side by side, before any is begun."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from pe_ray.errors import InputError
from pe_ray.planning import plan_releases
from pe_ray.release.accounting import gaussian_epsilon
from pe_ray.release.adaptive import with_mu
from pe_ray.release.releases import shape_releases
from pe_ray.tuning.budget import accounting_of, final_mu, total_mu, trial_mu
from pe_ray.tuning.search_config import NO_FINAL_RUN, Search, Strategy
from pe_ray.values import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One strategy with the configuration's settings.

    search_share: share of mu^2 that the search costs, releases for the objective included;
    final_epsilon: what the result's own releases cost alone; final_sigma: noise of its last votes,
    in votes; noise: that over the noise of a run without a search;
    impossible: why this configuration can't have it.
    """

    strategy: Strategy
    search_share: float = 1.0
    final_epsilon: float = 0.0
    final_sigma: float = math.inf
    noise: float = math.inf
    impossible: str | None = None


def costs(search: Search) -> list[Cost]:
    """Every strategy's cost with this configuration; touches no private record."""
    return list(_costs(search))


def _costs(search: Search) -> Iterator[Cost]:
    alone = _last_sigma(plan_releases(search.config))
    for strategy in get_args(Strategy):
        tuning = search.tuning.model_copy(update={"strategy": strategy})
        asked = replace(search, tuning=tuning)
        why = _impossible(asked)
        if why is not None:
            yield Cost(strategy=strategy, impossible=why)
            continue
        try:
            yield _cost(asked, strategy, alone)
        except InputError as error:
            yield Cost(strategy=strategy, impossible=str(error))


def _impossible(search: Search) -> str | None:
    tuning = search.tuning
    if tuning.strategy == "public" and tuning.public_data is None:
        return "needs tuning.public_data"
    if search.config.teacher and not tuning.final_run:
        return f"teacher: {NO_FINAL_RUN}"
    return None


def _cost(search: Search, strategy: Strategy, alone: float) -> Cost:
    delta, config = search.config.privacy.delta, search.config
    if accounting_of(search) == "fixed":
        return Cost(
            strategy=strategy,
            search_share=0.0,
            final_epsilon=config.privacy.epsilon,
            final_sigma=alone,
            noise=1.0,
        )
    mu = final_mu(search) or trial_mu(search)
    last = _last_sigma(with_mu(shape_releases(config, label_counts=False), mu))
    return Cost(
        strategy=strategy,
        search_share=max(0.0, 1 - (mu / total_mu(search)) ** 2),
        final_epsilon=gaussian_epsilon(mu, delta),
        final_sigma=last,
        noise=last / alone,
    )


def _last_sigma(releases: Sequence[Release]) -> float:
    """Noise of the last votes."""
    return [release.sigma for release in releases if release.kind == "votes"][-1]


def recommended(found: list[Cost]) -> tuple[Strategy, str]:
    """The strategy to take, and why."""
    able = {cost.strategy: cost for cost in found if cost.impossible is None}
    if not able:
        raise InputError("tuning: the budget is too small for any strategy; raise privacy.epsilon")
    if "public" in able:
        return "public", (
            "a public stand-in costs nothing; it holds as far as good settings for the stand-in "
            "are good for the private records"
        )
    least = min(able.values(), key=lambda cost: cost.noise)
    reasons = {
        "proxy": "without public data it leaves most of the budget; further trials are free",
        "compose": "here it leaves the final run the least noise, and trials vote with the records",
        "public": "",
    }
    return least.strategy, reasons[least.strategy]
