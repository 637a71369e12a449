"""Check a finished run, or what was published of it, without those who made it.

Needs neither torch, Ray nor the private records. Nothing that a configuration names is imported
unless it comes with the package.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pe_ray.errors import InputError
from pe_ray.runtime.run_directory import LEDGER
from pe_ray.verifying.findings import Check, Checks
from pe_ray.verifying.lineage import check_lineage
from pe_ray.verifying.published import CHECKSUMS, check_cards, check_data, check_sums
from pe_ray.verifying.run_claims import Claims, check_claims
from pe_ray.verifying.run_names import check_names


def verify(path: str | Path, allowed_signers: str | Path | None = None) -> list[Check]:
    """Return all checks of a run directory, or of a folder that `pe-ray publish` made.

    Files are named from there on.
    allowed_signers: file with the keys that may have signed the folder (`man ssh-keygen`).
    InputError where `path` is no such folder.
    """
    folder, checks = Path(path).resolve(), Checks()
    published = (folder / CHECKSUMS).exists() or (folder / "evidence").is_dir()
    if not published and not (folder / LEDGER).exists():
        raise InputError(
            f"verify {path}: has neither {LEDGER} nor {CHECKSUMS}; give a run directory or a "
            "published folder on this machine"
        )
    if allowed_signers is not None and not (published and Path(allowed_signers).is_file()):
        raise InputError("--allowed-signers: give a file, and a published folder")
    if published:
        check_sums(checks, folder, allowed_signers)
        claims = _check_run(checks, folder / "evidence", images=False)
        if claims is not None:
            check_cards(checks, folder, claims)
            check_data(checks, folder, claims)
    else:
        _check_run(checks, folder, images=True)
    return [replace(each, file=each.file.removeprefix(f"{folder}/")) for each in checks]


def _check_run(checks: Checks, folder: Path, *, images: bool) -> Claims | None:
    """Check a run, or its evidence without images; return what it claims, if that is sound."""
    claims = check_claims(checks, folder)
    if claims is None:
        why = "needs a ledger and a configuration that belong together"
        checks.pass_over("what was made from the releases", why)
    else:
        check_lineage(checks, claims, images=images)
    last = None if claims is None else claims.run.config.schedule.iterations
    check_names(checks, folder, last, images=images)
    checks.pass_over(
        "that noise was drawn as stated, and votes bounded", "nothing that is released shows it"
    )
    return claims
