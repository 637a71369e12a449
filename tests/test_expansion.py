"""An expansion: what it needs is known before it starts, and it continues after any kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pe_ray import Config, InputError, evolve, expand, expansion
from pe_ray.files.parts import MANIFEST, list_parts, read_manifest
from pe_ray.files.storage import PROBE, name_left_aside


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration and 40 samples; not to be changed."""
    tree: dict[str, Any] = {
        "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "schedule": {"iterations": 1, "num_samples": 40, "degrees": 0.5},
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"},
        "resources": {"num_cpus": 2, "workers": 1},
        "output": {"path": str(tmp_path_factory.mktemp("finished") / "run"), "rows_per_part": 17},
    }
    return evolve(Config.from_dict(tree))


KILLED = """
import os, pathlib, signal, sys
from pe_ray import expand

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(pathlib.Path, sys.argv[3], kill)
expand(sys.argv[1], 20, sys.argv[2])
"""


@pytest.mark.parametrize(("step", "left"), [("unlink", PROBE), ("replace", ".expansion.json")])
def test_a_kill_before_the_first_part_leaves_nothing_in_the_way(
    finished: Path, tmp_path: Path, step: str, left: str
) -> None:
    output = tmp_path / "more"
    done = subprocess.run([sys.executable, "-c", KILLED, str(finished), str(output), step])
    assert done.returncode == -signal.SIGKILL
    assert [name_left_aside(file.name) for file in output.iterdir()] == [left]
    expand(finished, 20, output)
    assert read_manifest(output) is not None
    assert not any(name_left_aside(file.name) for file in output.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", ".notes.txt", f".notes.txt.{'0' * 32}"])
def test_an_output_with_anything_else_in_it_is_refused(
    finished: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / name).write_text("kept")
    with pytest.raises(InputError, match=r"^--output: .* is not empty; give a new folder"):
        expand(finished, 20, tmp_path / "more")
    assert [file.name for file in (tmp_path / "more").iterdir()] == [name]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/below"])
def test_an_output_that_cannot_be_written_is_named(
    finished: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / place
    with pytest.raises(
        InputError, match=rf"^--output: {output} can't be used \(.*\); give "
    ) as told:
        expand(finished, 20, output)
    assert "\n" not in str(told.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_it_continues_and_covers_all_parents(finished: Path, tmp_path: Path) -> None:
    whole = expand(finished, 100, tmp_path / "whole")
    torn = expand(finished, 100, tmp_path / "torn")
    (torn / list_parts(torn)[2].file).unlink()
    expand(finished, 100, torn)
    for part in list_parts(whole):
        assert (whole / part.file).read_bytes() == (torn / part.file).read_bytes()
    labels = pq.read_table(whole, partitioning=None).column("label").to_pylist()
    assert sorted(set(labels)) == list(range(10))
    with pytest.raises(InputError, match="is of something else"):
        expand(finished, 101, torn)
    note = torn / ".expansion.json"  # as a former version wrote it, with images of another type
    held = json.loads(note.read_bytes())
    note.write_text(json.dumps({key: held[key] for key in ("run", "num_samples", "format")}))
    with pytest.raises(InputError, match="is of something else"):
        expand(finished, 100, torn)


@pytest.mark.parametrize("form", ["webdataset", "folder"])
def test_a_torn_export_is_mended(finished: Path, tmp_path: Path, form: str) -> None:
    output = expand(finished, None, tmp_path / "set", form=form)

    def content() -> dict[str, bytes]:
        files = (file for file in output.rglob("*") if file.is_file())
        named = {str(file.relative_to(output)): file.read_bytes() for file in files}
        return {name: held for name, held in named.items() if name != MANIFEST}  # holds times

    whole = content()
    part = list_parts(output)[1]
    (output / part.file).unlink()
    if form == "folder":
        assert len([name for name in whole if name.endswith(".png")]) == 40
        torn = next(output.rglob(f"{part.start:010d}.png"))
        torn.write_bytes(torn.read_bytes()[:30])
    expand(finished, None, output, form=form)
    assert content() == whole


def test_a_disk_too_small_is_an_error_before_anything_is_made(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "export", lambda *_, **__: None)  # that of so many never ends
    with pytest.raises(InputError, match=r"^--output: .* GiB free; free some"):
        expand(finished, 10**13, tmp_path / "more")
    assert [file.name for file in (tmp_path / "more").iterdir()] == [".expansion.json"]


def test_a_format_of_another_package_is_written(finished: Path, tmp_path: Path) -> None:
    output = expand(finished, None, tmp_path / "lines", form="outside:Lines")
    text = "".join(file.read_text() for file in sorted(Path(output).glob("part-*.txt")))
    assert text.splitlines()[:5] == ["0 0", "1 0", "2 0", "3 0", "4 1"]
    with pytest.raises(InputError, match="csv"):
        expand(finished, None, tmp_path / "other", form="csv")
