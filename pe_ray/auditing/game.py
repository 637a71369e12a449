"""The attack: run the whole pipeline on canaries, guess who was included, bound epsilon.

The attacker has what the threat model of docs/privacy.md gives a reader of the run directory: the
configuration, the ledger with its noisy histograms, the populations, the final set, and the
canaries' images. It doesn't have the coins, which only tell right guesses from wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray import evolution
from pe_ray.auditing.bounds import (
    measured_epsilon,
    refutes_in_one_run,
    refutes_independent,
    right_guesses,
)
from pe_ray.auditing.canaries import (
    Canaries,
    CanaryVotes,
    canary_data,
    canary_votes,
    embed_canaries,
    place_canaries,
)
from pe_ray.config import Config
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.storage import delete_tree, list_names, require_writable, resolve_place
from pe_ray.release.ledger import Ledger
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.run_directory import LEDGER, RunDirectory, on_disk
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import Population, read_layout
from pe_ray.synthetic.population_files import read_parents
from pe_ray.values import Release

Observation = Literal["histograms", "reached", "parents"]
Scores = NDArray[np.float64]

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 1.0)
"""Shares of the canaries guessed by the one-run bounds, fixed in advance."""
_LEAST_GUESSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A lower bound on epsilon: by which statistic and by which method (see bounds.py)."""

    statistic: Observation
    method: Literal["one_run", "independent"]
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Claimed and measured epsilon, at one delta.

    measured: the highest of `bounds`, which hold all together with `confidence`; assumption_free:
    the highest that takes nothing about the canaries' independence for granted; measurable: what
    `measured` would be if every guess about these canaries were right.
    """

    claimed: float
    measured: float
    assumption_free: float
    measurable: float
    delta: float
    unit: str
    confidence: float
    num_canaries: int
    num_included: int
    bounds: tuple[Bound, ...]

    @property
    def refuted(self) -> bool:
        """Whether what was released contradicts the claim."""
        return self.measured > self.claimed

    @property
    def conclusive(self) -> bool:
        """Whether so many canaries could have refuted the claim at all."""
        return self.measurable > self.claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """A finished run on canaries, as its reader sees it.

    releases: what the ledger claims of the votes; votes: of the canaries, by iteration;
    histograms: what was released, by iteration and then by start of the run (all the same, unless
    a restart drew again); children: of each sample of S_(t-1) in S_t, by iteration.
    """

    canaries: Canaries
    claimed: float
    delta: float
    unit: str
    releases: tuple[Release, ...]
    votes: Sequence[CanaryVotes]
    histograms: Sequence[Sequence[NDArray[np.int64]]]
    children: Sequence[NDArray[np.int64]]


def play(config: Config, output: Path, *, restarts: int = 1) -> Game:
    """Run `config` on canaries in `output`, or continue; `private.data` is never read.

    restarts: so often the run is taken back to just after its releases and started again.

    Raises InputError where output.path of `config` holds a run: an attack must never touch the
    ledger of real data, nor be mistaken for its run.
    """
    require_extras(config)
    attacked = _attacked(config, output)
    require_writable(output, "--output")
    directory = on_disk(output / "run")
    with connect_to_ray(config.resources):
        canaries = place_canaries(attacked, output)
        with_data = attacked.model_copy(
            update={"private": canary_data(attacked, canaries.included)}
        )
        passes: list[list[NDArray[np.int64]]] = []
        for number in range(restarts + 1):
            if number:
                _take_back(directory)
            evolution.evolve(with_data)
            passes.append(_histograms(directory, with_data))
        run = prepare_run(with_data, directory)
        populations = [open_population(directory, t) for t in range(config.schedule.iterations + 1)]
        # Embedded again in a directory of the attack's own: the run's stays as it was published.
        again = replace(run, directory=on_disk(output / "embedded"))
        features = embed_canaries(again, canaries.file)
        votes = canary_votes(again, canaries, features, populations[:-1])
        delete_tree(again.directory.path)
    ledger = Ledger.open(directory.ledger)
    releases = [entry.release for entry in ledger.entries() if entry.release.kind == "votes"]
    return Game(
        canaries=canaries,
        claimed=ledger.spent(),
        delta=ledger.budget.delta,
        unit=ledger.budget.unit,
        releases=tuple(releases),
        votes=votes,
        histograms=list(zip(*passes, strict=True)),
        children=[_count_children(*pair) for pair in pairwise(populations)],
    )


def _attacked(config: Config, output: Path) -> Config:
    """Return `config` with a run directory of its own and label shares known beforehand."""
    config.refuse_private_sums("an attack")
    place = resolve_place(config.output.path, "output.path")
    if LEDGER in list_names(place):
        raise InputError(
            f"output.path: {config.output.path} holds a run with a ledger; an attack is for public "
            "data and never goes near one: give --set output.path=another folder"
        )
    if output.resolve() == place:
        raise InputError("--output: is the configuration's output.path; give another folder")
    if math.isinf(config.privacy.epsilon):
        raise InputError("privacy.epsilon: inf claims nothing, so there is nothing to attack")
    privacy: dict[str, object] = {"account": None}  # canaries are public, so nothing is spent
    if config.privacy.label_fractions == "dp":
        privacy["label_fractions"] = "uniform"
    update: dict[str, object] = {
        "privacy": config.privacy.model_copy(update=privacy),
        "output": config.output.model_copy(
            update={"path": str(output.resolve() / "run"), "ledger": None}
        ),
        "teacher": None,  # the attack reads histograms: all of the budget goes to them
    }
    return config.model_copy(update=update)


def open_population(directory: RunDirectory, iteration: int) -> Population:
    """Return S_iteration of the finished run."""
    place = directory.population(iteration)
    layout = read_layout(place)
    assert layout is not None, "a finished run has all its populations"
    return Population(iteration=iteration, layout=layout, directory=place)


def _take_back(run: RunDirectory) -> None:
    """Leave the run directory as a crash after the releases would."""
    delete_tree(run.synthetic)
    delete_tree(run.path / "histograms")
    delete_tree(run.path / "smoothed")
    for folder in list_names(run.path / "populations"):
        if folder != run.population(0).name:
            delete_tree(run.path / "populations" / folder)


def _histograms(run: RunDirectory, config: Config) -> list[NDArray[np.int64]]:
    files = [run.histogram(t) for t in range(1, config.schedule.iterations + 1)]
    return [np.asarray(pq.read_table(file, partitioning=None)["noisy_votes"]) for file in files]


def _count_children(parents: Population, offspring: Population) -> NDArray[np.int64]:
    """Count the children of each sample, from the released `parent` column."""
    named = read_parents(offspring.directory)
    return np.bincount(named[named >= 0], minlength=parents.layout.num_samples)


def score_canaries(game: Game, statistic: Observation) -> Scores:
    """Score what speaks for each canary's having been included, [m]; above 0: guess it was.

    histograms: sum over releases and the canary's claimed bins of (noisy count - 1/2) / sigma^2,
    the log likelihood ratio of the claim; reached: the same over all bins that its records name;
    parents: children of its claimed bins' samples.
    """
    total = np.zeros(len(game.canaries.coins))
    seen: Sequence[Scores] = [np.mean(drawn, axis=0) for drawn in game.histograms]
    for t, release in enumerate(game.releases):
        pair = game.votes[t].reached if statistic == "reached" else game.votes[t].claimed
        owner, bins = pair
        if statistic == "parents":
            total += np.bincount(owner, game.children[t][bins], minlength=len(total))
            continue
        total += np.bincount(owner, seen[t][bins] - 0.5, minlength=len(total)) / release.sigma**2
    return total


def judge(
    game: Game, confidence: float, scores: Mapping[Observation, Scores] | None = None
) -> Verdict:
    """Bound epsilon by all statistics (or the attacker's `scores`), which share the error.

    Guarantee: if the claim is true, `refuted` has a chance of at most 1 - confidence; for the
    independent bounds as far as their assumption goes: exactly for one release, whose bins have
    noise of their own, approximately for several, whose selection ties canaries together.
    """
    if scores is None:
        names: list[Observation] = ["histograms", "parents"]
        names += ["reached"] if game.unit == "user" else []
        scores = {name: score_canaries(game, name) for name in names}
    # A sample's children depend on all other samples' votes, so "parents" is not independent.
    independent = [name for name in scores if name != "parents"]
    alpha = (1 - confidence) / (len(scores) + len(independent))
    bounds = []
    for name in scores:
        epsilon = _one_run(game, scores[name], alpha)
        bounds.append(Bound(statistic=name, method="one_run", epsilon=epsilon))
    assumption_free = max(bound.epsilon for bound in bounds)
    for name in independent:
        epsilon = _independent(game, scores[name], alpha)
        bounds.append(Bound(statistic=name, method="independent", epsilon=epsilon))
    right = np.where(game.canaries.coins, 1.0, -1.0)
    perfect = [_one_run(game, right, alpha)]
    perfect += [_independent(game, right, alpha)] if independent else []
    return Verdict(
        claimed=game.claimed,
        measured=max(bound.epsilon for bound in bounds),
        assumption_free=assumption_free,
        measurable=max(perfect),
        delta=game.delta,
        unit=game.unit,
        confidence=confidence,
        num_canaries=len(game.canaries.coins),
        num_included=int(game.canaries.coins.sum()),
        bounds=tuple(bounds),
    )


def _one_run(game: Game, scores: Scores, alpha: float) -> float:
    coins = game.canaries.coins
    m = len(coins)
    guesses = {min(m, max(_LEAST_GUESSES, int(m * fraction))) for fraction in FRACTIONS}
    measured = 0.0
    for count in sorted(guesses):
        right, share = right_guesses(scores, coins, count), alpha / len(guesses)
        refuted = partial(refutes_in_one_run, m=m, guesses=count, right=right, alpha=share)
        measured = max(measured, measured_epsilon(game.releases, game.delta, refuted))
    return measured


def _independent(game: Game, scores: Scores, alpha: float) -> float:
    coins = game.canaries.coins
    included = int(coins.sum())
    misses, alarms = int((scores[coins] <= 0).sum()), int((scores[~coins] > 0).sum())
    return measured_epsilon(
        game.releases,
        game.delta,
        lambda f: refutes_independent(f, included, misses, len(coins) - included, alarms, alpha),
    )
