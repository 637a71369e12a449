"""Strategy `compose`: trials vote with the private records, and every release is charged."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.release.adaptive import with_mu
from pe_ray.release.releases import Votes
from pe_ray.tuning.budget import mu_left
from pe_ray.tuning.search import Search, Strategy
from pe_ray.values import Release


class ComposeOptions(plugins.Options):
    """Options of `compose`."""

    full_trials: float | None = Field(default=None, ge=1)
    """Complete trials that the budget must last for; default: num_trials. With asha fewer will do:
    what stopped trials didn't spend pays for others."""
    final_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of mu^2 kept for the final run, which also gets what the search left over."""


class Compose(Strategy):
    """All trials have the same price; the ledger refuses the release that would overspend."""

    Options: ClassVar[type[plugins.Options]] = ComposeOptions
    options: ComposeOptions
    charged: ClassVar[bool] = True

    def check(self, search: Search) -> None:
        """Allow as many trials at once as have a full share: of more, all might be refused."""
        tuning = search.tuning
        if min(tuning.max_concurrent, tuning.num_trials) > self._full_trials(search):
            raise InputError("tuning.max_concurrent: must not be above full_trials; lower it")

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        share = (1 - self.options.final_share) / self._full_trials(search)
        return with_mu(Votes.plan(config, prefix), mu_left(search) * math.sqrt(share))

    def result_mu(self, search: Search) -> float:
        return mu_left(search) * math.sqrt(self.options.final_share)

    def search_releases(self, search: Search) -> tuple[Release, ...]:
        return self.trial_releases(search, search.config, "trial/")

    def _full_trials(self, search: Search) -> float:
        return self.options.full_trials or float(search.tuning.num_trials)
