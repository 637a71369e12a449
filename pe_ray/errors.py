"""Errors a user can act on.

Each is one line that says where, what is wrong and how to correct it. No error quotes a private
value. The command line turns them into exit status 2.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (configuration, data, path, budget) can't be used."""


class RecordError(InputError):
    """A private record, or a file of them, can't be used. Names shard and row, never content."""


class FaultError(RuntimeError):
    """More workers died or hung than one start makes up for. The same command continues."""

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.args[0]}; nothing is lost: the same command continues"


class BudgetError(InputError):
    """A release was refused because it would overspend the privacy budget."""
