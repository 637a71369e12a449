"""An expansion: what it needs is known before it starts, and it continues after any kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pe_ray import Config, InputError, cli, expansion
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
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


def read_rows(folder: Path) -> list[tuple[bytes, int]]:
    table = pq.read_table(folder, partitioning=None)
    return list(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_it_continues_and_covers_all_parents(finished: Path, tmp_path: Path) -> None:
    whole = expand(finished, 100, tmp_path / "whole")
    torn = expand(finished, 100, tmp_path / "torn")
    (torn / list_parts(torn)[2].file).unlink()
    expand(finished, 100, torn)
    for part in list_parts(whole):
        assert (whole / part.file).read_bytes() == (torn / part.file).read_bytes()
    labels = [label for _, label in read_rows(whole)]
    assert set(labels[:20]) == set(range(10))  # from the first rows on
    for other in ({"num_samples": 100, "drop_failed": True}, {"num_samples": None}):
        with pytest.raises(InputError, match="is of something else"):
            expand(finished, output=torn, **other)


def test_it_grows_and_keeps_the_rows_that_are_there(finished: Path, tmp_path: Path) -> None:
    """Also where it was to be larger before, and was killed."""
    grown = expand(finished, 30, tmp_path / "grown")
    before = {part.file: (grown / part.file).read_bytes() for part in list_parts(grown)}
    expand(finished, 70, grown)
    assert [(part.start, part.stop) for part in list_parts(grown)] == [
        *[(0, 17), (17, 30)],
        *[(30, 47), (47, 64), (64, 70)],
    ]
    for file, content in before.items():
        assert (grown / file).read_bytes() == content
    (grown / "part-000003.parquet").unlink()
    expand(finished, 90, grown)
    assert read_rows(grown) == read_rows(expand(finished, 90, tmp_path / "whole"))
    with pytest.raises(InputError, match=r"^--num-samples: "):
        expand(finished, 89, grown)


def test_labels_get_the_counts_that_were_asked_for(finished: Path, tmp_path: Path) -> None:
    per_label = {"3": 11, "7": 2}
    output = expand(finished, None, tmp_path / "more", per_label=per_label)
    labels = [label for _, label in read_rows(output)]
    assert {str(label): labels.count(label) for label in set(labels)} == per_label
    for wrong in ({"x": 1}, {"3": 0}):
        with pytest.raises(InputError, match=r"^--per-label: "):
            expand(finished, None, tmp_path / "wrong", per_label=wrong)
    with pytest.raises(InputError, match=r"^--per-label: "):
        expand(finished, 13, tmp_path / "wrong", per_label=per_label)


def test_the_command_reads_counts_and_names_shards(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "more"
    command = ["expand", str(finished), "--num-samples", "4e1", "--output", str(output)]
    assert cli.main([*command, "--format", "webdataset"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    shards = sorted(str(file) for file in output.glob("*.tar"))
    assert printed["shards"] == f"{output}/part-{{000000..000002}}.tar"
    assert shards == [f"{output}/part-00000{number}.tar" for number in range(3)]
    command = ["expand", str(finished), "--per-label", "3=1,000", "--per-label", "a=b=2e3"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--output", str(tmp_path / "x"), "--num-samples", "1.5"])
    assert cli.main([*command, "--output", str(tmp_path / "x")]) == 2
    assert "'a=b'" in capsys.readouterr().err


def test_rows_that_a_filter_drops_are_counted(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pe_ray.expansion")
    whole = read_rows(expand(finished, 60, tmp_path / "whole"))
    assert not caplog.messages
    output = expand(finished, 60, tmp_path / "more", drop_near_duplicates=60.0)
    kept = read_rows(output)
    assert 0 < len(kept) < 60
    assert [row for row in whole if row in kept] == kept
    assert caplog.messages[-1].startswith(f"{60 - len(kept)} of 60 rows")
    (output / "part-000001.parquet").unlink()
    expand(finished, 60, output, drop_near_duplicates=60.0)
    assert read_rows(output) == kept
    assert caplog.messages[-1].startswith(f"{60 - len(kept)} of 60 rows")


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
    assert not list((tmp_path / "more").iterdir())


def test_a_format_of_another_package_is_written(finished: Path, tmp_path: Path) -> None:
    output = expand(finished, None, tmp_path / "lines", form="outside:Lines")
    text = "".join(file.read_text() for file in sorted(Path(output).glob("part-*.txt")))
    rows = [line.split() for line in text.splitlines()]
    assert [int(row) for row, _ in rows] == list(range(40))
    assert [label for _, label in rows] != sorted(label for _, label in rows)
    with pytest.raises(InputError, match="csv"):
        expand(finished, None, tmp_path / "other", form="csv")
