"""Names of a run's files: nothing else belongs into what is published."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from pe_ray.files.digests import locate_digest, read_with_digest
from pe_ray.verifying.findings import Checks, NotChecked, Step, require

_EVIDENCE = r"""
    config\.yaml | ledger\.sqlite
  | (histograms|smoothed)/iter=\d{4,}\.parquet
  | populations/iter=\d{4,}/(\.manifest\.json | part-\d+-\d+\.parquet)
"""
_WITH_DIGESTS = r"""
    scores/(source | teacher | iter=\d{4,})\.json
  | features/\w[\w.-]*\.npz
  | generator/sums\.npz | teacher/(features|weights|kept)\.npz
"""
_OTHERS = r"""
    files\.json | \.lock | report\.html | metrics\.jsonl
  | samples/iter=\d{4,}\.png | stages/embedding-\d{4,}\.json
  | synthetic/(\.manifest\.json | part-\d+-\d+\.parquet)
  | tensorboard/events\.out\.tfevents\.\d+
"""
_WHY_NOT = {
    "report.html": "`pe-ray report` makes it again",
    "metrics.jsonl": "`pe-ray report` makes it again",
    "samples": "`pe-ray report` makes them again",
    "tensorboard": "`pe-ray report` makes it again",
    "stages": "holds times of synthetic stages",
    "files.json": "needs the files that it digests",
    "scores": "needs the public images that it compares with",
    "features": "holds a network",
    "generator": "holds released sums as the generator reads them",
    "teacher": "holds a network and its weights",
    "tuning": "holds a search, whose releases the ledger counts; publish the run without it",
}
"""What a run may hold besides its lineage, and why its content is not checked."""


def check_names(checks: Checks, folder: Path, last: int | None, *, images: bool) -> None:
    """Check that a run holds no other files than runs do.

    last: T, None where it isn't known. images: whether it is a run, or evidence without images.
    """
    forms = (_EVIDENCE, _WITH_DIGESTS, _OTHERS) if images else (_EVIDENCE,)
    known = re.compile("|".join(forms), re.VERBOSE)
    names = [name for name in list_names(folder) if not name.startswith("tuning/") or not images]
    checks.make(
        "no file is there that should not be",
        [(str(folder / name), partial(_check_name, folder, name, known, last)) for name in names],
    )
    own = re.compile(_WITH_DIGESTS, re.VERBOSE)
    digested: list[Step] = [
        (str(folder / name), partial(_check_digest, folder / name))
        for name in names
        if images and own.fullmatch(name)
    ]
    checks.make("other files are what was written, by their digests", digested)
    for name, why in _WHY_NOT.items() if images else ():
        if (folder / name).exists():
            checks.pass_over(f"content of {name}", why)


def list_names(folder: Path) -> list[str]:
    """Return the paths of all files below `folder`, and of links, from there on, in order."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _check_name(folder: Path, name: str, known: re.Pattern[str], last: int | None) -> None:
    require(not (folder / name).is_symlink(), "is a link")
    digest = re.fullmatch(r"(.*/)?\.([^/]+)\.sha256", name)
    own = f"{digest[1] or ''}{digest[2]}" if digest else name
    numbers = [int(number) for number in re.findall(r"(?:iter=|embedding-)(\d+)", own)]
    require(
        known.fullmatch(own) is not None
        and all(last is None or number <= last for number in numbers)
        and (folder / own).exists(),
        "should not be there",
    )


def _check_digest(file: Path) -> None:
    if not locate_digest(file).exists() and file.name != "source.json":
        raise NotChecked("has no digest")
    read_with_digest(file)
