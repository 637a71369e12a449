"""What a run has released and made so far, read from its directory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.config import Config
from pe_ray.errors import DamagedFileError
from pe_ray.files.parts import read_manifest
from pe_ray.files.storage import GivenPath, open_seekable
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import LedgerEntry
from pe_ray.release.releases import votes_key
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.synthetic.population import read_layout
from pe_ray.values import Budget, LabelLayout, NoisyHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The content of a run directory.

    spent: epsilon at the budget's delta of all `entries`, from the ledger.
    layouts: of the complete populations S_0, S_1, ...
    num_final: rows of the final set, None while there is none.
    """

    run: RunDirectory
    config: Config
    ledger: Ledger
    budget: Budget
    entries: tuple[LedgerEntry, ...]
    spent: float
    layouts: tuple[LabelLayout, ...]
    num_final: int | None

    def read_votes(self, iteration: int) -> NoisyHistogram | None:
        """Return the released votes of `iteration` on the samples of S_(iteration-1).

        A search may take a trial as its result. The ledger then has the votes under the trial's
        key; they are the ones that equal the run's exported histogram. DamagedFileError where
        none do.
        """
        key, file = votes_key(iteration), self.run.histogram(iteration)
        found: NoisyHistogram | None = self.ledger.released(key)
        if found is not None or not file.exists():
            return found
        try:
            table = pq.read_table(open_seekable(file), columns=["noisy_votes"])
        except (pa.ArrowException, OSError):
            raise DamagedFileError(str(file)) from None
        exported = table["noisy_votes"].to_numpy()
        for entry in self.entries:
            if entry.release.key.endswith(f"/{key}"):
                found = self.ledger.released(entry.release.key)
                if found is not None and np.array_equal(found.noisy_votes, exported):
                    return found
        raise DamagedFileError(str(file))


def gather(path: GivenPath) -> Facts:
    """Read the run at `path`, finished or not."""
    opened = open_run(path)
    run, config = opened.directory, opened.config
    ledger = Ledger.open(run.ledger)
    layouts = []
    for iteration in range(config.schedule.iterations + 1):
        layout = read_layout(run.population(iteration))
        if layout is None:
            break
        layouts.append(layout)
    final = read_manifest(run.synthetic)
    return Facts(
        run=run,
        config=config,
        ledger=ledger,
        budget=ledger.budget,
        entries=ledger.entries(),
        spent=ledger.spent(recall=True),
        layouts=tuple(layouts),
        num_final=None if final is None else final["num_rows"],
    )


def compute_privacy_curve(facts: Facts) -> list[tuple[float, float]]:
    """Return (delta, epsilon) of everything charged, for deltas that fall from 0.1 to 1e-12.

    Empty where there is no guarantee. By the ledger's own accounting, as the releases of a search
    are not a list that was fixed in advance.
    """
    if not facts.spent or math.isinf(facts.spent):
        return []
    deltas = {facts.budget.delta, *(10.0**-exponent for exponent in range(1, 13))}
    curve = [(delta, facts.ledger.spent(delta)) for delta in sorted(deltas, reverse=True)]
    return [(delta, epsilon) for delta, epsilon in curve if math.isfinite(epsilon)]
