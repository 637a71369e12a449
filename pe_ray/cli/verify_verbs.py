"""The verb that checks what others released: verify."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pe_ray.cli.printing import AddVerb, add_json, print_json
from pe_ray.errors import InputError


def add_verbs(verb: AddVerb) -> None:
    """Add verify."""
    verify = verb(
        "verify",
        _verify,
        "Check a finished run, or a published folder; needs no Ray, torch or private data.",
        "published/digits",
    )
    verify.add_argument("folder", metavar="PATH", help="run directory, or output of `publish`")
    verify.add_argument(
        "--allowed-signers",
        metavar="FILE",
        help="keys that may have signed the folder, as `man ssh-keygen` describes the file",
    )
    add_json(verify)


def _verify(options: argparse.Namespace) -> None:
    from pe_ray.verifying import verify

    checks = verify(options.folder, options.allowed_signers)
    differing = sum(check.result == "differs" for check in checks)
    if options.json:
        print_json({"well": not differing, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            where = check.file or check.what
            print(f"{check.result:<13}{where}{': ' if check.why else ''}{check.why}")
    if differing:
        raise InputError(f"verify: {differing:,} found that differ, each in a line above")
