"""Verbs that measure a run's quality and its privacy claim from the inside: audit, attack."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from pe_ray.cli.printing import (
    PRIVATE,
    AddVerb,
    add_address,
    add_config,
    add_json,
    add_trust,
    print_json,
    use_address,
)
from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.files.storage import expand_home

if TYPE_CHECKING:
    from pe_ray.auditing.game import Verdict


def add_verbs(verb: AddVerb) -> None:
    """Add audit and attack."""
    audit = verb(
        "audit", _audit, "Score a finished run on private records; keep the output secret."
    )
    audit.add_argument("run", metavar="RUN")
    add_trust(audit)
    attack = verb(
        "attack",
        _attack,
        "Run CONFIG on canaries instead of private data; measure what it reveals about them.",
    )
    add_config(attack)
    attack.add_argument(
        "--output", required=True, type=expand_home, metavar="DIR", help="folder for this attack"
    )
    attack.add_argument(
        "--confidence", type=float, default=0.95, help="of the lower bounds (default: 0.95)"
    )
    attack.add_argument(
        "--restarts", type=int, default=1, help="restarts after the releases (default: 1)"
    )
    add_address(attack)
    for added in (audit, attack):
        add_json(added)


def _audit(options: argparse.Namespace) -> None:
    from pe_ray.private.evaluation import audit
    from pe_ray.release.evidence import open_run

    scores = audit(open_run(options.run))
    if options.json:
        print_json(scores)
        return
    print(PRIVATE, file=sys.stderr)
    for name, score in scores.items():
        print(f"{name:<28}{score:.4f}")


def _attack(options: argparse.Namespace) -> None:
    if not 0 < options.confidence < 1:
        raise InputError(f"--confidence: {options.confidence:g} is not between 0 and 1")
    if options.restarts < 0:
        raise InputError("--restarts: give 0 or more")
    config = use_address(Config.from_yaml(options.config, options.set), options.address)
    from pe_ray.auditing.game import judge, play
    from pe_ray.files.storage import atomic_write

    output = options.output
    verdict = judge(play(config, output, restarts=options.restarts), options.confidence)
    content = asdict(verdict) | {"refuted": verdict.refuted, "conclusive": verdict.conclusive}
    atomic_write(output / "attack.json", json.dumps(content, indent=2).encode())
    if options.json:
        print_json(content)
        return
    print(f"canaries    {verdict.num_canaries:,} ({verdict.unit}s), {verdict.num_included:,} in")
    print(f"claimed     epsilon {verdict.claimed:.4g} at delta {verdict.delta:g}, from the ledger")
    for bound in verdict.bounds:
        print(f"bound       epsilon {bound.epsilon:.4g}: {bound.statistic}, {bound.method}")
    print(
        f"measured    epsilon at least {verdict.measured:.4g}, with confidence "
        f"{verdict.confidence:g}"
    )
    print(f"measured    epsilon at least {verdict.assumption_free:.4g}, assumption-free")
    print(f"verdict     {_conclude(verdict)}")


def _conclude(verdict: Verdict) -> str:
    if verdict.refuted:
        return "the claim IS REFUTED"
    if verdict.conclusive:
        return "the claim stands"
    return (
        f"inconclusive: with every guess right, {verdict.num_canaries:,} canaries measure epsilon "
        f"{verdict.measurable:.4g} at most; take more samples in S_0 (schedule.num_samples)"
    )
