"""The search space: settings are dotted keys with plain values."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

from pe_ray.config import Config
from pe_ray.config.yaml_tree import put
from pe_ray.errors import InputError
from pe_ray.tuning.search import Fractions, Range, Search

Settings = Mapping[str, Any]
"""Dotted key -> plain value."""

_MOST_COMBINATIONS = 4096
_MOST_CHECKED = 512
_FIXED = {
    "privacy": "the guarantee is what the search is held to",
    "private": "the private data are given",
    "metrics": "audits are no part of a run",
    "resources": "they change speed only",
    "output": "the search names its folders itself",
    "teacher": "trials have none; it is released once, in the final run",
    "tuning": "a search can't search itself",
}


def configure(search: Search, settings: Settings, fractions: Fractions | None = None) -> Config:
    """Return the configuration with `settings` in place; InputError where they don't fit it.

    fractions: of labels, where they were released.
    """
    tree = copy.deepcopy(search.tree)
    for key, value in settings.items():
        put(tree, key, value, f"tuning.space.{key}")
    config = Config.from_dict(tree)
    config.refuse_private_sums("a search")
    if fractions is None:
        return config
    privacy = config.privacy.model_copy(update={"label_fractions": fractions})
    return config.model_copy(update={"privacy": privacy})


def trial_id(settings: Settings) -> str:
    """Return a name that depends on the settings alone, so a repeated trial is the same trial."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def refuse_fixed(search: Search) -> None:
    """Raise InputError for the first key that can't be searched."""
    for key in search.tuning.space:
        block = key.partition(".")[0]
        if block in _FIXED:
            raise InputError(f"tuning.space.{key}: can't be searched: {_FIXED[block]}")


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

    All combinations where they are few; else some, in which every value occurs.
    """
    values = {
        key: domain if isinstance(domain, tuple) else _probe(domain)
        for key, domain in search.tuning.space.items()
    }
    if math.prod(map(len, values.values())) <= _MOST_CHECKED:
        yield from _combine(values)
        return
    for step in range(max(map(len, values.values()))):
        yield {key: some[step % len(some)] for key, some in values.items()}


def _probe(domain: Range) -> tuple[float | int, ...]:
    """Return both ends and a number between them, not a whole one unless the range is `integer`."""
    within = domain.low + 0.381966 * (domain.high - domain.low)
    return tuple(_number(value, domain) for value in (domain.low, domain.high, within))


def _combine(values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _number(value: float, domain: Range) -> float | int:
    """Round to 6 digits, inside the range."""
    if domain.integer:
        return round(value)
    return float(f"{min(max(value, domain.low), domain.high):.6g}")


def ray_space(search: Search) -> dict[str, Any]:
    """Return the space for Ray Tune, with choices as JSON."""
    from ray import tune

    space: dict[str, Any] = {}
    for key, domain in search.tuning.space.items():
        if isinstance(domain, tuple):
            space[key] = tune.choice([json.dumps(value) for value in domain])
        elif domain.integer:
            among = tune.lograndint if domain.log else tune.randint
            space[key] = among(int(domain.low), int(domain.high) + 1)
        else:
            among = tune.loguniform if domain.log else tune.uniform
            space[key] = among(domain.low, domain.high)
    return space


def distinct_points(search: Search) -> list[dict[str, Any]] | None:
    """Return what a random search tries, without repeats, which would tell nothing new.

    None where there are ranges, or too many combinations.
    """
    shown: dict[str, tuple[str, ...]] = {}
    for key, domain in search.tuning.space.items():
        if isinstance(domain, Range):
            return None
        shown[key] = tuple(dict.fromkeys(json.dumps(value) for value in domain))
    if math.prod(map(len, shown.values())) > _MOST_COMBINATIONS:
        return None
    points = list(_combine(shown))
    return Random(search.tuning.seed).sample(points, min(search.tuning.num_trials, len(points)))


def settings_of(search: Search, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that Ray Tune chose."""
    settings: dict[str, Any] = {}
    for key, domain in search.tuning.space.items():
        if isinstance(domain, Range):
            settings[key] = _number(float(chosen[key]), domain)
        else:
            settings[key] = json.loads(chosen[key])
    return settings
