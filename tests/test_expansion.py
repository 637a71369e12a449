"""An expansion: what it needs is known before it starts, and it continues after any kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pe_ray import Config, InputError, evolve, expand
from pe_ray.storage import left_aside
from pe_ray.synthetic.writer import manifest_of


@pytest.fixture
def finished(ray_session: None, tree: dict[str, Any]) -> Path:
    return evolve(Config.from_dict(tree))


KILLED = """
import os, pathlib, signal, sys
from pe_ray import expand

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(pathlib.Path, sys.argv[3], kill)
expand(sys.argv[1], 20, sys.argv[2])
"""


def test_a_kill_before_the_first_part_leaves_nothing_in_the_way(
    finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "more"
    done = subprocess.run([sys.executable, "-c", KILLED, str(finished), str(output), "replace"])
    assert done.returncode == -signal.SIGKILL
    assert [left_aside(file.name) for file in output.iterdir()] == [".expansion.json"]
    expand(finished, 20, output)
    assert manifest_of(output) is not None
    assert not any(left_aside(file.name) for file in output.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", ".notes.txt", f".notes.txt.{'0' * 32}"])
def test_an_output_with_anything_else_in_it_is_refused(
    finished: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / name).write_text("kept")
    with pytest.raises(InputError, match=r"^--output: .* is not empty; give a new folder"):
        expand(finished, 20, tmp_path / "more")
    assert [file.name for file in (tmp_path / "more").iterdir()] == [name]
