"""`pe-ray tune`: spend on a search what the strategy says, then make the final run with the rest.

OUTPUT is the final run's directory, as `pe-ray run` would leave it, but its ledger also holds all
that the search charged. OUTPUT/tuning holds the search: trials and the result. Every step returns
at once when an earlier start has completed it.

Ray Tune's own files are pickles, so they are kept where nobody else can write, in the cache of the
user who runs the search. Where they are gone, trials start over from OUTPUT and the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pe_ray.config import Config
from pe_ray.config.extras import require_extras
from pe_ray.config.yaml_tree import dump_tree, read_stored
from pe_ray.errors import InputError
from pe_ray.evolution import complete
from pe_ray.files.storage import (
    Location,
    atomic_write,
    delete_tree,
    find_cache,
    io_errors_as_input_errors,
)
from pe_ray.planning import plan, plan_releases, require_affordable
from pe_ray.plugins import only_known
from pe_ray.release.adaptive import with_mu
from pe_ray.release.door import Door, open_records
from pe_ray.release.evidence import record_config, refuse_older, require_newest
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import LABEL_COUNTS
from pe_ray.release.reservation import reserve, settle
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.named_files import FEATURES, FILES, bind_files, require_same_files
from pe_ray.runtime.run_directory import (
    LEDGER,
    RunDirectory,
    bind_directory,
    lock_directory,
    made_in,
    on_disk,
    require_free,
)
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population import fractions_of
from pe_ray.tuning.budget import (
    PRIVATE_SUMS,
    accounting_of,
    final_shape,
    mu_left,
    reserved_releases,
    shared_releases,
)
from pe_ray.tuning.checks import check_parts, check_search
from pe_ray.tuning.outcomes import choose_best
from pe_ray.tuning.search import Search
from pe_ray.tuning.space import configure
from pe_ray.tuning.trial import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a search ended. trials: the last report of each."""

    path: Path
    settings: dict[str, Any]
    score: float
    trials: list[dict[str, Any]]


def tune(search: Search) -> Outcome:
    """Run the search and the final run, or continue them.

    Guarantee: all that OUTPUT holds at any time is (epsilon, delta)-DP for `config.privacy`'s unit
    under adding or removing one unit, search included: it is post-processing of the releases in
    its ledger, which composes them as the strategy needs it (see docs/tuning.md). Times in it are
    no release; those of Ray Tune, which tell most, are gone when it returns.
    """
    require_extras(search.config)
    require_extras(search.tuning, "tuning")
    check_search(search)
    config, strategy = search.config, search.strategy
    require_affordable(plan(config))  # the final run; trials come on top
    directory = on_disk(config.output.path)
    with lock_directory(directory), connect_to_ray(config.resources, config.private.node_label):
        folder = directory.ledger.parent / "tuning"
        bare, stored = _bind(search, directory, folder), folder / "config.yaml"
        bind_files(directory.path, config, search.bound(), bare=bare)
        budget, accounting = config.privacy.budget, accounting_of(search)
        ledger = Ledger.create(directory.ledger, budget, search.fingerprint, accounting, renew=bare)
        _require_newest(search, directory, ledger, folder)
        atomic_write(stored, dump_tree(search.values()).encode())
        result = folder / "result.json"
        if not ledger.charged and not result.exists():
            check_parts(search)
        if strategy.charged and not result.exists():
            # A bad record must end this before anything is spent.
            open_records(config, prepare_run(config, directory).embedder)
        if not result.exists():  # the final run reserves for itself
            reserve(config, ledger, "search", reserved_releases(search))
        job = _release_shared(search, directory, ledger, folder)
        state = _find_state(search, directory)
        if not result.exists():
            atomic_write(result, json.dumps(_search(job, ledger, state), indent=1).encode())
        # It names machines, and its times tell how long private records took to vote.
        delete_tree(state)
        delete_tree(folder / "tune")  # of a former version
        outcome = Outcome(path=folder.parent, **json.loads(result.read_bytes()))
        _finish(job, directory, ledger, outcome.settings)
        settle(config, ledger)
    return outcome


def check_directory(search: Search) -> RunDirectory:
    """Raise InputError where `tune` can't use OUTPUT; create nothing."""
    directory = on_disk(search.config.output.path)
    require_free(directory)
    bare = _bind(search, directory, directory.ledger.parent / "tuning")
    if not bare:
        require_same_files(directory.path, search.config, search.bound())
    if directory.has_ledger:
        ledger = Ledger.open(directory.ledger)
        if ledger.charged or not bare:
            budget = search.config.privacy.budget
            ledger.require_terms(budget, search.fingerprint, accounting_of(search))
            _require_newest(search, directory, ledger, directory.ledger.parent / "tuning")
    return directory


def _require_newest(search: Search, directory: RunDirectory, ledger: Ledger, folder: Path) -> None:
    """Raise InputError where a file of the search was made from a release that `ledger` lacks.

    Looks into the folders of trials, of what the strategy prepared and of the final run.
    """
    made, result = made_in(folder) - {"config.yaml"}, folder / "result.json"
    for release in shared_releases(search) if made else ():
        if ledger.stored(release.key) is None:
            refuse_older(directory, release.key, folder)
    prefix = search.strategy.prepared_prefix
    if "prepared" in made and prefix is not None:
        prepared = on_disk(folder / "prepared")
        config = configure(search, {}, None).model_copy(update={"teacher": None})
        require_newest(ledger, prepared, config, prefix)
    trials = folder / "trials"
    for name in sorted(made_in(trials)) if search.strategy.charged else ():
        trial = on_disk(trials / name)
        if trial.config.exists():
            require_newest(ledger, trial, Config.from_run(trial.config), f"trial/{name}/")
    if result.exists():
        settings = json.loads(result.read_bytes())["settings"]
        require_newest(ledger, directory, configure(search, settings, None))


def _bind(search: Search, directory: RunDirectory, folder: Path) -> bool:
    """Refuse an OUTPUT of another search; return whether nothing was made in it yet."""
    bare = not made_in(directory.path) - {LEDGER, FILES, FEATURES, folder.name}
    bare &= not made_in(folder) - {"config.yaml"}
    bind_directory(directory, folder / "config.yaml", _read_bound, search.bound(), bare=bare)
    return bare


def _read_bound(file: Location) -> dict[str, Any]:
    with only_known():
        return Search.from_dict(read_stored(file)).bound()


def _release_shared(search: Search, directory: RunDirectory, ledger: Ledger, folder: Path) -> Job:
    """Ask for what is released once for all trials and the final run."""
    config = search.config
    shared = {release.key: release for release in shared_releases(search)}
    charged = directory.ledger if search.strategy.charged else None
    job = Job(search=search, folder=folder / "trials", ledger=charged)
    sums = search.objective.private_sums(search)
    if sums is not None:
        run = RunContext(config=config, directory=directory, embedder=sums.embedder)
        door = Door(run, ledger, [shared[PRIVATE_SUMS]])
        noisy = door.sums(PRIVATE_SUMS, sums.embedder, sums.statistic)
        job = replace(job, sums=noisy.sums)
    if LABEL_COUNTS in shared:
        door = Door(prepare_run(config, directory), ledger, [shared[LABEL_COUNTS]])
        job = replace(job, fractions=fractions_of(door.label_counts()))
    return job


def _find_state(search: Search, directory: RunDirectory) -> Path:
    """Return where Ray Tune's files of this search are."""
    name = hashlib.sha256(f"{search.fingerprint} {directory.path}".encode()).hexdigest()
    return find_cache().resolve() / "pe_ray" / "tune" / name


def _make_state(state: Path) -> None:
    """Create the folder with mode 0700; refuse one that somebody else may have written to."""
    with io_errors_as_input_errors("XDG_CACHE_HOME", state):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = state.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(f"XDG_CACHE_HOME: {state} is open to others; delete it, or give another")


def _search(job: Job, ledger: Ledger, state: Path) -> dict[str, Any]:
    """Run the trials; return settings and score of the best, and how every trial ended."""
    from pe_ray.tuning.ray_tune import run_trials

    _make_state(state)
    search, folder = job.search, job.folder.parent
    source = search.strategy.prepare(search, ledger, folder / "prepared", job.fractions)
    if search.strategy.charged:
        final = final_shape(search.config, "kept/")
        ledger.keep_room("trial/", with_mu(final, search.strategy.result_mu(search)))
    found = run_trials(replace(job, source=source), state)
    best = choose_best(found, search.objective.mode)
    last = max(best["scores"], key=int)
    return {"settings": best["settings"], "score": best["scores"][last], "trials": found}


def _finish(job: Job, directory: RunDirectory, ledger: Ledger, settings: Mapping[str, Any]) -> None:
    """Make the final run with what is left of the budget."""
    search = job.search
    config = configure(search, settings, job.fractions)
    if accounting_of(search) == "fixed":
        releases = plan_releases(config)
    else:
        own = {release.key for release in final_shape(config)}
        charged = (entry.release for entry in ledger.entries())
        others = tuple(release for release in charged if release.key not in own)
        releases = with_mu(final_shape(config), mu_left(search, others))
    reserve(config, ledger, "search", releases)
    run = prepare_run(config, directory)
    complete(run, lambda: Door(run, ledger, releases))
    record_config(ledger, directory, config)
