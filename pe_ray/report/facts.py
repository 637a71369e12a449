"""What a run has released and made so far, read from its directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pe_ray.config import Config
from pe_ray.files.parts import read_manifest
from pe_ray.files.storage import Location, open_seekable
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import LedgerEntry
from pe_ray.release.releases import votes_key
from pe_ray.run import open_run
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.synthetic.population import initial_offspring, read_layout
from pe_ray.values import Budget, LabelLayout, NoisyHistogram

CURVE_DELTAS = tuple(10.0**-exponent for exponent in (*range(1, 13), *(n + 0.5 for n in range(12))))
LARGE_DELTAS = tuple(step / 40 for step in range(1, 40))
"""Where the bound on guessing is tightest: near the delta at which epsilon is 0."""


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
        key; they are the ones that equal the run's exported histogram.
        """
        key, file = votes_key(iteration), self.run.histogram(iteration)
        found: NoisyHistogram | None = self.ledger.released(key)
        if found is not None or not file.exists():
            return found
        table = pq.read_table(open_seekable(file), columns=["noisy_votes"])
        exported = table["noisy_votes"].to_numpy()
        for entry in self.entries:
            if entry.release.key.endswith(f"/{key}"):
                found = self.ledger.released(entry.release.key)
                if found is not None and np.array_equal(found.noisy_votes, exported):
                    return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """A stage that made or embedded samples.

    calls: images asked of the generator.
    rows_made, seconds: of the start that completed the stage, None where they weren't recorded.
    """

    name: str
    rows: int
    calls: int
    rows_made: int | None
    seconds: float | None


def gather(path: str | Location) -> Facts:
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
        spent=ledger.spent(),
        layouts=tuple(layouts),
        num_final=None if final is None else final["num_rows"],
    )


def compute_privacy_curve(
    facts: Facts, deltas: Iterable[float] = CURVE_DELTAS
) -> list[tuple[float, float]]:
    """Return (delta, epsilon) of everything charged, at `deltas` and the budget's, delta falling.

    Empty where there is no guarantee. By the ledger's own accounting, as the releases of a search
    are not a list that was fixed in advance.
    """
    if not facts.spent or math.isinf(facts.spent):
        return []
    falling = sorted({*deltas, facts.budget.delta}, reverse=True)
    curve = [(delta, facts.ledger.spent(delta)) for delta in falling]
    return [(delta, epsilon) for delta, epsilon in curve if math.isfinite(epsilon)]


def bound_guessing(curve: Sequence[tuple[float, float]]) -> float:
    """Bound how often, in [0.5, 1], anyone guesses right whether one unit was in the data.

    In and out are equally likely. The bound is the least of (e^epsilon + delta) / (e^epsilon + 1)
    over a curve of (delta, epsilon). Kairouz, Oh, Viswanath 2015, Theorem 2.1: the two errors of
    any test add up to at least 2 (1 - delta) / (1 + e^epsilon).
    """
    bounds = [1 - (1 - delta) / (1 + math.exp(min(epsilon, 700.0))) for delta, epsilon in curve]
    return min([1.0, *bounds])


def list_stage_times(facts: Facts) -> list[StageTime]:
    """Return the stages that made or embedded samples, in order; votes are never among them."""
    run, before, found = facts.run, 0, []
    for iteration, layout in enumerate(facts.layouts):
        if iteration:
            file, calls = run.embedding_time(iteration), before * facts.config.votes.lookahead
            made = json.loads(file.read_bytes()) if file.exists() else {}
            found.append(_stage_time(f"embedding {iteration}", before, calls, made))
        made = read_manifest(run.population(iteration)) or {}
        name = f"population {iteration}" if iteration else "population 0 (random draws)"
        calls = made.get("variations", 0) - made.get("reused_draws", 0)
        if iteration == 0:
            fold = facts.config.selection.initial_variation_fold
            calls += int((initial_offspring(layout, fold).copies == 0).sum())
        before = layout.num_samples
        found.append(_stage_time(name, before, calls, made))
    if facts.num_final is not None:
        made = read_manifest(run.synthetic) or {}
        found.append(_stage_time("final set", facts.num_final, 0, made))
    return found


def _stage_time(name: str, rows: int, calls: int, made: Mapping[str, Any]) -> StageTime:
    rows_made = made.get("rows_made") or None  # 0: made by the workers of another stage
    seconds = made.get("seconds") if rows_made else None
    return StageTime(name=name, rows=rows, calls=calls, rows_made=rows_made, seconds=seconds)
