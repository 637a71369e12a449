"""Checks: each holds, finds what differs in which file, or could not be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pe_ray.errors import DamagedFileError, InputError

Step = tuple[str, Callable[[], Any]]
"""A file's path and what looks at it. That raises Differs or NotChecked. Text that it returns is
for readers."""


class Differs(Exception):
    """A file isn't what it should be. Its text says in what."""


class NotChecked(Exception):
    """Something can't be checked here. Its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a check ended. file: of the released folder, where it is about one."""

    what: str
    result: Literal["holds", "differs", "not checked"]
    file: str = ""
    why: str = ""


class Checks(list[Check]):
    """The checks that were made, in order."""

    def make(self, what: str, steps: Iterable[Step]) -> bool:
        """Take all steps of a check and note how each ended; return whether nothing differs."""
        ended, held, told = list[Check](), 0, list[str]()
        try:
            for file, look in steps:
                try:
                    found = look()
                    held += 1
                    told += [found] if isinstance(found, str) else []
                except NotChecked as error:
                    ended.append(Check(what=what, result="not checked", file=file, why=str(error)))
                except Exception as error:
                    ended.append(_find_fault(what, file, error))
        except Exception as error:  # while the next step was prepared
            ended.append(_find_fault(what, "", error))
        differs = any(check.result == "differs" for check in ended)
        if held and not differs:
            self.append(Check(what=what, result="holds", why="; ".join(told)))
        self.extend(ended)
        return not differs

    def pass_over(self, what: str, why: str) -> None:
        """Note something that is not checked."""
        self.append(Check(what=what, result="not checked", why=why))


def _find_fault(what: str, file: str, error: Exception) -> Check:
    """Note what was raised, which may be anything: a changed file may hold anything."""
    return Check(what=what, result="differs", file=file, why=_explain(error))


def _explain(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing" if error.filename else "is missing"
    if isinstance(error, DamagedFileError):
        return "isn't what was written there, by its digest"
    if isinstance(error, Differs | InputError):
        return " ".join(str(error).split())
    return f"can't be read ({type(error).__name__})"


def require(condition: bool, fault: str) -> None:
    """Raise Differs with `fault` unless `condition`."""
    if not condition:
        raise Differs(fault)
