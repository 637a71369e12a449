"""Verbs that measure a run's quality and its privacy claim from the inside: audit, attack."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from pe_ray.cli.printing import (
    PRIVATE,
    AddVerb,
    add_address,
    add_config,
    add_json,
    add_resources,
    add_run,
    add_trust,
    print_json,
    say_score,
    state_claim,
    use_address,
)
from pe_ray.config import Config
from pe_ray.config.kinds import MetricPlugin, Plugin, better_scores, check_metric
from pe_ray.config.run_config import read_resources
from pe_ray.config.yaml_tree import name_faults, read_value
from pe_ray.errors import InputError
from pe_ray.files.storage import expand_home

if TYPE_CHECKING:
    from pe_ray.auditing.game import Verdict
    from pe_ray.run_context import RunContext


def add_verbs(verb: AddVerb) -> None:
    """Add audit and attack."""
    audit = verb(
        "audit",
        _audit,
        "Score a finished run on private records; keep the output secret.",
        "runs/digits --metric frechet --metric classifier",
    )
    add_run(audit)
    audit.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="KIND",
        help="score by this instead of metrics.audit: frechet, classifier, ..., or "
        "'{kind: KIND, option: value}'; may be repeated",
    )
    audit.add_argument(
        "--privacy",
        action="store_true",
        help="compare records that voted with held-out ones (metrics.audit_data, audit_where)",
    )
    audit.add_argument(
        "--num-records", type=int, metavar="N", help="of either, with --privacy (default: 5000)"
    )
    audit.add_argument(
        "--no-lookahead",
        action="store_true",
        help="with --privacy: don't draw the variations of votes.lookahead again, at a run's cost",
    )
    add_resources(audit)
    add_trust(audit)
    attack = verb(
        "attack",
        _attack,
        "Run CONFIG on canaries instead of private data; measure what it reveals about them.",
        "digits.yaml --output attacks/digits",
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
    for added in (audit, attack):
        add_address(added)
        add_json(added)


def _audit(options: argparse.Namespace) -> None:
    from pe_ray.private.evaluation import audit
    from pe_ray.release.evidence import open_run

    given = (options.num_records is not None, options.no_lookahead, options.set, options.address)
    if any(given) and not options.privacy:
        raise InputError("--privacy: the other options belong to it; give it, or leave them out")
    if options.metric and options.privacy:
        raise InputError("--metric: doesn't go with --privacy; give one of the two")
    run = open_run(options.run)
    if options.metric:
        audited = tuple(_read_metric(text, run.config) for text in options.metric)
        metrics = run.config.metrics.model_copy(update={"audit": audited})
        run = replace(run, config=run.config.model_copy(update={"metrics": metrics}))
    if options.privacy:
        config = run.config.model_copy(update={"resources": read_resources(options.set)})
        run = replace(run, config=use_address(config, options.address))
        _print_score(run, options)
        return
    scores = audit(run)
    if options.json:
        print_json(scores)
        return
    print(PRIVATE, file=sys.stderr)
    better = better_scores(run.config.metrics.audit, scores)
    for name, score in scores.items():
        print(f"{name:<28}{say_score(score, better.get(name))}")


def _read_metric(text: str, config: Config) -> Plugin:
    """Return the metric of one --metric; InputError where the run can't be scored by it."""
    value = read_value(text, "--metric")
    try:
        metric: Plugin = TypeAdapter(MetricPlugin).validate_python(value)
    except ValidationError as error:
        raise name_faults(error, value, "--metric: ") from None
    num_labels = len(config.private.labels)
    check_metric("--metric", metric, num_labels=num_labels, num_images=config.num_final)
    return metric


def _print_score(run: RunContext, options: argparse.Namespace) -> None:
    from pe_ray.auditing.privacy_score import score_privacy

    score = score_privacy(run, options.num_records, lookahead=not options.no_lookahead)
    if options.json:
        print_json(score)
        return
    print(PRIVATE, file=sys.stderr)
    units, controls, nearer = score["units"], score["controls"], score["distances"]["nearer"]
    print(
        "{unit}s     {voted:,} that voted, {held_out:,} held out ({held_out_dropped:,} dropped, "
        "they voted too)".format(**score, **units)
    )
    print(
        "{unit}s     {voted_compared:,} and {held_out_compared:,} have samples of their own".format(
            **score, **units
        )
    )
    print(f"control     who voted, from the {score['unit']}s alone: {_area(controls['records'])}")
    print(f"control     who voted, from S_0: {_area(controls['first_population'])}")
    noise = " ".join("none" if rms is None else f"{rms:.3f}" for rms in controls["noise"])
    print(f"control     noise over what sigma gives, by iteration: {noise}")
    closest, near = score["distances"]["closest"], score["near_copies"]
    print(
        "images      {share:.1%} are nearer to a record that voted; by chance {low:.1%} to "
        "{high:.1%}".format(**nearer)
    )
    print(
        "images      the closest 5 % are within {voted:.4g} of records that voted, {held_out:.4g} "
        "of held-out ones".format(**closest)
    )
    print(
        f"near        {near['number']:,} images; {near['expected']:.3g} of as many held-out records"
    )
    for number, distance in near["images"]:
        print(f"near        image {number}: {distance:.3f} of a near-copy's distance")
    print(f"claimed     {state_claim(score['epsilon'], score['delta'], score['unit'])}")
    rates = [name for name in score["allowed"] if name != "auc"]
    print(f"claimed     {_area(score['allowed'])}{_hits(score['allowed'], rates)} at most")
    for name, found in score["channels"].items():
        bound = "" if found["epsilon"] is None else f", epsilon at least {found['epsilon']:.3g}"
        above = "  ABOVE THE CLAIM" if found["above"] else ""
        print(f"{name:<12}{_area(found)}{_hits(found, rates)}{bound}{above}")
        for label, some in found["by_label"].items():
            if some is not None:
                print(f"  {label:<10}{_area(some)}")


def _area(found: Mapping[str, float]) -> str:
    interval = " ({low:.3f} to {high:.3f})".format(**found) if "low" in found else ""
    return f"AUC {found['auc']:.3f}{interval}"


def _hits(found: Mapping[str, float], rates: Sequence[str]) -> str:
    shown = (f", {found[name]:.2%} hits at {name[8:]}" for name in rates if name in found)
    return "".join(shown)


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
