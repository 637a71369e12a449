"""What a run released and made so far, read from its directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pe_ray.config import Config
from pe_ray.files.parts import manifest_of
from pe_ray.files.storage import Location, seekable
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import LedgerEntry
from pe_ray.run import open_run
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.synthetic.population import initial_offspring, read_layout
from pe_ray.values import Budget, LabelLayout, NoisyHistogram

_CURVE_DELTAS = tuple(
    10.0**-exponent for exponent in (*range(1, 13), *(n + 0.5 for n in range(12)))
)
LARGE_DELTAS = tuple(step / 40 for step in range(1, 40))
"""Where the bound on guessing is tightest: near the delta at which epsilon is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A run as its directory tells it.

    spent: epsilon at the budget's delta of all `entries`, from the ledger; layouts: of the complete
    populations S_0, S_1, ...; num_final: rows of the final set, None while there is none.
    """

    run: RunDirectory
    config: Config
    ledger: Ledger
    budget: Budget
    entries: tuple[LedgerEntry, ...]
    spent: float
    layouts: tuple[LabelLayout, ...]
    num_final: int | None

    def votes(self, iteration: int) -> NoisyHistogram | None:
        """The released votes of `iteration`, on the samples of S_(iteration-1).

        Of a trial that a search took as its result, the votes have the trial's own keys: they are
        those that this run exports.
        """
        key = f"votes/{iteration:04d}"
        found: NoisyHistogram | None = self.ledger.released(key)
        file = self.run.histogram(iteration)
        if found is not None or not file.exists():
            return found
        exported = pq.read_table(seekable(file), columns=["noisy_votes"])["noisy_votes"].to_numpy()
        for entry in self.entries:
            if entry.release.key.endswith(f"/{key}"):
                found = self.ledger.released(entry.release.key)
                if found is not None and np.array_equal(found.noisy_votes, exported):
                    return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """A synthetic stage. calls: images asked of the generator; rows_made, seconds: of the start
    that completed it, None where that wasn't recorded."""

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
    final = manifest_of(run.synthetic)
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


def privacy_curve(facts: Facts) -> list[tuple[float, float]]:
    """(delta, epsilon) of everything charged, delta falling; empty where there is no guarantee."""
    return _curve(facts, {*_CURVE_DELTAS, facts.budget.delta})


def guessing_bound(facts: Facts) -> float:
    """Most often, in [0.5, 1], that anyone guesses right whether one unit was in, in or out being
    equally likely."""
    return most_right(_curve(facts, {*_CURVE_DELTAS, *LARGE_DELTAS}))


def most_right(curve: Sequence[tuple[float, float]]) -> float:
    """Least of (e^epsilon + delta) / (e^epsilon + 1) over a curve of (delta, epsilon).

    Kairouz, Oh, Viswanath 2015, Theorem 2.1: the two errors of any test together are at least
    2 (1 - delta) / (1 + e^epsilon).
    """
    bounds = [1 - (1 - delta) / (1 + math.exp(min(epsilon, 700.0))) for delta, epsilon in curve]
    return min([1.0, *bounds])


def _curve(facts: Facts, deltas: Iterable[float]) -> list[tuple[float, float]]:
    """By the ledger's own accounting: a search's releases are no list that was fixed in advance."""
    if not facts.spent or math.isinf(facts.spent):
        return []
    curve = [(delta, facts.ledger.spent(delta)) for delta in sorted(deltas, reverse=True)]
    return [(delta, epsilon) for delta, epsilon in curve if math.isfinite(epsilon)]


def stage_times(facts: Facts) -> Iterator[StageTime]:
    """Stages that made or embedded samples, in order. Votes are never among them."""
    run, lookahead = facts.run, facts.config.votes.lookahead
    for iteration, layout in enumerate(facts.layouts):
        if iteration:
            made = _json(run.embedding_time(iteration))
            rows = facts.layouts[iteration - 1].num_samples
            yield _stage(f"embedding {iteration}", rows, rows * lookahead, made)
        manifest = manifest_of(run.population(iteration)) or {}
        calls = manifest.get("variations", 0) - manifest.get("reused_draws", 0)
        name = f"population {iteration}"
        if iteration == 0:
            name += " (random draws)"
            fold = facts.config.selection.initial_variation_fold
            calls += int((initial_offspring(layout, fold).copies == 0).sum())
        yield _stage(name, layout.num_samples, calls, manifest)
    if facts.num_final is not None:
        yield _stage("final set", facts.num_final, 0, manifest_of(run.synthetic) or {})


def _stage(name: str, rows: int, calls: int, made: dict[str, Any]) -> StageTime:
    return StageTime(
        name=name,
        rows=rows,
        calls=calls,
        rows_made=made.get("rows_made") or None,  # 0: made by another stage's workers, in its time
        seconds=made.get("seconds") if made.get("rows_made") else None,
    )


def _json(file: Location) -> dict[str, Any]:
    if not file.exists():
        return {}
    tree: dict[str, Any] = json.loads(file.read_bytes())
    return tree
