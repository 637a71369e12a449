"""Errors a user can act on.

Each fault is one line that says where, what is wrong and how to correct it. No error quotes a
private value. The command line turns them into exit status 2.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (configuration, data, path, budget) can't be used.

    Its arguments are the faults, one line each; a configuration may have several.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    @property
    def faults(self) -> tuple[str, ...]:
        """Each fault by itself."""
        return tuple(map(str, self.args)) if len(self.args) > 1 else (str(self),)


class DamagedFileError(InputError):
    """A file of a run holds something else than what was written, and can be made again.

    file: its path or URI.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.file = file

    def __str__(self) -> str:
        return (
            f"{self.file}: is damaged; restore it from a copy, or delete it and repeat the command "
            "that made it, which makes it again"
        )


class RecordError(InputError):
    """A private record, or a file of them, can't be used. Names shard and row, never content."""


class FaultError(RuntimeError):
    """More workers died or hung than one start makes up for. The same command continues."""

    def __str__(self) -> str:
        return f"{self.args[0]}; nothing is lost: the same command continues"


class BudgetError(InputError):
    """A release was refused because it would overspend the privacy budget."""
