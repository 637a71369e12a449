"""Private Evolution (Lin et al., ICLR 2024, Algorithms 1 and 2), in the paper's order.

Every step returns at once when an earlier start has completed it, so the same call continues after
any crash. Files of released values are complete or absent. A histogram that was released is read
from the ledger, never drawn again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from pe_ray.config import Config
from pe_ray.config.extras import require_extras
from pe_ray.errors import DamagedFileError
from pe_ray.files.parts import MANIFEST, remove_damaged
from pe_ray.files.storage import Location, parse_location
from pe_ray.planning import label_fractions, plan, plan_releases, require_affordable
from pe_ray.release.door import Door
from pe_ray.release.evidence import record_config, require_newest
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_copy import update_copy
from pe_ray.release.releases import GENERATOR
from pe_ray.release.reservation import reserve, settle
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import connect_on_demand
from pe_ray.runtime.events import Event, Listener, announce, emit, listening
from pe_ray.runtime.run_directory import claim_directory, require_disk
from pe_ray.synthetic.denoising import denoise, try_denoisers
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.export import export, try_export
from pe_ray.synthetic.final_choice import choose_final
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import Population, apportion, fractions_of
from pe_ray.synthetic.scoring import (
    check_reference,
    discard_other_scores,
    score_population,
    score_teacher,
    try_metrics,
)
from pe_ray.synthetic.selection import select_parents
from pe_ray.synthetic.teacher import learn_features, moments_layout, solve_teacher, try_teacher
from pe_ray.synthetic.variation import check_generators, draw_population, vary

logger = logging.getLogger(__name__)


def evolve(config: Config, on_event: Listener | None = None) -> Location:
    """Run Private Evolution, or continue it; return the run directory.

    on_event: is called with each `Event` of the run, in this process.
    Guarantee: the run directory is (epsilon, delta)-DP for `config.privacy`'s unit under adding
    or removing one unit: it is post-processing of the releases in its ledger. Raises InputError
    before anything is spent where something given can't be used.
    """
    require_extras(config)
    releases = plan_releases(config)
    check_reference(config)
    with (
        listening(on_event),
        claim_directory(config) as directory,
        connect_on_demand(config.resources, config.private.node_label),
    ):
        cost = plan(config)
        require_affordable(cost)
        require_disk(directory.path, cost.disk_bytes, "output.path")
        ledger = Ledger.create(
            directory.ledger, config.privacy.budget, config.fingerprint, renew=directory.is_bare
        )
        require_newest(ledger, directory, config)
        record_config(ledger, directory, config)
        update_copy(ledger, directory.ledger_copy)
        if not ledger.charged:
            _try_late_parts(config)
        reserve(config, ledger, "run", releases)
        run = prepare_run(config, directory)
        complete(run, lambda: Door(run, ledger, releases))
        settle(config, ledger)
    return directory.path


def _try_late_parts(config: Config) -> None:
    """Build and try what the loop first uses after a release, so that nothing is spent in vain."""
    announce("trying what the run will use: generators, denoisers, metrics, teacher, export")
    check_generators(config)
    try_denoisers(config)
    if config.draws_after_release:  # else S_0 is scored before the first release
        try_metrics(config)
    try_teacher(config)
    try_export(config)


def complete(run: RunContext, open_door: Callable[[], Door]) -> None:
    """Make all of a run that is missing. What turns out to be damaged is made again.

    A run that was complete before is read as a whole to find out whether it is damaged.
    """
    if (run.directory.synthetic / MANIFEST).exists():
        for t in range(run.config.schedule.iterations + 1):
            remove_damaged(run.directory.population(t))
    damaged: set[str] = set()
    while True:
        try:
            for _ in iterate(run, open_door()):
                pass
            return
        except DamagedFileError as error:
            if error.file in damaged:  # its disk doesn't keep what is written
                raise
            damaged.add(error.file)
            logger.warning("%s: is damaged; making it again", error.file)
            parse_location(error.file).unlink(missing_ok=True)


def iterate(run: RunContext, door: Door) -> Iterator[Population]:
    """Yield S_0, S_1, ..., S_T, each when it is complete; then write the final set."""
    discard_other_scores(run)
    fractions = label_fractions(run.config) or fractions_of(door.label_counts())
    layouts = [apportion(size, fractions) for size in run.config.schedule.sizes]
    if asked := run.config.private_sums:
        run.directory.write_sums(door.sums(GENERATOR, asked.embedder, asked.statistic))
    population = draw_population(run, layouts[0], embed_next=door.awaits_votes(1))  # Alg. 1, line 1
    _tell(run, population, score_population(run, population))
    yield population
    for t in run.iterations:
        embedding = embed(run, population)  # Alg. 2, line 3
        votes = door.votes(embedding)  # Alg. 2, lines 1-5: the only private step
        weights = denoise(run, embedding, votes)  # Alg. 2, line 6
        embedding.discard()
        offspring = select_parents(run, population, weights, layouts[t])  # Alg. 1, lines 4-5
        embed_next = door.awaits_votes(t + 1)
        population = vary(run, population, offspring, embed_next=embed_next)  # Alg. 1, line 6
        _tell(run, population, score_population(run, population))
        yield population
    if run.config.teacher:
        features, moments = learn_features(run, population), moments_layout(run)
        sums = door.sums("teacher", features, moments)
        solve_teacher(run, sums)
        if run.config.num_kept is not None:
            kept = apportion(run.config.num_kept, fractions)
            population = choose_final(run, population, kept)
        score_teacher(run, population)
    export(run, population, run.directory.synthetic)


def _tell(run: RunContext, population: Population, scores: Mapping[str, float]) -> None:
    t = population.iteration
    found = "".join(f", {name} {value:.4g}" for name, value in scores.items())
    event = Event(kind="population", name="population", iteration=t, values=scores)
    emit(event, text=f"iteration {t} of {run.config.schedule.iterations}: done{found}")
