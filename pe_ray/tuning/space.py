"""The search space: settings are dotted keys with plain values."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

from pe_ray.config import Config
from pe_ray.config.yaml_tree import put
from pe_ray.errors import InputError
from pe_ray.tuning.search import Fractions, Range, Search

Settings = Mapping[str, Any]
"""Dotted key -> plain value."""

MOST_COMBINATIONS = 4096
_FIXED = {
    "privacy": "the guarantee is what the search is held to",
    "private": "the private data are given",
    "metrics": "audits are no part of a run",
    "resources": "they change speed only",
    "output": "the search names its folders itself",
    "teacher": "trials have none; it is released once, in the final run",
    "tuning": "a search can't search itself",
}
_DIGITS = 6


def configure(search: Search, settings: Settings, fractions: Fractions | None = None) -> Config:
    """Return the configuration with `settings` in place; InputError where they don't fit it.

    fractions: of labels, where they were released.
    """
    tree = copy.deepcopy(search.tree)
    for key, value in settings.items():
        put(tree, key, value, f"tuning.space.{key}")
    config = Config.from_dict(tree)
    if fractions is None:
        return config
    privacy = config.privacy.model_copy(update={"label_fractions": fractions})
    return config.model_copy(update={"privacy": privacy})


def trial_id(settings: Settings) -> str:
    """Return a name that depends on the settings alone, so a repeated trial is the same trial."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_space(search: Search, configure: Callable[[Settings], Config]) -> None:
    """Raise InputError for the first key or value that can't be searched.

    configure: makes a trial's configuration from its settings.
    """
    for key in search.tuning.space:
        block = key.partition(".")[0]
        if block in _FIXED:
            raise InputError(f"tuning.space.{key}: can't be searched: {_FIXED[block]}")
    for settings in sample_space(search):
        with name_settings(settings):
            configure(settings)


@contextmanager
def name_settings(settings: Settings) -> Iterator[None]:
    """Let InputErrors say which settings they came with."""
    try:
        yield
    except InputError as error:
        if not settings:
            raise
        text, shown = str(error).removeprefix("config: "), json.dumps(settings, default=str)
        raise InputError(f"tuning.space: with {shown}: {text}") from None


def sample_space(search: Search) -> Iterator[dict[str, Any]]:
    """Yield settings to check: choices, both ends of ranges and one number within each.

    All combinations where they are few; else every value once, and some combinations.
    """
    values = {
        key: (*ends(domain), _within(domain)) if isinstance(domain, Range) else domain
        for key, domain in search.tuning.space.items()
    }
    if math.prod(map(len, values.values())) <= MOST_COMBINATIONS // 8:
        yield from combine(values)
        return
    rng = Random(0)
    for step in range(max(64, *map(len, values.values()))):
        yield {
            key: some[step] if step < len(some) else rng.choice(some)
            for key, some in values.items()
        }


def combine(values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of one value each."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def ends(domain: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    """Return all choices, or both ends of a range."""
    if isinstance(domain, Range):
        return (_number(domain.low, domain), _number(domain.high, domain))
    return domain


def _within(domain: Range) -> float | int:
    """Return a number inside a range, which is no whole one unless the range is `integer`."""
    return _number(domain.low + 0.381966 * (domain.high - domain.low), domain)


def _number(value: float, domain: Range) -> float | int:
    if domain.integer:
        return round(value)
    return float(f"{min(max(value, domain.low), domain.high):.{_DIGITS}g}")


def ray_space(search: Search) -> dict[str, Any]:
    """Return the space for Ray Tune, in which a choice that is no scalar is shown as its JSON."""
    from ray import tune

    space: dict[str, Any] = {}
    for key, domain in search.tuning.space.items():
        if not isinstance(domain, Range):
            space[key] = tune.choice([_shown(value) for value in domain])
        elif domain.integer:
            among = tune.lograndint if domain.log else tune.randint
            space[key] = among(int(domain.low), int(domain.high) + 1)
        elif domain.log:
            space[key] = tune.loguniform(domain.low, domain.high)
        else:
            space[key] = tune.uniform(domain.low, domain.high)
    return space


def distinct_points(search: Search) -> list[dict[str, Any]] | None:
    """Return what a random search tries, without repeats, which would tell nothing new.

    None where there are ranges, or too many combinations.
    """
    space = search.tuning.space
    values = {key: some for key, some in space.items() if not isinstance(some, Range)}
    if len(values) < len(space) or math.prod(map(len, values.values())) > MOST_COMBINATIONS:
        return None
    shown = {key: tuple(dict.fromkeys(map(_shown, some))) for key, some in values.items()}
    points = list(combine(shown))
    return Random(search.tuning.seed).sample(points, min(search.tuning.num_trials, len(points)))


def settings_of(search: Search, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that Ray Tune chose."""
    settings = {}
    for key, domain in search.tuning.space.items():
        if isinstance(domain, Range):
            settings[key] = _number(float(chosen[key]), domain)
        else:
            settings[key] = {_shown(value): value for value in domain}[chosen[key]]
    return settings


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
