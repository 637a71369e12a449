"""The verb that tries all that a run needs, and spends nothing: check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pe_ray.cli.printing import (
    PRIVATE,
    AddVerb,
    add_address,
    add_config,
    add_json,
    print_json,
    use_address,
)
from pe_ray.config import Config
from pe_ray.config.yaml_tree import read_tree
from pe_ray.errors import FaultError, InputError

if TYPE_CHECKING:
    from pe_ray.private.checking import TableReport
    from pe_ray.tuning.search import Search

_READ = "{} could be read to its end"  # which a table with bad rows can be as well
_SHOWN = 5  # sizes in one line
_LONGEST = 400  # characters of another library's error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """Something that a run needs. fault: why it would not get it, None where it would."""

    what: str
    fault: str | None


class _Checks(list[_Check]):
    """The checks that were made, in order."""

    def make(self, what: str, check: Callable[[], Any]) -> Any:
        """Make a check and note how it ended; return what it returns, None where it failed."""
        found, fault = None, None
        try:
            found = check()
        except (InputError, FaultError) as error:
            fault = str(error)
        except Exception as error:  # a plugin may fail in any way, and other checks go on
            cause = getattr(error, "cause", None) or error
            fault = f"{what}: failed ({type(cause).__name__}: {cause})"[:_LONGEST]
        self.append(_Check(what=what, fault=fault and " ".join(fault.split())))
        return found

    @property
    def all_well(self) -> bool:
        return all(check.fault is None for check in self)


def add_verbs(verb: AddVerb) -> None:
    """Add check."""
    check = verb(
        "check",
        _check,
        "Read all that a run would read and try all that it needs; keep the output secret.",
        "digits.yaml",
    )
    add_config(check)
    add_json(check)
    add_address(check)


def _check(options: argparse.Namespace) -> None:
    search = None
    if "tuning" in read_tree(options.config, options.set):
        from pe_ray.tuning.search import Search

        search = Search.from_yaml(options.config, options.set)
        config = use_address(search.config, options.address)
        search = replace(search, config=config)
    else:
        config = use_address(Config.from_yaml(options.config, options.set), options.address)
    print(PRIVATE, file=sys.stderr)
    checks, reports = _Checks(), []
    installed = _check_packages(checks, config, search)
    _check_settings(checks, config, search)
    with ExitStack() as stack:
        from pe_ray.runtime.cluster import connect_to_ray

        connected = connect_to_ray(config.resources, config.private.node_label)
        checks.make("Ray", lambda: stack.enter_context(connected))
        if checks[-1].fault is None:
            reports = _read_data(checks, config, search)
            if config.privacy.account is not None:
                checks.make("privacy.account", lambda: _check_account(config, search))
            if installed:
                _try_parts(checks, config, search, reports)
    skipped = _name_skipped(checks, installed)
    faults = sum(check.fault is not None for check in checks) + sum(map(_count_faults, reports))
    if options.json:
        print_json(
            {
                "well": not faults,
                "num_faults": faults,
                "data": [asdict(report) for report in reports],
                "checks": [asdict(check) for check in checks],
                "not_checked": skipped,
            }
        )
    else:
        _print_lines(checks, reports, skipped)
    if faults:
        raise InputError(f"check: {faults:,} found, each in a line above; nothing was spent")


def _check_packages(checks: _Checks, config: Config, search: Search | None) -> bool:
    """Return whether everything is installed that the configuration needs."""
    from pe_ray.config.extras import require_extras

    checks.make("installed packages", lambda: require_extras(config))
    if search is not None:
        checks.make("packages of the search", lambda: require_extras(search.tuning, "tuning"))
    return checks.all_well


def _check_settings(checks: _Checks, config: Config, search: Search | None) -> None:
    """Check what needs neither Ray nor data."""
    from pe_ray.planning import plan, require_affordable
    from pe_ray.runtime.run_directory import require_disk

    def check_cost() -> int:
        made = plan(config)
        require_affordable(made)
        return made.disk_bytes

    if search is not None:
        from pe_ray.tuning.checks import check_search

        checks.make("search", lambda: check_search(search))
    disk_bytes = checks.make("budget", check_cost)
    directory = checks.make("output.path", lambda: _check_output(config, search))
    if disk_bytes is not None and directory is not None:
        checks.make("disk", lambda: require_disk(directory.path, disk_bytes, "output.path"))


def _check_output(config: Config, search: Search | None) -> Any:
    """Return the run directory, if this configuration may begin or continue there."""
    from pe_ray.release.evidence import require_newest
    from pe_ray.release.ledger import Ledger
    from pe_ray.runtime.run_directory import check_directory

    if search is not None:
        from pe_ray.tuning import tune

        return tune.check_directory(search)
    directory = check_directory(config)
    if directory.has_ledger:
        ledger = Ledger.open(directory.ledger)
        if ledger.charged or not directory.is_bare:
            ledger.require_terms(config.privacy.budget, config.fingerprint)
            require_newest(ledger, directory, config)
    return directory


def _check_account(config: Config, search: Search | None) -> None:
    """Ask the account of the data set whether it would let this spend."""
    from pe_ray.planning import plan_releases
    from pe_ray.release.reservation import check_reservation
    from pe_ray.runtime.run_directory import LEDGER, ledger_folder

    ledger = ledger_folder(config) / LEDGER
    if search is None:
        check_reservation(config, ledger, "run", plan_releases(config))
    else:
        from pe_ray.tuning.budget import reserved_releases

        check_reservation(config, ledger, "search", reserved_releases(search))


def _read_data(checks: _Checks, config: Config, search: Search | None) -> list[TableReport]:
    """Read the private records and all public images."""
    from pe_ray.private.checking import check_cache, check_records, check_table
    from pe_ray.synthetic.scoring import public_tables

    seconds = config.resources.stall_seconds
    checks.make("private.cache", lambda: check_cache(config.private))
    reports = [
        checks.make(
            _READ.format("private.data"),
            lambda: check_records(config.private, config.framing, seconds),
        )
    ]
    tables = public_tables(config)
    if search is not None:
        tables += search.public_tables()
    for table, framing in tables:
        read = partial(check_table, table, framing, seconds)
        reports.append(checks.make(_READ.format(table.name_field("data")), read))
    return [report for report in reports if report is not None]


def _try_parts(
    checks: _Checks, config: Config, search: Search | None, reports: Sequence[TableReport]
) -> None:
    """Build generators and embedder where they will run, and use metrics once."""
    from pe_ray.private.checking import try_embedder
    from pe_ray.runtime.workers import check_plugins
    from pe_ray.synthetic.denoising import try_denoisers
    from pe_ray.synthetic.export import try_export
    from pe_ray.synthetic.scoring import try_metrics
    from pe_ray.synthetic.teacher import try_teacher

    labels, resources = config.private.labels, config.resources
    for plugin in config.generators:
        build = partial(check_plugins, [plugin], labels, resources)
        checks.make(f"generator {plugin.kind}", build)
    embedder = config.embedder
    if not embedder.options.learnt:
        name = f"embedder {embedder.kind}"
        checks.make(name, lambda: check_plugins([embedder], labels, resources))
        if checks[-1].fault is None:
            checks.make(f"{name} on a blank image", lambda: try_embedder(config))
    checks.make("selection.denoise", lambda: try_denoisers(config))
    checks.make("export", lambda: try_export(config))
    if config.teacher is not None:
        checks.make("teacher", lambda: try_teacher(config))
    if checks.all_well and not any(map(_count_faults, reports)):
        # Else these would end at what is reported already.
        if config.metrics.public is not None:
            checks.make("metrics.public", lambda: try_metrics(config))
        if search is not None:
            from pe_ray.tuning.checks import check_parts

            checks.make("parts of trials", lambda: check_parts(search))


def _name_skipped(checks: Sequence[_Check], installed: bool) -> list[str]:
    """Name what could not be checked because something else failed."""
    made = [check.what for check in checks]
    if _READ.format("private.data") not in made:
        return ["data and plugins, which need Ray"]
    if not installed:
        return ["generators, embedder and metrics, which need what is refused above"]
    return []


def _count_faults(report: TableReport) -> int:
    return report.num_faults + report.num_duplicates


def _print_lines(
    checks: Sequence[_Check], reports: Sequence[TableReport], skipped: Sequence[str]
) -> None:
    for report in reports:
        _print_report(report)
    for check in checks:
        print(f"{'good' if check.fault is None else 'bad':<12}{check.fault or check.what}")
    for what in skipped:
        print(f"{'not checked':<12}{what}")


def _print_report(report: TableReport) -> None:
    users = "" if report.users is None else f" of {report.users:,} users"
    print(f"files       {report.field}: {report.summary}")
    print(f"records     {report.field}: {report.records:,}{users} can be used")
    for name, count in report.labels.items():
        print(f"label       {name}: {count:,}")
    shown = [f"{count:,} of {h}x{w}" for h, w, count in report.sizes[:_SHOWN]]
    more = report.num_sizes - len(shown)
    print(f"sizes       {', '.join(shown)}{f', and {more:,} other sizes' if more else ''}")
    print(f"modes       {', '.join(f'{count:,} {mode}' for mode, count in report.modes.items())}")
    for fault in report.faults:
        print(f"bad         {report.field}: {fault.place}: {fault.reason}")
    _print_unlisted(report.num_faults - len(report.faults), "bad files or rows")
    for group in report.duplicates:
        print(
            f"bad         {report.field}: {', '.join(group)} have the same content; remove all but "
            "one, or set private.duplicates: allow if all are records"
        )
    _print_unlisted(report.num_duplicates - len(report.duplicates), "groups of equal files")


def _print_unlisted(number: int, what: str) -> None:
    if number:
        print(f"bad         {number:,} more {what}, not listed")
