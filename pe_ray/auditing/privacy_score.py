"""The privacy score: what a finished run says about records that voted, more than of held-out ones.

Guarantee: none. The score is computed on private records without noise and is no release. The
command line prints it and writes it nowhere.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.auditing.canaries import claimed_bins
from pe_ray.auditing.drawn_records import (
    Floats,
    Ids,
    Members,
    distances_to,
    draw_units,
    find_nearest,
    measure_distances,
    read_embeddings,
)
from pe_ray.auditing.game import open_population
from pe_ray.auditing.membership import (
    CONFIDENCE,
    LEAST_UNITS,
    Trace,
    allow_by_claim,
    judge_channels,
    measure_scores,
    predict_members,
    score_votes,
    share_nearer,
    share_out,
    weigh_units,
)
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.parts import require_whole
from pe_ray.private.evaluation import held_out_records
from pe_ray.private.record_embeddings import EmbeddedRecords, PrivateRecords
from pe_ray.private.tasks import hide_private_errors, private_task
from pe_ray.private.votes import cast_votes, nearest_samples
from pe_ray.release.door import open_records
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import Votes, votes_key
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.named_files import require_same_files
from pe_ray.runtime.run_directory import on_disk
from pe_ray.runtime.workers import fetch
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.embedding_files import EmbeddingPart
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import Population, final_population
from pe_ray.synthetic.population_files import read_parents

_NUM_UNITS = 5000  # looked at by default, of those that voted and of held-out ones
_CLOSE = 0.01  # share of held-out records that are as close to a record as a near-copy
_MOST_LISTED = 20  # near-copies


def score_privacy(
    run: RunContext, num_units: int | None = None, *, lookahead: bool = True
) -> dict[str, Any]:
    """Compare a finished run with records that voted and with held-out ones; see docs/metrics.md.

    num_units: most records (users, with `unit: user`) of either kind; default: 5,000. lookahead:
    draw the lookahead variations again, at the run's cost. Without, each sample counts where it
    lies itself, and votes are followed less exactly.

    Raises InputError where the run is not finished or nothing is held out.

    Guarantee: none; the score is not private (see the module). Nothing is written but to the
    private cache, and embeddings of released samples to a temporary folder.
    """
    config = run.config
    if num_units is None:
        num_units = _NUM_UNITS
    if num_units < LEAST_UNITS:
        raise InputError(f"--num-records: give at least {LEAST_UNITS}")
    priced = any(plugin.options.call_prices for plugin in config.generators)
    if lookahead and config.votes.lookahead and priced:
        raise InputError("--no-lookahead: needed here, as a call of the generator costs")
    held_out_records(config)
    require_extras(config)
    final_population(run)
    require_whole(run.directory.synthetic)
    require_same_files(run.directory.path, config, config.bound())
    with connect_to_ray(config.resources), tempfile.TemporaryDirectory(prefix="pe-ray-") as folder:
        return _score(prepare_run(config, run.directory), Path(folder), num_units, lookahead)


def _score(run: RunContext, folder: Path, num_units: int, lookahead: bool) -> dict[str, Any]:
    config, ledger = run.config, Ledger.open(run.directory.ledger)
    populations = [open_population(run.directory, t) for t in range(config.schedule.iterations + 1)]
    first, last = (_embed(run, populations[t], folder, 0) for t in (0, -1))
    records = open_records(config, run.embedder)
    voted, held = draw_units(records, num_units), draw_units(_open_held_out(run), num_units)
    to_images, to_held, known = measure_distances(records, last, held)
    new = (to_held > 0) & ~known
    dropped, held, to_held = int((~new).sum()), held.only(new), to_held[new]
    sample = [voted.records, held.records]
    owner = np.concatenate([voted.owner, held.owner + voted.owner.max(initial=-1) + 1])
    firsts = np.unique(owner, return_index=True)[1]
    member = firsts < len(voted.owner)
    _require_units(member)

    chosen, traces = _follow_votes(run, records, sample, populations, folder, lookahead)
    claimed = [claimed_bins(ids, owner, Votes.limit(config), config.privacy.unit) for ids in chosen]
    order = np.random.default_rng(0).permutation(len(member))
    bins = [share_out(of_units, order) for of_units in claimed]
    own = np.unique(np.concatenate([units for units, _ in bins]))
    _require_units(member[own])

    features = np.concatenate([piece.features for piece in sample])
    near_first, near_last = (-_mean_by(owner, distances_to(x, features)) for x in (first, last))
    chances = predict_members(_mean_by(owner, features), member)
    weights = weigh_units(chances, member)
    labels = np.concatenate([piece.labels for piece in sample])[firsts]
    scores = {**score_votes(traces, bins, member), "images": near_last}
    releases = [entry.release for entry in ledger.entries() if not entry.release.is_sums]
    num = min(len(voted.owner), len(held.owner))
    return {
        "unit": config.privacy.unit,
        "epsilon": ledger.spent(),
        "delta": ledger.budget.delta,
        "confidence": CONFIDENCE,
        "exact": lookahead or not config.votes.lookahead,
        "units": {
            "voted": int(member.sum()),
            "held_out": int((~member).sum()),
            "voted_compared": int(member[own].sum()),
            "held_out_compared": int((~member[own]).sum()),
            "held_out_dropped": dropped,
        },
        "controls": {
            "records": measure_scores(chances, member, np.ones(len(member))),
            "first_population": measure_scores(near_first, member, weights),
            "noise": [_compare_noise(trace) for trace in traces],
        },
        "distances": _compare_distances(last, voted.records, held.records, num),
        "near_copies": _find_near_copies(to_images, to_held),
        "allowed": allow_by_claim(releases),
        "channels": judge_channels(
            scores,
            member,
            weights,
            {name: labels == label for label, name in enumerate(run.labels)},
            releases,
            (ledger.spent(), ledger.budget.delta),
        ),
    }


def _require_units(member: Members) -> None:
    if min(member.sum(), (~member).sum()) < LEAST_UNITS:
        raise InputError(
            f"--num-records: fewer than {LEAST_UNITS} records that voted, or held-out ones that "
            "are no copies of them, are nearest to samples of their own; give more, of both"
        )


def _open_held_out(run: RunContext) -> PrivateRecords:
    """Open the held-out records; an error names the key that chose them."""
    metrics = run.config.metrics
    field = "metrics.audit_where" if metrics.audit_data is None else "metrics.audit_data"
    try:
        return open_records(run.config, run.embedder, held_out_records(run.config))
    except InputError as error:
        raise InputError(f"{field}: read as {error}") from None


def _embed(
    run: RunContext, population: Population, folder: Path, lookahead: int
) -> list[EmbeddingPart]:
    """Embed a population outside the run directory."""
    update = {"lookahead": lookahead, "reuse_lookahead": False}
    votes = run.config.votes.model_copy(update=update)
    config = run.config.model_copy(update={"votes": votes})
    again = replace(run, config=config, directory=on_disk(folder / str(lookahead)))
    return embed(again, population).parts()


def _follow_votes(
    run: RunContext,
    records: PrivateRecords,
    sample: Sequence[EmbeddedRecords],
    populations: Sequence[Population],
    folder: Path,
    lookahead: bool,
) -> tuple[list[Ids], list[Trace]]:
    """Return what the records of the sample vote for in each iteration, and what was published."""
    config, ledger = run.config, Ledger.open(run.directory.ledger)
    sigmas = {entry.release.key: entry.release.sigma for entry in ledger.entries()}
    gpus, limit = config.resources.gpus_per_worker, Votes.limit(config)
    parents = [read_parents(population.directory) for population in populations[1:]]
    descendants: list[Ids] = []
    origin = np.arange(populations[-1].layout.num_samples)
    for population, of in zip(populations[-2::-1], parents[::-1], strict=True):
        origin = of[origin]
        descendants.insert(0, np.bincount(origin, minlength=population.layout.num_samples))
    search = private_task(_choose, records.node_label, gpus=gpus)
    chosen, traces = [], []
    for t, population in enumerate(populations[:-1], start=1):
        layout = population.layout
        parts = _embed(run, population, folder, config.votes.lookahead if lookahead else 0)
        counted = cast_votes(records, parts, layout, config.votes, limit, gpus)
        stall_seconds = records.stall_seconds
        chosen.append(
            fetch(search.remote(parts, layout, config.votes, bool(gpus), stall_seconds, *sample))
        )
        votes = np.zeros(layout.num_samples, dtype=np.int64)
        for raw in map(fetch, counted):
            np.add.at(votes, raw.ids, raw.counts)
        noisy = ledger.stored(votes_key(t))
        assert noisy is not None, "a finished run has all its votes"
        traces.append(
            Trace(
                layout=layout,
                sigma=sigmas[votes_key(t)],
                noisy_votes=noisy,
                children=np.bincount(parents[t - 1], minlength=layout.num_samples),
                descendants=descendants[t - 1],
                votes=votes,
            )
        )
    return chosen, traces


def _choose(
    parts: Sequence[EmbeddingPart],
    layout: Any,
    settings: Any,
    on_gpu: bool,
    stall_seconds: float,
    *sample: EmbeddedRecords,
) -> Ids:
    with hide_private_errors("following votes", stall_seconds):
        return nearest_samples(sample, parts, layout, settings, on_gpu=on_gpu)


def _mean_by(owner: Ids, values: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of each unit's values."""
    edges = np.unique(owner, return_index=True)[1]
    counts = np.diff([*edges, len(owner)]).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(np.add.reduceat(values, edges, axis=0) / counts)


def _compare_noise(trace: Trace) -> float | None:
    """Return the root mean square of the noise over the one that sigma gives; None without."""
    if not trace.sigma:
        return None
    reach = np.arange(1, math.ceil(40 * trace.sigma), dtype=np.float64)
    chances = np.exp(-(reach**2) / (2 * trace.sigma**2))  # of the discrete Gaussian, times one
    expected = 2 * (chances @ reach**2) / (1 + 2 * chances.sum())
    noise = (trace.noisy_votes - trace.votes).astype(np.float64)
    return float(np.sqrt(np.mean(noise**2) / expected))


def _compare_distances(
    last: Sequence[EmbeddingPart], voted: EmbeddedRecords, held: EmbeddedRecords, num: int
) -> dict[str, Any]:
    """Compare the images' distances to `num` records that voted and to `num` held-out ones."""
    wins, to_voted, to_held = np.zeros(2 * num), [], []
    for block in read_embeddings(last):
        near, record = find_nearest(block, [voted.features[:num]])
        far, other = find_nearest(block, [held.features[:num]])
        np.add.at(wins, record, np.where(near < far, 1.0, np.where(near == far, 0.5, 0.0)))
        np.add.at(wins, num + other, np.where(far < near, 1.0, np.where(near == far, 0.5, 0.0)))
        to_voted.append(near)
        to_held.append(far)
    closest = [float(np.quantile(np.concatenate(some), 0.05)) for some in (to_voted, to_held)]
    return {
        "nearer": share_nearer(wins, num),
        "closest": {"voted": closest[0], "held_out": closest[1]},
    }


def _find_near_copies(to_images: Floats, to_held: Floats) -> dict[str, Any]:
    """Return the images that are nearer to a record than all but 1 % of held-out records are.

    images: [number in the final set, distance in units of that of a near-copy], nearest first.
    """
    reach = float(np.quantile(to_held, _CLOSE))
    found = np.flatnonzero(to_images < reach)
    found = found[np.argsort(to_images[found], kind="stable")]
    return {
        "number": len(found),
        "expected": _CLOSE * len(to_images),
        "images": [[int(i), float(to_images[i] / reach)] for i in found[:_MOST_LISTED]],
    }
