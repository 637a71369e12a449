"""Planning: what a run will release, read, call and write, before it starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pe_ray.components.embedders.label_features import LabelFeaturesOptions
from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.files.image_shards import count_passed_over, find_shards, summarize
from pe_ray.files.image_tables import DIGITS, ImageTable
from pe_ray.files.parts import part_rows
from pe_ray.files.storage import io_errors_as_input_errors, resolve_place
from pe_ray.plugins import Generator, load
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.accounting import calibrate, epsilon_of
from pe_ray.release.releases import shape_releases
from pe_ray.synthetic.population import apportion
from pe_ray.values import Release

PROBE_IMAGES = (1, 8, 64)
PROBE_SECONDS = 0.5
_FEWEST = 0.1  # votes of a sample, in standard deviations of their noise
_PART_BYTES = 16 << 10  # of a part, besides its rows
_PAGE_BYTES = 4 << 20  # the report, its pictures and what else doesn't grow with the rows
_LEARNT_BYTES = 8 << 20  # a network and its projection, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run pays to one service if every call succeeds at once and no answer is stored yet.

    kind: of the generator. field: of the configuration, where the caps stand. cost: calls times the
    price given for each; max_calls, max_cost: the caps, which hold for the life of the service's
    store.
    """

    kind: str
    field: str
    calls: int
    cost: float
    max_calls: int
    max_cost: float

    @property
    def affordable(self) -> bool:
        return self.calls <= self.max_calls and self.cost <= self.max_cost * (1 + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of a run, before it starts.

    epsilon: what the releases will cost (at most the budget's). random_calls, variation_calls:
    images asked of the generator (worked out for equal labels if their shares are yet to be
    released); calls: both together by iteration, from S_0 on; disk_bytes: upper estimate of the run
    directory; bills: one for each generator whose calls cost.
    """

    epsilon: float
    delta: float
    unit: str
    releases: tuple[Release, ...]
    random_calls: int
    variation_calls: int
    calls: tuple[int, ...]
    disk_bytes: int
    bills: tuple[Bill, ...]

    def count_lifted(self, num_units: int) -> float:
        """Return how many samples `num_units` records or users can lift above the noise, at most.

        A sample stands out with votes of 2 sigma, in the iteration with most noise.
        """
        needed = max((2 * votes.sigma / votes.votes_per_unit for votes in self.votes), default=0)
        return num_units / needed if needed else math.inf

    @property
    def votes(self) -> tuple[Release, ...]:
        """The releases of votes."""
        return tuple(release for release in self.releases if release.kind == "votes")


def label_fractions(config: Config) -> tuple[float, ...] | None:
    """Return the public share of each label, None where it is to be released."""
    fractions = config.privacy.label_fractions
    if fractions == "dp":
        return None
    if fractions == "uniform":
        return (1.0 / len(config.private.labels),) * len(config.private.labels)
    return fractions


def plan_releases(config: Config) -> tuple[Release, ...]:
    """Return every release of the run in order, with noise calibrated to the budget."""
    return calibrate(shape_releases(config), config.privacy.budget)


def plan(config: Config) -> Plan:
    """Work out the cost of a run; touch no private record."""
    releases = plan_releases(config)
    drawn, calls = _count_calls(config)
    options = config.embedder.options
    learnt = options.num_images if isinstance(options, LabelFeaturesOptions) else 0
    learnt += sum(w.num_images for w in config.whitenings.values() if w.on_population)
    return Plan(
        epsilon=epsilon_of(releases, config.privacy.delta),
        delta=config.privacy.delta,
        unit=config.privacy.unit,
        releases=releases,
        random_calls=drawn + learnt,
        variation_calls=sum(calls) - drawn,
        calls=tuple(calls),
        disk_bytes=_estimate_disk(config),
        bills=_bill_calls(config, drawn, calls),
    )


def warn_of_few_votes(config: Config, made: Plan, num_units: int | None = None) -> list[str]:
    """Return a warning where a sample has votes of less than a tenth of their noise, on average.

    Not all samples need votes: in pipelines/digits.yaml, which does well, it is an eighth.
    num_units: records or users; default: 1 / delta, which they are fewer than. Averages over m near
    samples, as of `selection.smooth`, have noise sigma / sqrt(m). The worst iteration is named.
    """
    units = num_units or math.floor(1 / config.privacy.delta)
    found = []
    for votes in made.votes:
        size = config.schedule.sizes[votes.iteration - 1]
        each = units * votes.votes_per_unit / size
        noise = votes.sigma / math.sqrt(config.selection.at(votes.iteration).smooth)
        if each < _FEWEST * noise:
            found.append((each / noise, votes.iteration, size, each, noise))
    if not found:
        return []
    _, iteration, size, each, noise = min(found)
    told = "" if num_units else ", the most that privacy.delta is meant for"
    return [
        f"votes, iteration {iteration}: {units:,} {made.unit}s{told}, give each of {size:,} "
        f"samples {each:.2g} votes on average, under noise of {noise:.2g}. Take fewer samples "
        "there (schedule.num_samples), so that each stands for images near it; or average over "
        f"near ones (selection.smooth); or let more {made.unit}s vote"
    ]


def _count_calls(config: Config) -> tuple[int, list[int]]:
    """Return the random draws of S_0, and the images asked of the generator by iteration."""
    sizes, selection = config.schedule.sizes, config.selection
    fractions = label_fractions(config) or (1.0,) * len(config.private.labels)
    layouts = [apportion(size, fractions) for size in sizes]
    family = 1 + selection.initial_variation_fold
    drawn = sum(-(-count // family) for count in layouts[0].counts)
    calls = [sizes[0]]
    for iteration, layout in enumerate(layouts[1:], start=1):
        settings, kept = selection.at(iteration), 0
        if settings.keep_selected:
            family = settings.next_variation_fold + 1
            kept = sum(-(-count // family) for count in layout.counts)
        calls.append(sizes[iteration - 1] * config.votes.lookahead + layout.num_samples - kept)
    return drawn, calls


def _estimate_disk(config: Config) -> int:
    """Estimate the bytes of the run directory from above."""
    sizes, shape = config.schedule.sizes, config.image_shape
    generators = [config.generator_at(iteration) for iteration in range(len(sizes))]
    row = shape.num_bytes + 64 + max(map(_own_bytes, generators))
    populations = row * (sum(sizes) + sizes[-1])
    embedding = 4 * config.embedder.dim(shape) * max(sizes)
    # Lookahead draws: of the votes that are cast and of the next.
    reused = config.votes.lookahead if config.votes.reuse_lookahead else 0
    draws = 2 * row * reused * max(sizes)
    if config.teacher and config.num_kept is not None:  # features of S_T
        embedding += (4 * config.teacher.features + 16) * sizes[-1]
    learnt = _LEARNT_BYTES * (bool(config.teacher) + config.embedder.learnt)
    sums = config.private_sums
    noisy = 16 * sums.statistic.num_values if sums else 0  # in the ledger and for the generator
    smoothed = any(config.selection.at(t).smooth > 1 for t in range(1, len(sizes)))
    votes = (28 + 20 * smoothed) * sum(sizes)  # in the ledger and in files for readers
    rows_per_part = config.output.rows_per_part
    parts = [-(-size // part_rows(size, shape.num_bytes, rows_per_part)) for size in sizes]
    files = _PAGE_BYTES + _PART_BYTES * (sum(parts) + parts[-1])
    return populations + embedding + draws + learnt + noisy + votes + files


def _own_bytes(generator: Plugin) -> int:
    """Return the bytes of the generator's own columns in a row."""
    columns = generator.options.columns.values()
    return sum(np.dtype(dtype).itemsize * width for dtype, width in columns)


def _bill_calls(config: Config, drawn: int, calls: Sequence[int]) -> tuple[Bill, ...]:
    """Return what is due for each generator to each service; drawn: random draws in calls[0]."""
    due: dict[tuple[int, str], Bill] = {}
    for iteration, num in enumerate(calls):
        plugin = config.generator_at(iteration)
        random = drawn if iteration == 0 else 0
        for field, price in plugin.options.call_prices.items():
            cost = random * (price.random or 0.0) + (num - random) * price.vary
            made = num if price.random is not None else num - random
            before = due.get((id(plugin), field))
            due[id(plugin), field] = Bill(
                kind=plugin.kind,
                field=field,
                calls=made + (before.calls if before else 0),
                cost=cost + (before.cost if before else 0.0),
                max_calls=price.max_calls,
                max_cost=price.max_cost,
            )
    return tuple(due.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFiles:
    """What a run would read for one field of the configuration.

    files: how many; None where they can't be seen from here. passed_over: reason -> number of
    names. summary: the same in words.
    """

    field: str
    data: str
    files: int | None
    passed_over: Mapping[str, int]
    summary: str


def plan_files(
    table: ImageTable, resources: ResourcesConfig, node_label: str | None = None
) -> PlannedFiles:
    """Find the files that a run would read as this table, from names and schemas alone.

    Data on labelled nodes is not looked for. What is not on this machine may be on a cluster's, if
    one is named. Else InputError names the field.
    """
    unseen = None
    if node_label is not None:
        unseen = f"not seen from here: only nodes labelled {node_label} may read it"
    elif resources.address and table.data != DIGITS:
        place = resolve_place(table.data, table.name_field("data"))
        with io_errors_as_input_errors(table.name_field("data"), place):
            if not place.exists():
                unseen = "not on this machine; the cluster's must have it"
    found = None if unseen else find_shards(table)
    return PlannedFiles(
        field=table.name_field("data"),
        data=table.data,
        files=found.num_files if found else None,
        passed_over=count_passed_over(found) if found else {},
        summary=summarize(found) if found else unseen or "",
    )


def require_affordable(made: Plan) -> None:
    """Raise InputError where a run would have to stop at a cap."""
    for bill in made.bills:
        if not bill.affordable:
            raise InputError(
                f"{bill.field}.max_calls, {bill.field}.max_cost: {bill.kind} allows "
                f"{bill.max_calls:,} calls and a cost of {bill.max_cost:,.2f}, but the run takes "
                f"{bill.calls:,} and {bill.cost:,.2f}; raise them or plan less (nothing was spent)"
            )


def plan_workers(resources: ResourcesConfig) -> int | None:
    """Return how many workers a run will have; None where only its cluster knows."""
    if resources.workers or resources.address:
        return resources.workers
    num_cpus = resources.num_cpus or len(os.sched_getaffinity(0))
    return max(1, int(num_cpus / resources.cpus_per_worker))


def worker_seconds(config: Config, calls: Sequence[int]) -> float | None:
    """Estimate the seconds of one CPU worker for `calls` images, from a few that are timed here.

    None where workers need a GPU or a call costs money: then nothing is timed.
    """
    paid = [config.generator_at(iteration).options.call_prices for iteration in range(len(calls))]
    if config.resources.gpus_per_worker or any(paid):
        return None
    seconds, each, timed = 0.0, 0.0, None
    for iteration, num in enumerate(calls):
        plugin = config.generator_at(iteration)
        if iteration <= 1 or plugin != timed:  # S_0 is drawn, the others are varied
            each, timed = _seconds_per_image(config, iteration), plugin
        seconds += num * each
    return seconds


def _seconds_per_image(config: Config, iteration: int) -> float:
    plugin = config.generator_at(iteration)
    generator: Generator = load("generator", plugin.kind)(plugin.options, config.private.labels)
    each = 0.0
    for call, num in enumerate((1, *PROBE_IMAGES)):  # the first also sets up, and isn't counted
        labels = np.arange(num, dtype=np.int32) % len(config.private.labels)
        seeds = row_seeds(config.schedule.seed, "random", 0, np.arange(num, dtype=np.int64))
        started = time.perf_counter()
        rows = {**generator.random(labels, seeds), "label": labels}
        if iteration:
            started = time.perf_counter()
            generator.vary(rows, config.schedule.degree_list[iteration - 1], seeds)
        each = (time.perf_counter() - started) / num
        if call and num * each > PROBE_SECONDS:
            break
    return each
