"""A folder as `pe-ray verify` sees it."""

from __future__ import annotations

from pathlib import Path

from pe_ray.verifying import verify


def differing(folder: Path, signers: Path | None = None) -> set[str]:
    """The files in which something isn't as it should be; checks that are about none by name."""
    return {
        check.file or check.what for check in verify(folder, signers) if check.result == "differs"
    }
