"""Lineage: that histograms, populations and the final set follow from the ledger and the seeds.

Selection is replayed. What generators make of parents and seeds is not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.files.array_files import read_arrays
from pe_ray.files.digests import read_with_digest
from pe_ray.files.parts import Part
from pe_ray.release.releases import votes_key
from pe_ray.synthetic.denoising import weigh
from pe_ray.synthetic.population import Offspring, Population, initial_offspring
from pe_ray.synthetic.selection import select_parents
from pe_ray.synthetic.smoothing import NoisyVotes, read_smoothed, unsmoothed
from pe_ray.values import NoisyHistogram
from pe_ray.verifying.findings import Checks, NotChecked, Step, require
from pe_ray.verifying.run_claims import Claims, read_histogram
from pe_ray.verifying.stage_files import (
    Digests,
    decode_images,
    digest_pixels,
    list_stage_steps,
    require_columns,
    require_labels,
    require_rows,
)

_COLUMNS = frozenset({"id", "label", "parent", "degree"})


def check_lineage(checks: Checks, claims: Claims, *, images: bool) -> None:
    """Check all that a run made from its releases.

    images: whether populations hold images, and there is a final set of the last ones.
    """
    directory, iterations = claims.run.directory, claims.run.iterations
    checks.make(
        "histograms are the ledger's answers",
        [(str(directory.histogram(t)), partial(_check_histogram, claims, t)) for t in iterations],
    )
    smoothed = [t for t in iterations if _is_smoothed(claims, t)]
    checks.make(
        "smoothed votes are averages of released ones",
        [(str(directory.smoothed(t)), partial(_check_smoothed, claims, t)) for t in smoothed],
    )
    if smoothed:
        checks.pass_over("which votes were averaged", "near samples are found with the embedder")
    pixels: list[Digests] = []
    checks.make(
        "populations have the labels, degrees and parents that follow from releases and seeds",
        _list_population_steps(claims, images, pixels),
    )
    checks.pass_over("images of variations", "the generator makes them, of parents and seeds")
    if claims.own_columns is None:
        checks.pass_over("columns of the generator", "it isn't one that comes with pe_ray")
    if images:
        checks.make("the final set is the last population", _list_final_steps(claims, pixels))
    if claims.run.config.teacher is not None:
        checks.pass_over("labels of the final set", "a teacher gives them, which needs torch")
        if claims.run.config.num_kept is not None:
            checks.pass_over("which samples it keeps", "that follows from its features of them")


def _read_votes(claims: Claims, iteration: int) -> NoisyHistogram:
    return read_histogram(claims.ledger, votes_key(iteration))


def _check_histogram(claims: Claims, iteration: int) -> None:
    content = read_with_digest(claims.run.directory.histogram(iteration))
    table = pq.read_table(io.BytesIO(content))
    require_columns(table.schema, {"id", "label", "noisy_votes"}, set())
    require(
        np.array_equal(table["noisy_votes"], _read_votes(claims, iteration).noisy_votes),
        f"its votes aren't the ledger's answer {votes_key(iteration)}",
    )
    require_rows(table, claims.layouts[iteration - 1], 0)


def _is_smoothed(claims: Claims, iteration: int) -> bool:
    settings = claims.run.config.selection.at(iteration)
    return settings.smooth > 1 and _read_votes(claims, iteration).release.sigma > 0


def _check_smoothed(claims: Claims, iteration: int) -> NoisyVotes:
    """Return smoothed votes: of each label, sums of m released ones over m, a power of two."""
    file, layout = claims.run.directory.smoothed(iteration), claims.layouts[iteration - 1]
    if not file.exists():
        raise NotChecked("isn't here")
    table = pq.read_table(io.BytesIO(read_with_digest(file)))
    require_columns(table.schema, {"id", "label", "votes"}, {b"sigmas"})
    require_rows(table, layout, 0)
    votes, noisy = read_smoothed(file), unsmoothed(_read_votes(claims, iteration), layout)
    assert votes is not None
    most = claims.run.config.selection.at(iteration).smooth
    for label, (own, sigma) in enumerate(zip(votes.sigmas, noisy.sigmas, strict=True)):
        rows = slice(*layout.label_range(label))
        averaged = round((sigma / own) ** 2)
        require(
            averaged.bit_count() == 1 and averaged <= most,
            f"states noise for label {label} that no average has",
        )
        sums = votes.votes[rows] * averaged
        exact = noisy.votes[rows] if averaged == 1 else sums.round()
        require(
            np.allclose(sums, exact, rtol=1e-9, atol=1e-6),
            f"label {label} isn't averages over {averaged} released votes",
        )
    return votes


def _list_population_steps(claims: Claims, images: bool, pixels: list[Digests]) -> Iterator[Step]:
    """Yield the steps for S_0, ..., S_T; `pixels` gets those of the latest, part by part."""
    directory = claims.run.directory
    before: list[Digests] = []
    for iteration in range(len(claims.layouts)):
        rows = _Rows(claims, iteration, images, before)
        if rows.unknown:
            yield (
                str(directory.population(iteration)),
                partial(_pass_over, f"its parents can't be replayed: {rows.unknown}"),
            )
        layout = claims.layouts[iteration]
        stated = {
            "num_rows": layout.num_samples,
            "label_counts": list(layout.counts),
            "iteration": iteration,
        }
        may_state = {"variations", "reused_draws"}
        place = directory.population(iteration)
        yield from list_stage_steps(place, stated, may_state, rows.check)
        before = rows.pixels
    pixels += before


def _pass_over(why: str) -> None:
    raise NotChecked(why)


class _Rows:
    """What the rows of S_iteration must be.

    before: pixels of S_(iteration-1). pixels: of its own rows, of each part that could be read.
    unknown: why the parents can't be replayed; empty where they can.
    """

    def __init__(self, claims: Claims, iteration: int, images: bool, before: list[Digests]) -> None:
        self._layout, self._own = claims.layouts[iteration], claims.own_columns
        self._images = images
        self.unknown, self.pixels = "", list[Digests]()
        config = claims.run.config
        if iteration == 0:
            made = initial_offspring(self._layout, config.selection.initial_variation_fold)
            self._parents = np.full(self._layout.num_samples, -1, dtype=np.int64)
            self._before = None
        else:
            made, self.unknown = _replay_selection(claims, iteration)
            self._parents = made.parents
            self._before = _join(before, claims.layouts[iteration - 1].num_samples)
        self._kept = made.copies == 0
        degree = config.schedule.degree_list[max(0, iteration - 1)]
        self._degrees = np.where(self._kept, np.nan, degree).astype(np.float32)

    def check(self, part: Part, table: pa.Table) -> None:
        """Raise Differs unless the rows of a part are these."""
        wanted = set(_COLUMNS)
        if self._images:
            wanted |= {"image"} | (set(table.schema.names) if self._own is None else self._own)
        require_columns(table.schema, wanted, {b"shape"})
        require_rows(table, self._layout, part.start)
        rows = slice(part.start, part.stop)
        degrees = np.asarray(table["degree"].to_numpy(), dtype=np.float64)
        require(
            np.array_equal(degrees, self._degrees[rows], equal_nan=True),
            "its column degree isn't the configuration's",
        )
        parents = np.asarray(table["parent"].fill_null(-1))
        require(
            bool(self.unknown) or np.array_equal(parents, self._parents[rows]),
            "its column parent isn't what released votes and seeds select",
        )
        if self._images:
            pixels = digest_pixels([cell.as_buffer() for cell in table["image"]])
            self.pixels.append(pixels)
            kept = self._kept[rows]
            if self._before is not None and not self.unknown:
                require(
                    np.array_equal(pixels[kept], self._before[parents[kept]]),
                    "its kept samples have other images than their parents",
                )


def _join(pixels: list[Digests], num_rows: int) -> Digests | None:
    """Return the pixels of all rows, None where a part is missing."""
    joined = np.concatenate(pixels) if pixels else np.empty((0, 2), dtype=np.uint64)
    return joined if len(joined) == num_rows else None


def _replay_selection(claims: Claims, iteration: int) -> tuple[Offspring, str]:
    """Return the offspring that make S_iteration, and why its parents are unknown, or ''."""
    settings = claims.run.config.selection.at(iteration)
    histogram, layout = _read_votes(claims, iteration), claims.layouts[iteration - 1]
    weights, unknown = np.ones(layout.num_samples), ""
    if claims.foreign:
        unknown = f"the denoiser {', '.join(sorted(claims.foreign))} doesn't come with pe_ray"
    elif _is_smoothed(claims, iteration):
        try:
            weights = weigh(settings, _check_smoothed(claims, iteration), layout)
        except Exception:  # which the smoothed votes' own check reports
            unknown = "the smoothed votes are missing or differ"
    else:
        weights = weigh(settings, unsmoothed(histogram, layout), layout)
    place = claims.run.directory.population(iteration - 1)
    population = Population(iteration=iteration - 1, layout=layout, directory=place)
    return select_parents(claims.run, population, weights, claims.layouts[iteration]), unknown


def _list_final_steps(claims: Claims, pixels: list[Digests]) -> Iterator[Step]:
    layout, names = claims.layouts[-1], claims.run.labels
    expected, rows = _join(pixels, layout.num_samples), np.arange(layout.num_samples)
    if claims.run.config.num_kept is not None:
        file = claims.run.directory.final_ids
        yield str(file), partial(_check_kept, claims)
        try:
            rows = _check_kept(claims)
        except Exception:  # which the step before reports
            return

    def look(part: Part, table: pa.Table) -> None:
        images = list(decode_images(table, names))
        require(not any(image.info for image in images), "its images hold more than pixels")
        if claims.run.config.teacher is None:
            require_labels(table, layout.labels(part.start, part.stop))
        if expected is None:
            raise NotChecked("the last population can't be read as a whole")
        own = digest_pixels([np.asarray(image).tobytes() for image in images])
        require(
            np.array_equal(own, expected[rows[part.start : part.stop]]),
            "its images aren't those of the last population",
        )

    stated = {"num_rows": len(rows), "labels": list(names)}
    yield from list_stage_steps(claims.run.directory.synthetic, stated, {"fingerprint"}, look)


def _check_kept(claims: Claims) -> NDArray[np.int64]:
    """Return the samples that the teacher keeps: as many as are asked for or fewer, none twice."""
    ids: NDArray[np.int64] = read_arrays(claims.run.directory.final_ids)["ids"]
    within = len(ids) and ids[0] >= 0 and ids[-1] < claims.layouts[-1].num_samples
    require(bool(within and (np.diff(ids) > 0).all()), "holds no ascending samples of S_T")
    require(len(ids) <= claims.run.config.num_final, "holds more samples than teacher.keep")
    return ids
