"""Smoothing: average noisy votes over near samples where that is estimated to help.

Samples that lie close together get about the same votes, while their noise is independent. The
average of a count and those of its m - 1 nearest samples of the same label has 1/m of the noise's
variance, but blurs the votes. m is chosen for each label, among powers of two, from the released
votes alone (post-processing). Where votes are many against the noise, m is 1 and nothing changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.components.nearest import nearest_others
from pe_ray.errors import DamagedFileError
from pe_ray.files.array_files import encode_table
from pe_ray.files.digests import read_with_digest, write_with_digest
from pe_ray.files.storage import Location
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import use_ray
from pe_ray.runtime.events import Event, emit
from pe_ray.runtime.watchdog import exit_on_stall, note_progress
from pe_ray.synthetic.embedding_files import EmbeddingPart, read_blocks
from pe_ray.values import DistanceMetric, LabelLayout, NoisyHistogram

if TYPE_CHECKING:  # `pe-ray verify` imports this module where there is no Ray
    from pe_ray.synthetic.embedding import Embedding

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyVotes:
    """Votes to be denoised: float64 [num_samples], and the scale of each label's noise."""

    votes: NDArray[np.float64]
    sigmas: tuple[float, ...]


def unsmoothed(histogram: NoisyHistogram, layout: LabelLayout) -> NoisyVotes:
    """Return the released votes as they are."""
    sigmas = (histogram.release.sigma,) * len(layout.counts)
    return NoisyVotes(votes=histogram.noisy_votes.astype(np.float64), sigmas=sigmas)


def smooth_votes(run: RunContext, embedding: Embedding, histogram: NoisyHistogram) -> NoisyVotes:
    """Average the votes as `selection.smooth` says; the result is kept in the run directory.

    One Ray task of one CPU for each label. It holds the label's embeddings twice.
    """
    iteration, sigma = histogram.release.iteration, histogram.release.sigma
    layout, most = embedding.layout, run.config.selection.at(iteration).smooth
    if most == 1 or sigma == 0:
        return unsmoothed(histogram, layout)
    file = run.directory.smoothed(iteration)
    with suppress(DamagedFileError):
        kept = read_smoothed(file)
        if kept is not None:
            return kept

    parts, started, ray = embedding.parts(), time.monotonic(), use_ray()
    metric, stall_seconds = run.config.votes.metric, run.config.resources.stall_seconds
    task = ray.remote(num_cpus=1)(_smooth_label)
    tasks = []
    for label in range(len(layout.counts)):
        start, stop = layout.label_range(label)
        noisy = histogram.noisy_votes[start:stop].astype(np.float64)
        tasks.append(task.remote(parts, start, noisy, sigma, most, metric, stall_seconds))
    votes, sigmas = zip(*ray.get(tasks), strict=True)
    smoothed = NoisyVotes(votes=np.concatenate(votes), sigmas=tuple(sigmas))
    _write(file, smoothed, layout)
    values = {"rows": layout.num_samples, "seconds": time.monotonic() - started}
    emit(Event(kind="stage", name="smoothing", iteration=iteration, values=values))
    return smoothed


def smooth(
    noisy: Floats, neighbors: NDArray[np.int32], sigma: float, most: int
) -> tuple[Floats, float]:
    """Return counts [n] averaged over m samples each, and the noise's scale after that.

    neighbors: of each sample the others, nearest first, [n, most - 1 or more, or all]. m is the
    power of two, at most `most`, with the least estimated squared error: Stein's unbiased estimate
    (1981) of the linear smoother S under independent noise `sigma`, |S y - y|^2 + 2 sigma^2 tr(S)
    + const, tr(S) = n / m as each sample is in its own average. Ties go to the smallest m.
    """
    num, widest = len(noisy), min(most, neighbors.shape[1] + 1)
    sums, best, least = noisy.copy(), noisy, 2 * sigma**2 * num
    m = chosen = 1
    while 2 * m <= widest:
        sums = sums + noisy[neighbors[:, m - 1 : 2 * m - 1]].sum(axis=1)
        m *= 2
        risk = float(np.square(sums / m - noisy).sum()) + 2 * sigma**2 * num / m
        if risk < least:
            best, least, chosen = sums / m, risk, m
    return best, sigma / chosen**0.5


def _smooth_label(
    parts: Sequence[EmbeddingPart],
    first: int,
    noisy: Floats,
    sigma: float,
    most: int,
    metric: DistanceMetric,
    stall_seconds: float,
) -> tuple[Floats, float]:
    """Apply `smooth` to the samples first, first + 1, ..., which are all of one label."""
    num = len(noisy)
    widest = 1 << (min(most, num).bit_length() - 1) if num else 1
    if widest == 1:
        return noisy, sigma
    vectors = np.concatenate([block for _, block in read_blocks(parts, first, first + num)])
    by = metric if metric == "cosine" else "l2"  # an inner product is no distance between samples
    nearest = np.empty((num, widest - 1), dtype=np.int32)
    with exit_on_stall(stall_seconds):
        for rows, ids in nearest_others(vectors, widest - 1, by):
            nearest[rows] = ids
            note_progress()
        return smooth(noisy, nearest, sigma, most)


def read_smoothed(file: Location) -> NoisyVotes | None:
    """Return what `smooth_votes` kept in `file`, None where there is none.

    DamagedFileError where it holds something else.
    """
    if not file.exists():
        return None
    content = pa.BufferReader(read_with_digest(file))
    try:
        table = pq.read_table(content)
        sigmas = json.loads(table.schema.metadata[b"sigmas"])
    except (pa.ArrowException, OSError, ValueError, KeyError):  # of a version without digests
        raise DamagedFileError(str(file)) from None
    return NoisyVotes(votes=table["votes"].to_numpy(), sigmas=tuple(sigmas))


def _write(file: Location, votes: NoisyVotes, layout: LabelLayout) -> None:
    count = layout.num_samples
    columns = {"id": np.arange(count), "label": layout.labels(0, count), "votes": votes.votes}
    table = pa.table(columns).replace_schema_metadata({"sigmas": json.dumps(votes.sigmas)})
    write_with_digest(file, encode_table(table))
