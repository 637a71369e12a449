"""Arguments and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from pe_ray.config import Config

Command = Callable[[argparse.Namespace], None]
AddVerb = Callable[[str, Command, str, str], argparse.ArgumentParser]
"""(name, command, help, example of its arguments) -> the parser of a new verb."""

PRIVATE = "PRIVATE: computed on private records without noise; do not publish"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and --set."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="block.key=value",
        help="replace one value of CONFIG; may be repeated",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add RUN."""
    parser.add_argument("run", metavar="RUN", help="run directory, the run's output.path")


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add --set, for resources alone."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="resources.key=value",
        help="what this may use, as in a configuration; may be repeated",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust-plugins, for verbs that open a run."""
    parser.add_argument(
        "--trust-plugins",
        action="store_true",
        help="import plugins that RUN names and that are not built in: they run as you",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add --address."""
    parser.add_argument(
        "--address",
        help="of a Ray cluster (auto: the one on this machine); default: resources.address",
    )


def use_address(config: Config, address: str | None) -> Config:
    """Return `config` with the given --address, if there is one."""
    if address is None:
        return config
    resources = config.resources.model_copy(update={"address": address})
    return config.model_copy(update={"resources": resources})


def parse_count(text: str) -> int:
    """Read a whole number as people write it: 1000000, 1_000_000, 1,000,000 or 1e6."""
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(number)


def state_claim(epsilon: float, delta: float, unit: str) -> str:
    """Return the privacy claim in words."""
    if math.isinf(epsilon):
        return "epsilon inf: no noise, NOT private"
    return f"epsilon {epsilon:.6g}, delta {delta:g}, adding or removing one {unit}"


def say_score(score: float, better: str | None) -> str:
    """Return a score with what is better, where that is known."""
    return f"{score:.4g}" + (f" ({better} is better)" if better else "")


def say_time(seconds: float) -> str:
    """Return a time in words."""
    for name, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} seconds"


def print_json(tree: Any) -> None:
    """Print JSON without the non-standard Infinity: an infinite epsilon is the string "inf"."""

    def standard(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        if isinstance(value, dict):
            return {key: standard(below) for key, below in value.items()}
        return [standard(below) for below in value] if isinstance(value, list | tuple) else value

    print(json.dumps(standard(tree), indent=2))
