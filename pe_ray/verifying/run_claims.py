"""What a run claims: its configuration, its ledger, and the epsilon of the ledger's rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pe_ray.config import Config
from pe_ray.config.blocks import (
    PrivacyConfig,
    PrivateConfig,
    ScheduleConfig,
    SelectionConfig,
    TeacherConfig,
    VotesConfig,
)
from pe_ray.config.kinds import Block
from pe_ray.config.yaml_tree import digest_tree, drop_removed_keys, dump_tree, read_stored
from pe_ray.errors import InputError
from pe_ray.planning import label_fractions
from pe_ray.plugins import GeneratorOptions, load, only_known
from pe_ray.plugins.registry import BUILT_IN
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import list_unknown
from pe_ray.release.releases import GENERATOR, LABEL_COUNTS, shape_releases, votes_key
from pe_ray.run_context import RunContext
from pe_ray.runtime.run_directory import LEDGER, on_disk
from pe_ray.synthetic.population import apportion, fractions_of
from pe_ray.values import LabelLayout, NoisyHistogram
from pe_ray.verifying.closed_forms import bracket_epsilon
from pe_ray.verifying.findings import Checks, NotChecked, require

CONFIG = "config.yaml"
_BLOCKS: Mapping[str, type[Block]] = {
    "private": PrivateConfig,
    "votes": VotesConfig,
    "selection": SelectionConfig,
    "schedule": ScheduleConfig,
    "privacy": PrivacyConfig,
    "teacher": TeacherConfig,
}
"""What decides how releases become populations. None of them names a model."""
_TOLERANCE = 1e-9


class _KnownBlocks(Config):
    """A configuration of _BLOCKS alone. What its generator asks for is not among its releases."""

    @property
    def private_sums(self) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """A run directory whose configuration is the one of its ledger.

    run: its configuration has the blocks of _BLOCKS only, and there is no embedder. layouts: labels
    of S_0, ..., S_T as the configuration and released label counts say. foreign: kinds of denoisers
    that don't come with the package. own_columns: of the generators, None where one doesn't come
    with the package or its options can't be read.
    """

    run: RunContext
    ledger: Ledger
    layouts: tuple[LabelLayout, ...]
    foreign: frozenset[str]
    own_columns: frozenset[str] | None


def check_claims(checks: Checks, folder: Path) -> Claims | None:
    """Check ledger, configuration and epsilon of the run in `folder`.

    None where they can't be read or don't belong together, so that nothing follows from them.
    """
    ledger_file = str(folder / LEDGER)
    whole = checks.make(
        "the ledger is whole: its tables, the chain of its rows, its answers",
        [(ledger_file, partial(_check_ledger, folder / LEDGER))],
    )
    if not whole:
        return None
    ledger = Ledger.open(folder / LEDGER)
    accepted = checks.make(
        "the configuration is the one that the ledger recorded",
        [(str(folder / CONFIG), partial(_check_config, folder / CONFIG, ledger))],
    )
    checks.make(
        "epsilon of the ledger's rows",
        [
            (ledger_file, partial(_check_epsilon, ledger)),
            (ledger_file, partial(_check_closed_forms, ledger)),
        ],
    )
    for kind in {entry.release.kind for entry in ledger.entries()} - BUILT_IN["release"].keys():
        checks.pass_over(f"sensitivity of {kind}", "this kind of release doesn't come with pe_ray")
    if not accepted:
        return None
    made: list[Claims] = []
    checks.make(
        "the ledger has the releases that the configuration asks for",
        [(ledger_file, lambda: made.append(_gather(folder, ledger)))],
    )
    return made[0] if made else None


def read_histogram(ledger: Ledger, key: str) -> NoisyHistogram:
    """Return the histogram that was released under `key`; no kind of release is loaded for it."""
    (release,) = [entry.release for entry in ledger.entries() if entry.release.key == key]
    noisy = ledger.stored(key)
    assert noisy is not None
    return NoisyHistogram(release=release, noisy_votes=noisy)


def _check_ledger(file: Path) -> str:
    require(file.is_file(), "is missing")
    unknown = list_unknown(file)
    require(not unknown, f"holds what no ledger has: {', '.join(unknown)}")
    ledger = Ledger.open(file)
    entries = ledger.entries()
    for entry in entries:
        ledger.stored(entry.release.key)
    return f"{len(entries)} releases"


def _check_config(file: Path, ledger: Ledger) -> str | None:
    tree = read_stored(file)
    recorded = ledger.config_digest
    if recorded is not None:
        require(recorded == digest_tree(tree), "isn't the configuration that the ledger recorded")
    header, _, text = file.read_text(encoding="utf-8").partition("\n")
    commented = not re.fullmatch(r"# fingerprint: [0-9a-f]{64}", header) or text != dump_tree(tree)
    require(not commented, "holds more than the configuration, or is laid out in another way")
    privacy = PrivacyConfig.model_validate(drop_removed_keys(tree)["privacy"])
    require(privacy.budget == ledger.budget, "states another budget than the ledger")
    return "the ledger, of a former version, recorded none" if recorded is None else None


def _check_epsilon(ledger: Ledger) -> str:
    budget, spent = ledger.budget, ledger.spent()
    require(spent <= budget.epsilon, f"spends epsilon {spent:.6g}, over {budget.epsilon:g}")
    if math.isinf(spent):
        return "no noise, NOT private"
    return (
        f"{spent:.6g} at delta {budget.delta:g} by dp_accounting, {ledger.accounting} releases, "
        f"for adding or removing one {budget.unit}; budget {budget.epsilon:g}"
    )


def _check_closed_forms(ledger: Ledger) -> str:
    releases = [entry.release for entry in ledger.entries()]
    below, above = bracket_epsilon(releases, ledger.budget.delta)
    spent = ledger.spent()
    # An adaptive bound may be loose where the noise is tiny.
    high = math.inf if ledger.accounting == "adaptive" else above * (1 + _TOLERANCE) + _TOLERANCE
    require(
        below <= spent * (1 + _TOLERANCE) and spent <= high,
        f"epsilon {spent:.6g} by dp_accounting isn't within {below:.6g} and {above:.6g}, its "
        "bounds in closed form",
    )
    return f"between {below:.6g} and {above:.6g} in closed form"


def _gather(folder: Path, ledger: Ledger) -> Claims:
    """Return what the other checks start from; Differs where the ledger lacks a release."""
    tree = drop_removed_keys(read_stored(folder / CONFIG))
    config, foreign = _read_blocks(tree)
    run = RunContext(config=config, directory=on_disk(folder), embedder=None)  # type: ignore[arg-type]
    charged = {entry.release.key: entry.release for entry in ledger.entries()}
    if votes_key(1) not in charged and any(key.endswith(f"/{votes_key(1)}") for key in charged):
        raise NotChecked("the run is a trial that a search of a former version took as its result")
    for planned in shape_releases(config):
        found = charged.get(planned.key)
        require(
            ledger.stored(planned.key) is not None
            and found == replace(planned, sigma=found.sigma if found else 0.0),
            f"lacks {planned.key}, or has it with another sensitivity",
        )
    generators = _read_generators(tree["generator"])
    own_columns = None
    if generators is not None:
        own_columns = frozenset(name for options in generators for name in options.columns)
    parts = [p.options for o in generators or () for p in o.parts] + (generators or [])
    if any(options.private_sums(len(run.labels)) for options in parts):
        require(ledger.stored(GENERATOR) is not None, f"lacks {GENERATOR}, which S_0 is drawn from")
    fractions = label_fractions(config)
    if fractions is None:
        fractions = fractions_of(read_histogram(ledger, LABEL_COUNTS))
    layouts = tuple(apportion(size, fractions) for size in config.schedule.sizes)
    require(len(fractions) == len(run.labels), f"{LABEL_COUNTS} counts other labels")
    for iteration, layout in zip(run.iterations, layouts, strict=False):
        key = votes_key(iteration)
        num_bins = len(read_histogram(ledger, key).noisy_votes)
        require(num_bins == layout.num_samples, f"{key} has votes for other samples")
    return Claims(
        run=run,
        ledger=ledger,
        layouts=layouts,
        foreign=foreign,
        own_columns=own_columns,
    )


def _read_blocks(tree: Mapping[str, Any]) -> tuple[Config, frozenset[str]]:
    """Return the blocks of _BLOCKS, and the kinds of foreign denoisers, which are left out.

    Nothing that a configuration names is imported, unless it comes with the package.
    """
    given = dict(tree)
    foreign: set[str] = set()
    selection = dict(given.get("selection") or {})
    overrides = {at: dict(each) for at, each in (selection.get("overrides") or {}).items()}
    for settings in (selection, *overrides.values()):
        chosen = settings.get("denoise", {"kind": "threshold"})
        kind = chosen if isinstance(chosen, str) else chosen["kind"]
        if kind not in BUILT_IN["denoiser"]:
            foreign.add(kind)
            del settings["denoise"]
    given["selection"] = {**selection, "overrides": overrides}
    made: dict[str, Any] = {
        name: block.model_validate(given[name])
        for name, block in _BLOCKS.items()
        if given.get(name) is not None
    }
    return _KnownBlocks.model_construct(**made), frozenset(foreign)


def _read_generators(generator: Mapping[str, Any]) -> list[GeneratorOptions] | None:
    """Return the options of the run's generators; None where one is foreign or can't be read."""
    stages = generator["stages"] if generator["kind"] == "switch" else [{"generator": generator}]
    found = []
    for stage in stages:
        options = dict(stage["generator"])
        try:
            with only_known():
                found.append(load("generator", options.pop("kind")).Options.model_validate(options))
        except (InputError, ValueError):
            return None
    return found
