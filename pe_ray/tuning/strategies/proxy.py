"""Strategy `proxy`: trials vote with the output of one charged run, which is private already."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.evolution import iterate
from pe_ray.files.storage import Location
from pe_ray.release.adaptive import with_mu
from pe_ray.release.door import Door
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import Votes
from pe_ray.runtime.run_directory import on_disk
from pe_ray.synthetic.export import Expansion, export
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.shuffling import RowOrder
from pe_ray.tuning.budget import final_votes, mu_left, total_mu
from pe_ray.tuning.search import Fractions, Search, Strategy
from pe_ray.tuning.space import configure
from pe_ray.values import Release

_PREFIX = "proxy/"


class ProxyOptions(plugins.Options):
    """Options of `proxy`."""

    proxy_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the budget's mu^2 that the run costs with which trials vote."""
    proxy_voters: int | None = Field(default=None, ge=1)
    """Vote with so many variations of its final population (about as many as there are private
    records); default: with the population itself."""


class Proxy(Strategy):
    """One run with the configuration's own settings is charged; its output votes in trials."""

    Options: ClassVar[type[plugins.Options]] = ProxyOptions
    options: ProxyOptions
    charged: ClassVar[bool] = False
    prepared_prefix: ClassVar[str] = _PREFIX

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        return final_votes(search, config, prefix)

    def result_mu(self, search: Search) -> float:
        rest = mu_left(search) ** 2 - self._proxy_mu(search) ** 2
        if rest <= 0:
            raise InputError(
                "tuning.strategy.proxy_share: leaves nothing for the final run; lower it"
            )
        return math.sqrt(rest) * (1 - 1e-9)

    def search_releases(self, search: Search) -> tuple[Release, ...]:
        return self._proxy_releases(search, search.config)

    def prepare(
        self, search: Search, ledger: Ledger, folder: Path, fractions: Fractions | None
    ) -> PrivateConfig:
        """Run Private Evolution with a share of the budget; return its set.

        Guarantee: the set is post-processing of releases that the ledger was charged for.
        """
        config = configure(search, {}, fractions)
        output = config.output.model_copy(update={"path": str(folder)})
        config = config.model_copy(update={"output": output, "teacher": None})
        run = prepare_run(config, on_disk(folder))
        voters: Location = run.directory.synthetic
        door = Door(run, ledger, self._proxy_releases(search, config), prefix=_PREFIX)
        for population in iterate(run, door):
            last = population
        if self.options.proxy_voters is not None:
            voters = folder / "voters"
            more = Expansion(order=RowOrder.of(run, last))
            export(run, last, voters, more, run.divide(self.options.proxy_voters))
        labels = tuple(str(label) for label in range(len(run.labels)))
        return PrivateConfig(data=str(voters), labels=labels, cache=search.config.private.cache)

    def _proxy_mu(self, search: Search) -> float:
        return total_mu(search) * math.sqrt(self.options.proxy_share)

    def _proxy_releases(self, search: Search, config: Config) -> tuple[Release, ...]:
        return with_mu(Votes.plan(config, _PREFIX), self._proxy_mu(search))
