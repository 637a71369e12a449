"""Locks hold between processes and end with them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pe_ray.files.locks import find_holder, is_locked, locked

HOLDER = """
import sys, time
from pathlib import Path
from pe_ray.files.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_holds_until_its_process_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not is_locked(file)
    assert not file.exists()  # a look creates nothing
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(file)
        assert find_holder(file) == f"process {holder.pid}"
        with pytest.raises(TimeoutError), locked(file, timeout=0.1):
            pass
    finally:
        holder.kill()
        holder.wait(60)
    assert not is_locked(file)
    assert find_holder(file) is None
    with locked(file, timeout=0):
        assert is_locked(file)
    assert not is_locked(file)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_second_holder_waits_for_the_first(tmp_path: Path, timeout: float | None) -> None:
    order: list[str] = []

    def hold() -> None:
        with locked(tmp_path / "lock", timeout):
            order.append("second")

    with locked(tmp_path / "lock"):
        second = threading.Thread(target=hold)
        second.start()
        second.join(0.2)
        order.append("first")
    second.join(60)
    assert order == ["first", "second"]
