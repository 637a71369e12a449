"""Strategy `public`: trials vote with a public stand-in. They cost nothing."""

from __future__ import annotations

from typing import ClassVar

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.tuning.budget import final_votes, mu_left
from pe_ray.tuning.search import Search, Strategy
from pe_ray.values import Release


class StandIn(Strategy):
    """Trials vote with `tuning.public_data`; the final run gets the whole budget."""

    charged: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def check(self, search: Search) -> None:
        if search.tuning.public_data is None:
            raise InputError("tuning.public_data: needed for strategy: public")

    def configure_trial(self, search: Search, config: Config) -> Config:
        """Return the configuration with the stand-in's records and labels.

        Its images are brought to the run's shape as the private ones are.
        """
        stand_in, privacy = search.tuning.public_data, config.privacy
        assert stand_in is not None, "checked with the configuration"
        fractions = privacy.label_fractions
        if isinstance(fractions, tuple) and len(fractions) != len(stand_in.labels):
            fractions = "uniform"
        unit = privacy.unit if stand_in.user_column else "record"
        privacy = privacy.model_copy(update={"unit": unit, "label_fractions": fractions})
        private = config.private
        framed = {"resize": private.resize, "background": private.background}
        stand_in = stand_in.model_copy(update=framed)
        changed = config.model_copy(update={"private": stand_in, "privacy": privacy})
        return Config.from_dict(changed.model_dump(mode="json"))

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        return final_votes(search, config, prefix)

    def result_mu(self, search: Search) -> float:
        return mu_left(search)
