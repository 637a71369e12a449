"""Private Evolution (Lin et al., ICLR 2024, Algorithms 1 and 2), in the paper's order.

Every step returns at once when a start before this one has completed it, so the same call
continues after any crash: files of released values are complete or absent, and a histogram that
was released is read from the ledger, never drawn again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pe_ray.config import Config
from pe_ray.config.extras import require_extras
from pe_ray.files.storage import Location, delete_tree
from pe_ray.planning import label_fractions, plan, planned_releases, require_affordable
from pe_ray.release.door import Door
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_copy import update_copy
from pe_ray.runtime.cluster import connected, require_object_store
from pe_ray.runtime.run_directory import RunDirectory, claimed, require_disk, write_config
from pe_ray.synthetic.denoising import smoothed_votes
from pe_ray.synthetic.population import (
    Population,
    apportion,
    fractions_of,
    initial_offspring,
    next_offspring,
)
from pe_ray.synthetic.scoring import check_reference, score_population
from pe_ray.synthetic.variation import (
    REQUEST_BYTES,
    check_generators,
    make_population,
    write_final,
)

logger = logging.getLogger(__name__)


def evolve(config: Config) -> Location:
    """Run Private Evolution, or continue it; returns the run directory.

    Guarantee: the run directory is (epsilon, delta)-DP for `config.privacy`'s unit under adding
    or removing one unit: it is post-processing of the releases in its ledger. Raises InputError
    before anything is spent when something given can't be used.
    """
    require_extras(config)
    releases = planned_releases(config)
    check_reference(config)
    with claimed(config) as run, connected(config.resources, config.private.node_label):
        cost = plan(config)
        require_affordable(cost)
        require_disk(run.path, cost.disk_bytes, "output.path")
        asked = REQUEST_BYTES * max(config.schedule.sizes)
        require_object_store(asked, "schedule.num_samples", "a population's parents and labels")
        ledger = Ledger.create(
            run.ledger, config.privacy.budget, config.fingerprint, renew=run.is_bare
        )
        write_config(run, config)
        update_copy(ledger, run.ledger_copy)
        if not ledger.charged:
            check_generators(config)
        for _ in iterations(config, run, Door(config, run, ledger, releases)):
            pass
    return run.path


def iterations(config: Config, run: RunDirectory, door: Door) -> Iterator[Population]:
    """S_0, S_1, ..., S_T, each when it is complete; then the final set for readers."""
    layouts = [apportion(size, _fractions(config, door)) for size in config.schedule.sizes]
    offspring = initial_offspring(layouts[0], config.selection.initial_variation_fold)
    population = make_population(
        config, run.population(0), 0, offspring, None, None, door.embedding(1)
    )
    score_population(config, run.scores(0), population)
    yield population
    for iteration in range(1, config.schedule.iterations + 1):
        histogram = door.votes(iteration, population)
        settings = config.selection.at(iteration)
        draws, then = run.lookahead(iteration), door.embedding(iteration + 1)
        embedding, smoothed = run.embedding(iteration), run.smoothed(iteration)
        votes = smoothed_votes(config, histogram, population, embedding, draws, smoothed)
        delete_tree(embedding)
        seed = config.schedule.seed
        offspring = next_offspring(population, votes, layouts[iteration], settings, seed)
        population = make_population(
            config, run.population(iteration), iteration, offspring, population, draws, then
        )
        delete_tree(draws)
        score_population(config, run.scores(iteration), population)
        logger.info("iteration %d of %d: done", iteration, config.schedule.iterations)
        yield population
    if config.teacher:
        door.teacher(population)
    size = population.layout.num_samples
    write_final(config, run.synthetic, population, size, run.teacher, vary=False)


def _fractions(config: Config, door: Door) -> tuple[float, ...]:
    public = label_fractions(config)
    return fractions_of(door.label_counts()) if public is None else public
