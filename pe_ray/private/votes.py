"""Votes: each private record names its nearest synthetic samples, of its own label or of all.

A partition's votes are a pure function of (partition, embedding), counted inside a Ray task; the
driver holds references only, and hands them to the aggregator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.components.nearest import NearestSearch
from pe_ray.config.blocks import VotesConfig
from pe_ray.private.record_embeddings import EmbeddedRecords, PrivateRecords, join_users
from pe_ray.private.tasks import hide_private_errors, private_task
from pe_ray.runtime.cluster import count_resource
from pe_ray.runtime.watchdog import note_progress
from pe_ray.synthetic.embedding_files import EmbeddingPart, load_part, read_blocks
from pe_ray.values import LabelLayout

_TASKS_PER_CORE = 2  # few, since each prepares all samples; more than one, for balance
_QUERY_BYTES = 64 << 20  # of private embeddings searched for at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class RawVotes:
    """Un-noised votes of one partition, sparse: `counts[i]` more votes for bin `ids[i]`.

    Guarantee: adding or removing one unit (record, or user with all records) changes the sum over
    all partitions by at most `votes_per_unit` ones in different bins: sqrt(votes_per_unit) in L2.
    Never to be fetched by the driver.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    votes_per_unit: int


def bounded_votes(
    choices: NDArray[np.int64],
    users: NDArray[np.bytes_] | None,
    limit: int,
) -> RawVotes:
    """Count `choices` (int64 [n, k]; bins a record votes for, -1 for none), bounded per unit.

    Without `users` every record gives one vote to each of its k = limit different bins. With
    `users` (one identity per record) each user gives one vote to each of the `limit` bins that
    most of the user's records chose (lowest bin on ties), over all labels together.

    Guarantee: a unit adds at most one vote to each of at most `limit` bins, whatever others do,
    so the L2 sensitivity of the sum is sqrt(limit) for adding or removing a unit.
    """
    rows, columns = np.nonzero(choices >= 0)
    bins = choices[rows, columns]
    if users is not None:
        identities = np.unique(users, return_inverse=True)[1][rows]
        pairs, times = np.unique(np.stack([identities, bins]), axis=1, return_counts=True)
        order = np.lexsort((pairs[1], -times, pairs[0]))
        user = pairs[0][order]
        rank = np.arange(len(user)) - np.searchsorted(user, user, side="left")
        bins = pairs[1][order][rank < limit]
    ids, counts = np.unique(bins, return_counts=True)
    return RawVotes(ids=ids, counts=counts.astype(np.int64), votes_per_unit=limit)


def cast_votes(
    records: PrivateRecords,
    parts: Sequence[EmbeddingPart],
    layout: LabelLayout,
    settings: VotesConfig,
    limit: int,
    gpus: float = 0.0,
) -> list[ray.ObjectRef]:
    """Start counting; returns references to RawVotes that add up to all votes.

    parts: of the synthetic embedding, in id order.
    limit: most bins of a unit; gpus: of each task, searched by faiss if above 0.

    Guarantee: see `bounded_votes`; a user's records are all in one partition, so the bound holds
    for the sum. How partitions are shared out depends on their number and the cluster only.
    """
    count = private_task(_count_partitions, records.node_label, gpus=gpus)
    return [
        count.remote(
            tuple(parts),
            layout,
            settings,
            limit,
            bool(gpus),
            records.stall_seconds,
            *pieces,
        )
        for pieces in group_partitions(records, gpus)
    ]


def group_partitions(records: PrivateRecords, gpus: float = 0.0) -> list[list[ray.ObjectRef]]:
    """Share the partitions out to a few tasks for each core; return the pieces of each task."""
    cores = max(1, count_resource("GPU" if gpus else "CPU"))
    order = _group_by_node(records.partitions)
    groups = np.array_split(order, min(len(order), _TASKS_PER_CORE * cores))
    return [[piece for number in group for piece in records.partitions[number]] for group in groups]


def _group_by_node(partitions: Sequence[Sequence[ray.ObjectRef]]) -> NDArray[np.int64]:
    """Return the numbers of the partitions, those on one node together.

    Ray runs a task where most of its arguments are, so a group from one node is searched there.
    """
    first = [pieces[0] for pieces in partitions]
    found = ray.experimental.get_object_locations(first)
    nodes = ["".join(sorted(found.get(ref, {}).get("node_ids", ()))) for ref in first]
    return np.argsort(np.array(nodes), kind="stable")


def count_labels(records: PrivateRecords, limit: int) -> list[ray.ObjectRef]:
    """Start counting records per label (bin = label); one reference to RawVotes per partition.

    Guarantee: see `bounded_votes`; record level counts each record once (limit 1).
    """
    count = private_task(_count_labels, records.node_label)
    return [count.remote(limit, records.stall_seconds, *some) for some in records.partitions]


def nearest_samples(
    pieces: Sequence[EmbeddedRecords],
    parts: Sequence[EmbeddingPart],
    layout: LabelLayout,
    settings: VotesConfig,
    *,
    on_gpu: bool = False,
) -> NDArray[np.int64]:
    """Find the nearest samples that each record may vote for: ids int64 [n, neighbors], -1 if none.

    Rows are the records of the pieces, one after the other.

    Guarantee: a row depends on its record and on the samples alone; zone 1 only.
    """
    labels = np.concatenate([piece.labels for piece in pieces])
    ids = np.full((len(labels), settings.neighbors), -1, dtype=np.int64)
    dim = pieces[0].features.shape[1]
    step = max(1, _QUERY_BYTES // (4 * dim or 1))
    load = lru_cache(maxsize=1)(load_part)  # labels follow one another, so a part is read once
    for voters, candidates in _pair_voters(labels, layout, settings):
        for start in range(0, len(voters), step):
            chosen = voters[start : start + step]
            queries = _gather(pieces, chosen)
            search = NearestSearch(queries, settings.neighbors, settings.metric, on_gpu=on_gpu)
            for first, block in read_blocks(parts, *candidates, load):
                search.add(block, first)
                note_progress()
            ids[chosen] = search.ids
    return ids


def _pair_voters(
    labels: NDArray[np.int32], layout: LabelLayout, settings: VotesConfig
) -> Iterator[tuple[NDArray[np.int64], tuple[int, int]]]:
    """Yield the rows of some records, and the range of the samples that they vote for."""
    if settings.across_labels:
        yield np.arange(len(labels)), (0, layout.num_samples)
        return
    for label in range(len(layout.counts)):
        yield np.flatnonzero(labels == label), layout.label_range(label)


def _gather(pieces: Sequence[EmbeddedRecords], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the embeddings [len(rows), d] of `rows`, ascending and counted through all pieces."""
    ends = np.cumsum([len(piece.labels) for piece in pieces])
    cuts = np.searchsorted(rows, ends)
    found = [
        piece.features[mine - (end - len(piece.labels))]
        for piece, end, mine in zip(pieces, ends, np.split(rows, cuts[:-1]), strict=True)
    ]
    return np.concatenate(found)


def _count_partitions(
    parts: Sequence[EmbeddingPart],
    layout: LabelLayout,
    settings: VotesConfig,
    limit: int,
    on_gpu: bool,
    stall_seconds: float,
    *pieces: EmbeddedRecords,
) -> RawVotes:
    with hide_private_errors("counting votes", stall_seconds):
        choices = nearest_samples(pieces, parts, layout, settings, on_gpu=on_gpu)
        return bounded_votes(choices, join_users(pieces), limit)


def _count_labels(limit: int, stall_seconds: float, *pieces: EmbeddedRecords) -> RawVotes:
    with hide_private_errors("counting labels", stall_seconds):
        labels = np.concatenate([piece.labels for piece in pieces]).astype(np.int64)
        return bounded_votes(labels[:, None], join_users(pieces), limit)
