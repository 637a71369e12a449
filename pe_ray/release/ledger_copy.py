"""The copy of a ledger that lies beside a run in an object store, for readers.

Only the ledger on the driver's disk is charged. A run writes nothing that it made from a release
before the copy holds that release.
"""

from __future__ import annotations

import numpy as np

from pe_ray.errors import InputError
from pe_ray.files.storage import ObjectPath, atomic_write, fetch_copy, io_errors_as_input_errors
from pe_ray.release.ledger import Ledger


def update_copy(ledger: Ledger, copy: ObjectPath | None) -> None:
    """Bring `copy` up to date with `ledger`; nothing where there is none to keep.

    Guarantee: the copy never loses a release: InputError where it has one that `ledger` lacks,
    as after a ledger was restored from an old backup, or where two machines run the same run.
    """
    if copy is None:
        return
    with io_errors_as_input_errors("output.path", copy):
        if copy.exists():
            file = fetch_copy(copy)
            try:
                included = _includes(ledger, Ledger.open(file))
            finally:
                file.unlink()
            if not included:
                raise InputError(
                    f"output.ledger: its ledger lacks a release that {copy} has; give the newer "
                    "ledger, since what was spent is spent, and run on one machine only"
                )
        atomic_write(copy, ledger.copied())


def _includes(ledger: Ledger, other: Ledger) -> bool:
    """Tell whether every release charged in `other` is in `ledger`, with the same answer."""
    if not other.charged:
        return True
    if (ledger.budget, ledger.fingerprint) != (other.budget, other.fingerprint):
        return False
    charged = {entry.release.key: entry.release for entry in ledger.entries()}
    for entry in other.entries():
        release = entry.release
        if charged.get(release.key) != release:
            return False
        ours, theirs = ledger.stored(release.key), other.stored(release.key)
        if theirs is not None and (ours is None or not np.array_equal(ours, theirs)):
            return False
    return True
