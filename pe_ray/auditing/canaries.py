"""Canaries: public images that a run includes or not by fair coins, and the bins they vote for.

Nothing here is private: the images are the run's own first draws, a function of its configuration.
The only secrets are the coins, and those are made to be guessed.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.png import encode_png
from pe_ray.files.storage import atomic_write
from pe_ray.planning import label_fractions
from pe_ray.private.record_embeddings import EmbeddedRecords, open_records
from pe_ray.private.votes import bounded_votes, nearest_samples
from pe_ray.release.releases import Votes
from pe_ray.run_context import RunContext
from pe_ray.runtime.run_directory import on_disk
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import Population, apportion
from pe_ray.synthetic.population_files import read_spaced_samples
from pe_ray.synthetic.variation import draw_population
from pe_ray.values import Unit

MOST_RECORDS = 50_000
"""First draws considered; also the most records that canaries have together."""
LEAST_CANARIES = 20

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """m canaries with one or more records each.

    owner: int64 [records], the canary of each record, ascending; coins: bool [m], who is included;
    labels: int32 [records]; file: parquet with all records (`image`, `label`, `user`); `included`:
    parquet with those of included canaries, which a run is given as its private data.
    """

    owner: Ids
    labels: NDArray[np.int32]
    coins: NDArray[np.bool_]
    file: Path
    included: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVotes:
    """Bins of one iteration: canary owner[i] votes for bins[i] if it is included.

    claimed: those that the claimed rule counts; reached: all bins that any of its records names,
    in case more of them count. A bin that more than one canary names is in neither.
    """

    claimed: tuple[Ids, Ids]
    reached: tuple[Ids, Ids]


def place_canaries(config: Config, folder: Path) -> Canaries:
    """Return the canaries of the attack in `folder`; the first call chooses them and flips coins.

    A canary's records are samples of S_0, so that each is its own nearest sample unless lookahead
    moves it; they are chosen greedily so that no bin has two of them near. A canary user has
    max_votes_per_user records in every label. Coins come from the operating system's entropy.
    """
    file, included = folder / "canaries.parquet", folder / "included.parquet"
    if not included.exists():
        table = _choose_canaries(config, folder / "placement")
        owner = table["user"].to_numpy()
        num = int(owner[-1]) + 1
        bits = np.frombuffer(os.urandom(-(-num // 8)), dtype=np.uint8)
        coins = np.unpackbits(bits, count=num).astype(np.bool_)
        _write(file, table)
        _write(included, table.filter(coins[owner]))
    table = pq.read_table(file)
    owner = table["user"].to_numpy()
    names = {name: position for position, name in enumerate(config.private.labels)}
    there = pq.read_table(included, columns=["user"])["user"].to_numpy()
    return Canaries(
        owner=owner,
        labels=np.array([names[label] for label in table["label"].to_pylist()], dtype=np.int32),
        coins=np.isin(np.arange(owner[-1] + 1), there),
        file=file,
        included=included,
    )


def canary_data(config: Config, file: Path) -> PrivateConfig:
    """Return how a run reads canaries: never from the configuration's private data."""
    user = "user" if config.privacy.unit == "user" else None
    names = config.private.labels
    return PrivateConfig(data=str(file), labels=names, user_column=user, cache="none")


def _choose_canaries(config: Config, aside: Path) -> pa.Table:
    """Return the records of all canaries, ordered by canary. aside: for files made meanwhile."""
    run = replace(prepare_run(config, on_disk(config.output.path)), directory=on_disk(aside))
    layout = apportion(config.schedule.sizes[0], label_fractions(config) or ())
    population = draw_population(run, layout)
    samples = read_spaced_samples(config, population, MOST_RECORDS)
    images, labels = samples["image"], samples["label"]
    candidates = pa.table(
        {
            "image": pa.array([encode_png(image) for image in images], type=pa.binary()),
            "label": pa.array([config.private.labels[label] for label in labels], pa.string()),
        }
    )
    file = aside / "candidates.parquet"
    _write(file, candidates)
    choices = _choices(run, population, embed_canaries(run, file), labels)
    owner, rows = _grouped(config, _apart(choices), labels)
    num = int(owner[-1]) + 1 if len(owner) else 0
    if num < LEAST_CANARIES:
        raise InputError(
            f"schedule.num_samples: S_0 has room for {num} canaries on bins of their own, fewer "
            f"than {LEAST_CANARIES}; give more samples"
        )
    shutil.rmtree(aside)
    return candidates.take(rows).append_column("user", pa.array(owner, pa.int64()))


def _apart(choices: Ids) -> NDArray[np.bool_]:
    """Return which rows of `choices` [n, k] to keep so that all are disjoint, first come first
    served.
    """
    taken: set[int] = set()
    kept = np.zeros(len(choices), dtype=np.bool_)
    for row, bins in enumerate(choices.tolist()):
        if taken.isdisjoint(bins) and min(bins) >= 0:
            taken.update(bins)
            kept[row] = True
    return kept


def _grouped(config: Config, kept: NDArray[np.bool_], labels: NDArray[np.int32]) -> tuple[Ids, Ids]:
    """Return (canary, row) of each record: one by one, or users with records in every label."""
    rows = np.flatnonzero(kept)
    if config.privacy.unit == "record":
        return np.arange(len(rows)), rows
    each = config.votes.max_votes_per_user
    by_label = [rows[labels[rows] == label] for label in np.unique(labels)]
    users = min(len(some) // each for some in by_label)
    owner = np.tile(np.repeat(np.arange(users), each), len(by_label))
    chosen = np.concatenate([some[: users * each] for some in by_label])
    order = np.argsort(owner, kind="stable")
    return owner[order], chosen[order]


def _write(file: Path, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    atomic_write(file, sink.getvalue())


def embed_canaries(run: RunContext, file: Path) -> NDArray[np.float32]:
    """Embed a canary file's records, in order, as a run does; float32 [records, d]."""
    config = run.config
    records = open_records(
        canary_data(config, file).model_copy(update={"user_column": None}),
        framing=config.framing,
        embedder=run.embedder,
        gpus=config.resources.gpus_per_worker,
    )
    pieces: list[EmbeddedRecords] = ray.get([piece for [piece] in records.partitions])
    return np.concatenate([piece.features for piece in pieces])


def _choices(
    run: RunContext,
    population: Population,
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> Ids:
    """Return the samples of `population` that each record would vote for, int64 [n, k]."""
    embedding = embed(run, population)
    piece = EmbeddedRecords(features=features, labels=labels, users=None)
    found = nearest_samples([piece], embedding.parts(), population.layout, run.config.votes)
    embedding.discard()
    return found


def canary_votes(
    run: RunContext,
    canaries: Canaries,
    features: NDArray[np.float32],
    populations: Sequence[Population],
) -> list[CanaryVotes]:
    """Work out from the released populations what each canary votes for at each iteration.

    populations: S_0 .. S_(T-1).
    """
    limit = Votes.limit(run.config)
    found = []
    for population in populations:
        layout = population.layout
        chosen = _choices(run, population, features, canaries.labels)
        claimed = claimed_bins(chosen, canaries.owner, limit, run.config.privacy.unit)
        reached = [np.unique(mine[mine >= 0]) for mine in _split_by(canaries.owner, chosen)]
        alone = np.bincount(np.concatenate(reached), minlength=layout.num_samples) == 1
        found.append(CanaryVotes(claimed=_own(claimed, alone), reached=_own(reached, alone)))
    return found


def claimed_bins(chosen: Ids, owner: Ids, limit: int, unit: Unit) -> list[Ids]:
    """Return the bins that count of those that each owner's records name.

    chosen: int64 [records, k]. owner: int64 [records], ascending from 0.
    """
    return [
        bounded_votes(mine, np.full(len(mine), b"one") if unit == "user" else None, limit).ids
        for mine in _split_by(owner, chosen)
    ]


def _split_by(owner: Ids, chosen: Ids) -> list[Ids]:
    return np.split(chosen, np.flatnonzero(np.diff(owner)) + 1)


def _own(bins: Sequence[Ids], alone: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """Return (canary, bin) pairs without the bins that more than one canary names."""
    owner = np.repeat(np.arange(len(bins)), [len(some) for some in bins])
    joined = np.concatenate(bins)
    return owner[alone[joined]], joined[alone[joined]]
