"""Tasks on private records: no error's text leaves them, and they don't hang for ever."""

from __future__ import annotations

import subprocess
import sys
import traceback

import pytest

from pe_ray import InputError
from pe_ray.private.tasks import hide_private_errors


def test_of_an_error_only_its_type_leaves() -> None:
    with pytest.raises(RuntimeError) as raised, hide_private_errors("counting", 60.0):
        raise ValueError("SECRET of a record")
    assert str(raised.value) == "counting failed: ValueError"
    assert "SECRET" not in "".join(traceback.format_exception(raised.value, chain=True))
    with (
        pytest.raises(InputError, match="resources: no GPU"),
        hide_private_errors("counting", 60.0),
    ):
        raise InputError("resources: no GPU")


def test_what_hangs_is_ended() -> None:
    script = """
import time
from pe_ray.private.tasks import hide_private_errors
with hide_private_errors("counting", 0.5):
    time.sleep(20)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
