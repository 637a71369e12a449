"""Verbs that plan, make and use a run: plan, run, expand, label."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Thread

from pe_ray.cli.inputs import find_address_warnings, plan_inputs, print_inputs
from pe_ray.cli.printing import (
    AddVerb,
    add_address,
    add_config,
    add_json,
    add_resources,
    add_run,
    add_trust,
    parse_count,
    print_json,
    say_score,
    say_time,
    state_claim,
    use_address,
)
from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.run_config import read_resources
from pe_ray.config.yaml_tree import read_tree
from pe_ray.runtime.events import Event, announce


def add_verbs(verb: AddVerb) -> None:
    """Add plan, run, expand and label."""
    plan = verb(
        "plan",
        _plan,
        "Validate a configuration and print what a run would cost.",
        "digits.yaml --set privacy.epsilon=2",
    )
    add_config(plan)
    add_json(plan)
    plan.add_argument(
        "--records",
        type=parse_count,
        metavar="N",
        help="about how many records (or users) there are, if that is public: warn where they are "
        "too few for the noise",
    )

    run = verb("run", _run, "Start a run, or continue it after any interruption.", "digits.yaml")
    add_config(run)
    run.add_argument(
        "--rehearse",
        action="store_true",
        help="run it small, with random networks and random images in the place of weights, data "
        "and services, in a new temporary folder; spends nothing",
    )
    add_address(run)

    expand = verb(
        "expand",
        _expand,
        "Write further variations of a run's final population.",
        "runs/digits --num-samples 1e6 --output more",
    )
    add_run(expand)
    expand.add_argument(
        "--num-samples",
        type=parse_count,
        metavar="N",
        help="such as 1e6; a larger N continues (default: the final set itself, unvaried)",
    )
    expand.add_argument(
        "--per-label",
        action="append",
        default=[],
        type=_parse_label_count,
        metavar="LABEL=N",
        help="rows of a label, instead of --num-samples; may be repeated, other labels get none",
    )
    expand.add_argument(
        "--drop-failed",
        action="store_true",
        help="leave out images of one colour, and variations equal to the sample that they vary",
    )
    expand.add_argument(
        "--drop-near-duplicates",
        type=float,
        default=0.0,
        metavar="LEVELS",
        help="leave out images that differ from that sample, or from a row before them in their "
        "file, by less than so many grey levels (root mean square)",
    )
    expand.add_argument("--output", required=True, metavar="DIR", help="folder for the samples")
    add_resources(expand)
    expand.add_argument(
        "--format",
        default="parquet",
        metavar="KIND",
        help="parquet (default), webdataset, folder or module:Class",
    )
    add_trust(expand)
    add_address(expand)

    label = verb(
        "label",
        _label,
        "Write a run's teacher's labels and scores of any images.",
        "runs/digits data/others --output labels.parquet",
    )
    add_run(label)
    label.add_argument("images", metavar="IMAGES", help="file or folder, as private.data")
    label.add_argument("--output", required=True, metavar="FILE", help="parquet file to write")
    label.add_argument(
        "--image-column", default="image", metavar="NAME", help="as private.image_column"
    )
    add_resources(label)
    add_trust(label)
    add_address(label)


def _plan(options: argparse.Namespace) -> None:
    from pe_ray.planning import plan, plan_workers, warn_of_few_votes, worker_seconds
    from pe_ray.release.releases import kind_of
    from pe_ray.runtime.run_directory import ledger_folder

    if "tuning" in read_tree(options.config, options.set):
        from pe_ray.cli.tune_verbs import print_cost
        from pe_ray.tuning.search import Search

        print_cost(Search.from_yaml(options.config, options.set), options.json)
        return
    config = Config.from_yaml(options.config, options.set)
    ledger_folder(config)
    files = plan_inputs(config)
    made, sizes = plan(config), config.schedule.sizes
    seconds = worker_seconds(config, made.calls)
    workers = plan_workers(config.resources)
    wall = seconds / workers if seconds is not None and workers else None
    warnings = [warning for each in config.generators for warning in each.options.find_warnings()]
    warnings += find_address_warnings(config.resources.address)
    warnings += warn_of_few_votes(config, made, options.records)
    if options.json:
        print_json(
            {
                "epsilon": made.epsilon,
                "delta": made.delta,
                "unit": made.unit,
                "releases": [release.as_tree() for release in made.releases],
                "calls": {"random": made.random_calls, "variation": made.variation_calls},
                "lifted_by_1000_units": made.count_lifted(1000),
                "images": {"populations": sum(sizes)},
                "disk_bytes": made.disk_bytes,
                "worker_seconds": seconds,
                "workers": workers,
                "wall_seconds": wall,
                "bills": [asdict(bill) for bill in made.bills],
                "warnings": warnings,
                "data": [asdict(read) for read in files],
            }
        )
        return
    print_inputs(files)
    print(f"guarantee   {state_claim(made.epsilon, made.delta, made.unit)}")
    for release in made.releases:
        what = kind_of(release).describe(release)
        print(f"release     {what}: sigma {release.sigma:g}, sensitivity {release.sensitivity:g}")
    print(
        f"votes       1,000 {made.unit}s lift at most {made.count_lifted(1000):,.0f} of "
        f"{max(sizes[:-1]):,} samples above the noise (2 sigma)"
    )
    print(f"calls       {made.random_calls:,} random, {made.variation_calls:,} variation")
    print(f"images      {sum(sizes):,} in {len(sizes)} populations")
    print(f"disk        {made.disk_bytes / 2**20:,.1f} MiB at most")
    for bill in made.bills:
        name = bill.kind if bill.field == "generator" else bill.field
        print(
            f"cost        {name}: {bill.calls:,} calls, {bill.cost:,.2f}; caps: "
            f"{bill.max_calls:,} calls, {bill.max_cost:,.2f}"
            + ("" if bill.affordable else ": NOT ENOUGH, the run would not start")
        )
    for warning in warnings:
        print(f"warning     {warning}")
    if seconds is not None:
        shared = f"at least {say_time(wall)} on {workers} workers, " if wall is not None else ""
        print(
            f"time        {shared}{seconds:,.1f} worker seconds of generation on this machine's CPU"
        )
    elif made.bills:
        print("time        not estimated: the service decides, and a call to it costs")
    else:
        print("time        not estimated: the generator needs a GPU; time a short run there")


def _run(options: argparse.Namespace) -> None:
    config = use_address(Config.from_yaml(options.config, options.set), options.address)
    if options.rehearse:
        _rehearse(config)
        return
    announce(f"running {options.config} into {config.output.path}")
    from pe_ray.evolution import evolve
    from pe_ray.report import write_report
    from pe_ray.report.run_status import read_status

    started = time.monotonic()
    path = evolve(config, on_event=_import_while_ray_starts)
    print(f"report      {write_report(path)}")
    print(f"synthetic   {path / 'synthetic'}")
    status = read_status(path)
    for name, score in status["scores"].items():
        print(f"score       {name}: {say_score(score, status['better'].get(name))}")
    print(f"spent       {state_claim(**status['spent'])} (from the ledger)")
    print(f"time        {time.monotonic() - started:.1f} s")


def _import_while_ray_starts(event: Event) -> None:
    """Import what the report needs while the driver has nothing to do."""
    if event.kind == "phase" and event.name.startswith("starting Ray"):
        Thread(target=import_module, args=["matplotlib.figure"], daemon=True).start()


def _rehearse(config: Config) -> None:
    # Nothing may reach a cluster or a hub, here or in workers.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from pe_ray.config.extras import require_extras
    from pe_ray.config.rehearsal import rehearse
    from pe_ray.evolution import evolve
    from pe_ray.report import write_report

    require_extras(config)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pe-ray-rehearsal-"))
    announce(f"rehearsing in {folder}, which you may delete afterwards")
    path = evolve(rehearse(config, folder))
    print(f"report      {write_report(path)}")
    print(f"rehearsed   {path}: random networks and images, nothing spent")
    print(f"time        {time.monotonic() - started:.1f} s")


def _expand(options: argparse.Namespace) -> None:
    from pe_ray.expansion import expand
    from pe_ray.files.parts import list_parts

    resources = _read_resources(options)
    path = expand(
        options.run,
        options.num_samples,
        options.output,
        resources,
        options.format,
        per_label=dict(options.per_label),
        drop_failed=options.drop_failed,
        drop_near_duplicates=options.drop_near_duplicates,
    )
    print(f"synthetic   {path}")
    if options.format == "webdataset":
        last = len(list_parts(path)) - 1
        print(f"shards      {path / f'part-{{000000..{last:06d}}}.tar'}")


def _parse_label_count(text: str) -> tuple[str, int]:
    label, separator, count = text.rpartition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=N")
    return label, parse_count(count)


def _label(options: argparse.Namespace) -> None:
    from pe_ray.labelling import label_images

    resources = _read_resources(options)
    path = label_images(
        options.run, options.images, options.output, resources, options.image_column
    )
    print(f"labels      {path}")


def _read_resources(options: argparse.Namespace) -> ResourcesConfig:
    address = {} if options.address is None else {"address": options.address}
    return read_resources(options.set).model_copy(update=address)
