"""The verb of a data set's account: account."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pe_ray.cli.printing import AddVerb, add_json, print_json, state_claim

if TYPE_CHECKING:
    from pe_ray.release.account import Account


def add_verbs(verb: AddVerb) -> None:
    """Add account."""
    account = verb(
        "account",
        _account,
        "Print what all runs on a data set spent of its privacy budget.",
        "patients.account --policy policy.yaml",
    )
    account.add_argument("file", metavar="FILE", help="the configurations' privacy.account")
    change = account.add_mutually_exclusive_group()
    change.add_argument(
        "--policy", metavar="YAML", help="make the account, or let this policy hold from now on"
    )
    change.add_argument(
        "--data", metavar="CONFIG", help="count the files of CONFIG's private.data in"
    )
    change.add_argument(
        "--close", metavar="RUN", help="give back what an abandoned run (its folder) didn't use"
    )
    add_json(account)


def _account(options: argparse.Namespace) -> None:
    from pe_ray.release.account import Account, describe, read_policy

    if options.policy is not None:
        account = Account.create(options.file, read_policy(options.policy))
    else:
        account = Account(options.file)
    if options.data is not None:
        _accept(account, options.data)
    if options.close is not None:
        _close(account, options.close)
    told = describe(account)
    if options.json:
        print_json(told)
        return
    guarantee, left = told["guarantee"], told["left"]
    print(f"guarantee   {state_claim(**guarantee)}: all runs together, however they were chosen")
    print(f"spent       epsilon {told['epsilon']:.6g} at delta {told['delta']:g}")
    print(
        f"left        about epsilon {left['epsilon']:.3g} at delta {left['delta']:g}, for one run"
    )
    print(f"composition {told['composition']}")
    for spender in told["spenders"]:
        print("spender     {name}: epsilon {epsilon:.6g} of {limit:g}".format(**spender))
    for run in told["runs"]:
        print(
            "{state:<12}{spender}, {kind}: epsilon {held:.6g}, {releases} releases seen, "
            "{time}, {ledger}".format(**run, time=run["settled_at"] or run["reserved_at"])
        )


def _accept(account: Account, path: str) -> None:
    from pe_ray.config import Config
    from pe_ray.release.reservation import digest_config
    from pe_ray.runtime.cluster import connect_to_ray

    config = Config.from_yaml(path)
    with connect_to_ray(config.resources, config.private.node_label):
        account.accept(digest_config(config))


def _close(account: Account, run: str) -> None:
    from pe_ray.release.ledger import Ledger
    from pe_ray.release.reservation import give_back
    from pe_ray.runtime.run_directory import lock_directory, on_disk

    directory = on_disk(run)
    ledger = Ledger.open(directory.ledger)
    with lock_directory(directory):
        give_back(account, ledger, "closed")
