"""`pe-ray tune`: spend on a search what the strategy says, then make the final run with the rest.

OUTPUT is the final run's directory, as `pe-ray run` would leave it, but that its ledger holds all
that the search charged, too. OUTPUT/tuning holds the search: trials, Ray Tune's files, the result.
Every step returns at once when a start before this one has completed it.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig, ResourcesConfig
from pe_ray.config.extras import require_extras
from pe_ray.config.yaml_tree import differences
from pe_ray.errors import InputError
from pe_ray.evolution import iterate
from pe_ray.files.storage import Location, atomic_write, delete_tree
from pe_ray.planning import plan, plan_releases, require_affordable
from pe_ray.release.adaptive import with_mu
from pe_ray.release.door import Door, open_records
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import Votes, shape_releases
from pe_ray.run import Run
from pe_ray.runtime.cluster import connected
from pe_ray.runtime.run_directory import (
    FEATURES,
    LEDGER,
    RunDirectory,
    lock_directory,
    made_in,
    on_disk,
    write_config,
)
from pe_ray.synthetic.export import export
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import fractions_of
from pe_ray.tuning.budget import (
    LABEL_COUNTS,
    MOMENTS,
    accounting_of,
    final_mu,
    final_releases,
    moments_spec,
    proxy_mu,
    shared_releases,
    trial_mu,
)
from pe_ray.tuning.checks import check, check_parts
from pe_ray.tuning.objectives import moments_plugin
from pe_ray.tuning.search_config import MomentsObjective, Search, read_search
from pe_ray.tuning.space import trial_id
from pe_ray.tuning.trial import Job, final_config
from pe_ray.values import Release

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a search ended. trials: what each left behind."""

    path: Path
    settings: dict[str, Any]
    score: float
    trials: tuple[dict[str, Any], ...]


def tune(search: Search, max_concurrent: int | None = None) -> Outcome:
    """Run the search and the final run, or continue them.

    Guarantee: all that OUTPUT holds at any time is (epsilon, delta)-DP for `config.privacy`'s unit
    under adding or removing one unit, search included: it is post-processing of the releases in
    its ledger, which composes them as the strategy needs it (see docs/tuning.md). Times in it are
    no release; those that tell most are gone when it returns.
    """
    check(search)
    require_extras(search.config)
    require_extras(search.tuning, "tuning")
    require_affordable(plan(search.config))  # the final run; trials come on top
    concurrent = max_concurrent or search.tuning.max_concurrent
    run, output = on_disk(search.config.output.path), Path(search.config.output.path).resolve()
    with (
        lock_directory(run),
        connected(_resources(search.config), search.config.private.node_label),
    ):
        folder = output / "tuning"
        _bind(search, run, folder)
        ledger = Ledger.create(
            run.ledger,
            search.config.privacy.budget,
            search.fingerprint,
            accounting_of(search),
            renew=_is_bare(run, folder),
        )
        atomic_write(
            folder / "config.yaml", yaml.safe_dump(search.values(), sort_keys=False).encode()
        )
        result = folder / "result.json"
        if not ledger.charged and not result.exists():
            check_parts(search)
        if search.tuning.strategy == "compose" and not result.exists():
            # A bad record must end this before anything is spent.
            open_records(search.config, prepare_run(search.config, run).embedder)
        job = _prepared(search, run, ledger, folder)
        if not result.exists():
            found = _searched(job, ledger, folder, concurrent)
            atomic_write(result, json.dumps(found, indent=1).encode())
        if search.tuning.strategy == "compose":
            delete_tree(folder / "tune")  # its times tell how long the private records took to vote
        found = json.loads(result.read_bytes())
        _finish(job, run, ledger, found["settings"])
    return Outcome(
        path=output,
        settings=found["settings"],
        score=found["score"],
        trials=tuple(found["trials"]),
    )


def _resources(config: Config) -> ResourcesConfig:
    """A Ray of this search's own counts one CPU more, of which trials take hundredths."""
    return config.resources.model_copy(update={"num_cpus": _cpus(config) + 1})


def _cpus(config: Config) -> int:
    return config.resources.num_cpus or os.cpu_count() or 1


def _is_bare(run: RunDirectory, folder: Path) -> bool:
    """Whether nothing was made yet: there are a configuration and a ledger at most."""
    return not (
        made_in(run.path) - {LEDGER, FEATURES, folder.name} or made_in(folder) - {"config.yaml"}
    )


def _bind(search: Search, run: RunDirectory, folder: Path) -> None:
    """Tie the directory to the search, or refuse one that it isn't tied to."""
    file = folder / "config.yaml"
    if file.exists():
        try:
            stored = read_search(file)
        except InputError as error:
            raise InputError(f"{file}: can't be read ({error}); restore it from a copy") from None
        changed = differences(stored.bound(), search.bound())
        if changed and not _is_bare(run, folder):  # else the ledger refuses, if it was charged
            raise InputError(
                f"{', '.join(changed)}: differs from the search in {run.path}; restore it, or give "
                "another output.path (a new search spends anew)"
            )
        if not run.has_ledger:
            raise InputError(
                f"output.path: {run.path} has a search but no ledger.sqlite; restore the ledger, "
                "since without it what was spent is unknown, or give another output.path"
            )
    elif not run.has_ledger and made_in(run.path) - {LEDGER}:
        raise InputError(f"output.path: {run.path} holds other files; give an empty or new folder")


def _prepared(search: Search, run: RunDirectory, ledger: Ledger, folder: Path) -> Job:
    """Make what is released once for all trials."""
    charged = search.tuning.strategy == "compose"
    job = Job(
        search=search,
        folder=folder / "trials",
        ledger=run.ledger if charged else None,
        workers=_cpus(search.config),
    )
    shared = {release.key: release for release in shared_releases(search)}
    config = search.config
    if MOMENTS in shared and ledger.stored(MOMENTS) is None:
        objective = search.tuning.objective
        assert isinstance(objective, MomentsObjective)
        spec, embedder = moments_spec(search, objective), moments_plugin(search)
        door = Door(Run(config=config, directory=run, embedder=embedder), ledger, [shared[MOMENTS]])
        door.sums(MOMENTS, embedder, spec)
    if LABEL_COUNTS in shared:
        door = Door(prepare_run(config, run), ledger, [shared[LABEL_COUNTS]])
        job = replace(job, fractions=fractions_of(door.label_counts()))
    sums = ledger.released(MOMENTS)
    return job if sums is None else replace(job, moments=sums.sums)


def _searched(job: Job, ledger: Ledger, folder: Path, concurrent: int) -> dict[str, Any]:
    """Settings, score and trials of the search."""
    from pe_ray.tuning.search import best_of, records, run_search

    search = job.search
    if search.tuning.strategy == "proxy":
        job = replace(job, source=_proxy(job, ledger, folder / "proxy"))
    if search.tuning.strategy == "compose":
        # Trials that share what is left for one of them might all be refused half-way.
        concurrent = min(concurrent, int(search.tuning.full_trials or search.tuning.num_trials))
        if search.tuning.final_run:
            final = with_mu(
                shape_releases(search.config, "kept/", label_counts=False), final_mu(search)
            )
            ledger.keep_room("trial/", final)
    run_search(job, folder / "tune", concurrent)
    found = records(job.folder)
    for record in found:
        record["state"] = {"running": "stopped"}.get(record["state"], record["state"])
    best = best_of(found, search.tuning.mode)
    last = max(best["scores"], key=int)
    return {"settings": best["settings"], "score": best["scores"][last], "trials": found}


def _proxy(job: Job, ledger: Ledger, folder: Path) -> PrivateConfig:
    """Run Private Evolution with a share of the budget; its set is what trials vote with."""
    search = job.search
    config = final_config(search, {}, job.fractions)
    output = config.output.model_copy(update={"path": str(folder)})
    config = config.model_copy(update={"output": output, "teacher": None})
    run = prepare_run(config, on_disk(folder))
    releases = with_mu(Votes.plan(config, "proxy/"), proxy_mu(search))
    voters: Location = run.directory.synthetic
    for population in iterate(run, Door(run, ledger, releases, prefix="proxy/")):
        last = population
    if search.tuning.proxy_voters is not None:
        voters = folder / "voters"
        export(run, last, voters, num_variations=search.tuning.proxy_voters)
    return PrivateConfig(
        data=str(voters),
        labels=tuple(str(label) for label in range(len(config.private.labels))),
        cache=search.config.private.cache,
    )


def _finish(job: Job, run: RunDirectory, ledger: Ledger, settings: dict[str, Any]) -> None:
    """The final run: with what is left, or the run that was chosen."""
    search = job.search
    config = final_config(search, settings, job.fractions)
    prefix = ""
    releases: tuple[Release, ...]
    if not search.tuning.final_run:
        prefix = f"trial/{trial_id(settings)}/"
        releases = with_mu(Votes.plan(config, prefix), trial_mu(search))  # all stored by now
    elif accounting_of(search) == "fixed":
        releases = plan_releases(config)
    else:
        own = {release.key for release in shape_releases(config, label_counts=False)}
        others = [e.release for e in ledger.entries() if e.release.key not in own]
        releases = final_releases(search, config, others)
    made = prepare_run(config, run)
    for _ in iterate(made, Door(made, ledger, releases, prefix=prefix)):
        pass
    write_config(run, config)
