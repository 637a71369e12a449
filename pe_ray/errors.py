"""Errors a user can act on.

Every one is a single line that says what is wrong, where, and how to mend it, and never quotes a
private value. The command line turns them into exit status 2.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (configuration, data, path, budget) can't be used."""


class RecordError(InputError):
    """A private record, or a file of them, can't be used; names shard and row, never content."""


class FaultError(RuntimeError):
    """More died or hung than is made up for within one start; the same command continues."""

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.args[0]}; nothing is lost: the same command continues"


class BudgetError(InputError):
    """A release was refused because it would overspend the privacy budget."""
