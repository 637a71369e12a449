"""What a run reserves in the account of its data set, and what it gives back."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.private.data_set import digest_data
from pe_ray.release.account import Account, Entry
from pe_ray.release.adaptive import cost_of, largest_cost
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import current_time
from pe_ray.values import Release

Kind = Literal["run", "search"]


def reserve(config: Config, ledger: Ledger, kind: Kind, releases: Sequence[Release] | None) -> None:
    """Reserve in `privacy.account` all that a run may cost; do nothing where none is named.

    releases: all that it will charge. None: whatever a ledger allows that composes adaptively.

    Guarantee: whatever dies at any moment, the ledger charges no more than what the account holds
    for it, if its directory is locked, as it is for `give_back`. A run reserves once, however often
    it starts, and nothing when it is finished. Raises InputError before anything is spent where
    the policy leaves no room, and for another unit or data set.
    """
    if config.privacy.account is None:
        return
    account = Account(config.privacy.account)
    run, charged = ledger.hold()
    known = _find(account, ledger.path, run, charged)
    if known and known.state == "finished":
        return
    entry = _make_entry(config, ledger.path, run, kind, charged, releases)
    if known and known.state == "reserved":
        entry = replace(entry, reserved_at=known.reserved_at)
    account.reserve(entry, digest_config(config))
    ledger.allow(entry.cost)


def check_reservation(
    config: Config, ledger: Path, kind: Kind, releases: Sequence[Release] | None
) -> None:
    """Raise InputError where `reserve` would; change nothing. ledger: may not exist yet."""
    account, run, charged = Account(config.privacy.account or ""), "", []
    if ledger.exists():
        opened = Ledger.open(ledger)
        run = opened.account_run or ""
        charged = [entry.release for entry in opened.entries()]
    known = _find(account, ledger, run, charged)
    if not (known and known.state == "finished"):
        entry = _make_entry(config, ledger, run, kind, charged, releases)
        account.check(entry, digest_config(config))


def settle(config: Config, ledger: Ledger) -> None:
    """Give back to `privacy.account` what a finished run didn't use."""
    if config.privacy.account is not None:
        give_back(Account(config.privacy.account), ledger, "finished")


def give_back(account: Account, ledger: Ledger, state: Literal["finished", "closed"]) -> Entry:
    """Let the account hold no more for a run than it has charged; return its entry.

    A run that has charged nothing gives back all; another one, what its composition allows (see
    release.account). It charges nothing more, unless it starts and reserves again.

    Guarantee: sound at any moment, whatever worker of the run may still live, if its directory is
    locked.
    """
    run, charged = ledger.hold()
    known = _find(account, ledger.path, run, charged)
    if known is None:
        raise InputError(f"{account.path}: holds nothing for the run of {ledger.path}")
    if known.state == "finished":
        return known
    entry = replace(
        known,
        cost=cost_of(charged),
        releases=len(charged),
        state=state,
        settled_at=current_time(),
    )
    if not charged:
        entry = replace(entry, epsilon=0.0, delta=0.0)
    account.settle(entry)
    return entry


def digest_config(config: Config) -> set[str]:
    """Return what the data set of `config` is recognised by."""
    return digest_data(config.private, config.privacy.unit, config.resources.stall_seconds)


def _find(account: Account, ledger: Path, run: str, charged: Sequence[Release]) -> Entry | None:
    """Return what the account holds for a run; InputError for an older or a second ledger of it."""
    known = account.find(run)
    if known is None:
        return None
    if len(charged) < known.releases:
        raise InputError(
            f"output.path: {ledger} lacks releases that {account.path} knows of; give the newer "
            "ledger, since what was spent is spent"
        )
    first = Path(known.ledger)
    if first != ledger and first.exists() and Ledger.open(first).account_run == run:
        raise InputError(
            f"output.path: {ledger} is a copy of {first}, and both would spend what "
            f"{account.path} holds for one run; delete one of them"
        )
    return known


def _make_entry(
    config: Config,
    ledger: Path,
    run: str,
    kind: Kind,
    charged: Sequence[Release],
    releases: Sequence[Release] | None,
) -> Entry:
    privacy, keys = config.privacy, {release.key for release in charged}
    if releases is None:
        cost = largest_cost(privacy.budget)
    else:
        cost = cost_of([*charged, *(r for r in releases if r.key not in keys)])
    return Entry(
        run=run,
        spender=privacy.spender or _name_user(),
        kind=kind,
        ledger=str(ledger),
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        unit=privacy.unit,
        cost=cost,
        releases=len(charged),
        state="reserved",
        reserved_at=current_time(),
    )


def _name_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("privacy.spender: needed where the user has no login name") from None
