"""Signatures of SSH keys, as `ssh-keygen -Y verify` checks them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pe_ray.errors import InputError
from pe_ray.verifying.published import NAMESPACE


def sign(key: str | Path, content: bytes) -> bytes:
    """Return the signature of `content` by an SSH key, or by an agent that holds it.

    key: path of the private key; of the public one for an agent's.
    """
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key)]
    try:
        done = subprocess.run(command, input=content, capture_output=True)
    except FileNotFoundError:
        raise InputError("--sign: there is no ssh-keygen here; install OpenSSH's client") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason"]
        raise InputError(f"--sign: {key} can't sign ({reason[0]}); give the path of an SSH key")
    return done.stdout
