"""Canaries: public images that a run includes or not by fair coins, and the bins they vote for.

Nothing here is private: the images are the run's own first draws, a function of its configuration.
The only secrets are the coins, and those are made to be guessed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from PIL import Image

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.parts import parts_of
from pe_ray.files.storage import Location, atomic_write
from pe_ray.planning import label_fractions
from pe_ray.private.records import EmbeddedRecords, open_records
from pe_ray.private.votes import bounded_votes, nearest_samples
from pe_ray.release.releases import votes_limit
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.learnt_embedder import with_learnt_embedder
from pe_ray.synthetic.population import Population, apportion, initial_offspring
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.variation import make_population
from pe_ray.values import LabelLayout

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


def placed(config: Config, folder: Path, most: int | None) -> Canaries:
    """The canaries of the attack in `folder`, chosen and flipped there by the first call.

    A canary's records are samples of S_0, so that each is its own nearest sample unless lookahead
    moves it; they are chosen greedily so that no bin has two of them near. A canary user has
    max_votes_per_user records in every label. Coins come from the operating system's entropy.
    """
    stored = folder / "canaries.json"
    if not stored.exists():
        _place(config, folder, most)
    content = json.loads(stored.read_text(encoding="utf-8"))
    return Canaries(
        owner=np.array(content["owner"], dtype=np.int64),
        labels=np.array(content["labels"], dtype=np.int32),
        coins=np.array(content["coins"], dtype=np.bool_),
        file=folder / "canaries.parquet",
        included=folder / "included.parquet",
    )


def canary_data(config: Config, file: Path) -> PrivateConfig:
    """How a run reads canaries: never from the configuration's private data."""
    user = "user" if config.privacy.unit == "user" else None
    names = config.private.labels
    return PrivateConfig(data=str(file), labels=names, user_column=user, cache="none")


def _place(config: Config, folder: Path, most: int | None) -> None:
    aside = folder / "placement"
    layout = apportion(config.schedule.sizes[0], label_fractions(config) or ())
    offspring = initial_offspring(layout, config.selection.initial_variation_fold)
    population = make_population(config, aside / "population", 0, offspring, None)
    count = layout.num_samples
    ids = np.unique(np.linspace(0, count - 1, min(count, MOST_RECORDS)).astype(np.int64))
    options = config.generator_at(0).options
    images = read_population(population.directory, ids, options)["image"]
    labels = layout.labels(0, count)[ids]
    candidates = aside / "candidates.parquet"
    _write(candidates, images, labels, labels, config)
    features = embedded(config, candidates)
    choices = _choices(config, 1, population, features, labels, aside)
    owner, rows = _grouped(config, _apart(choices), labels)
    owner, rows = (owner, rows) if most is None else (owner[owner < most], rows[owner < most])
    num = int(owner[-1]) + 1 if len(owner) else 0
    if num < LEAST_CANARIES:
        raise InputError(
            f"schedule.num_samples: S_0 has room for {num} canaries on bins of their own, fewer "
            f"than {LEAST_CANARIES}; give more samples"
        )
    bits = np.frombuffer(os.urandom(-(-num // 8)), dtype=np.uint8)
    coins = np.unpackbits(bits, count=num).astype(np.bool_)
    chosen, there = labels[rows], coins[owner]
    _write(folder / "canaries.parquet", images[rows], chosen, owner, config)
    _write(folder / "included.parquet", images[rows][there], chosen[there], owner[there], config)
    content = {"owner": owner.tolist(), "labels": chosen.tolist(), "coins": coins.tolist()}
    atomic_write(folder / "canaries.json", json.dumps(content).encode())
    shutil.rmtree(aside)


def _apart(choices: Ids) -> NDArray[np.bool_]:
    """Which rows of `choices` [n, k] to keep, first come first served, so that all are disjoint."""
    taken: set[int] = set()
    kept = np.zeros(len(choices), dtype=np.bool_)
    for row, bins in enumerate(choices.tolist()):
        if taken.isdisjoint(bins) and min(bins) >= 0:
            taken.update(bins)
            kept[row] = True
    return kept


def _grouped(config: Config, kept: NDArray[np.bool_], labels: NDArray[np.int32]) -> tuple[Ids, Ids]:
    """(canary, row) of each record: one by one, or users with records in every label."""
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


def _write(
    file: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    owner: NDArray[np.integer],
    config: Config,
) -> None:
    encoded = []
    for image in images:
        sink = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, format="PNG")
        encoded.append(sink.getvalue())
    table = pa.table(
        {
            "image": pa.array(encoded, type=pa.binary()),
            "label": pa.array([config.private.labels[label] for label in labels], pa.string()),
            "user": pa.array(owner.astype(np.int64)),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    atomic_write(file, sink.getvalue())


def embedded(config: Config, file: Path) -> NDArray[np.float32]:
    """Embeddings of a canary file's records, in order, made as a run makes them."""
    config = with_learnt_embedder(config)
    records = open_records(
        canary_data(config, file).model_copy(update={"user_column": None, "cache": "none"}),
        channels=config.image_shape.channels,
        embedder_kind=config.embedder.kind,
        embedder_options=config.embedder.options,
        gpus=config.resources.gpus_per_worker,
    )
    pieces: list[EmbeddedRecords] = ray.get([piece for [piece] in records.partitions])
    return np.concatenate([piece.features for piece in pieces])


def _choices(
    config: Config,
    iteration: int,
    population: Population,
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    folder: Path,
) -> Ids:
    """Nearest samples of each record as the votes of `iteration` find them, int64 [n, k]."""
    aside = folder / f"embedding-{iteration:04d}"
    embedding = embed(config, aside, iteration, population, folder / "lookahead")
    parts = [
        (embedding.directory / part.file, part.start, part.stop)
        for part in parts_of(embedding.directory)
    ]
    piece = EmbeddedRecords(features=features, labels=labels, users=None)
    found = nearest_samples([piece], parts, population.layout, config.votes)
    shutil.rmtree(aside)
    return found


def canary_votes(
    config: Config,
    canaries: Canaries,
    features: NDArray[np.float32],
    populations: Sequence[tuple[Location, LabelLayout]],
    folder: Path,
) -> list[CanaryVotes]:
    """What each canary votes for at each iteration, worked out from the released populations.

    populations: directory and layout of S_0 .. S_(T-1).
    """
    limit = votes_limit(config)
    found = []
    for iteration, (directory, layout) in enumerate(populations, start=1):
        population = Population(iteration=iteration - 1, layout=layout, directory=directory)
        chosen = _choices(config, iteration, population, features, canaries.labels, folder)
        edges = np.searchsorted(canaries.owner, np.arange(len(canaries.coins) + 1))
        claimed, reached = [], []
        for first, last in pairwise(edges.tolist()):
            mine = chosen[first:last]
            users = np.full(len(mine), b"one") if config.privacy.unit == "user" else None
            claimed.append(bounded_votes(mine, users, limit).ids)
            reached.append(np.unique(mine[mine >= 0]))
        alone = np.bincount(np.concatenate(reached), minlength=layout.num_samples) == 1
        found.append(CanaryVotes(claimed=_own(claimed, alone), reached=_own(reached, alone)))
    return found


def _own(bins: Sequence[Ids], alone: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """(canary, bin) pairs, those bins left out that more than one canary names."""
    owner = np.repeat(np.arange(len(bins)), [len(some) for some in bins])
    joined = np.concatenate(bins)
    return owner[alone[joined]], joined[alone[joined]]
