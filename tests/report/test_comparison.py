"""Runs side by side: each with its own guarantee, and epsilons on one axis only if comparable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pe_ray import Config, InputError, cli, evolve
from pe_ray.report.comparison import compare, tabulate, write_comparison


@pytest.fixture(scope="session")
def other(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another delta and fewer samples."""
    folder = tmp_path_factory.mktemp("other")
    tree: dict[str, Any] = {
        "private": {
            "data": "sklearn:digits",
            "labels": [str(digit) for digit in range(10)],
            "cache": str(folder / "cache"),
        },
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "schedule": {"iterations": 1, "num_samples": 20, "degrees": 0.5},
        "privacy": {"epsilon": 2.0, "delta": 1e-5, "unit": "record", "label_fractions": "uniform"},
        "resources": {"num_cpus": 2, "workers": 1},
        "output": {"path": str(folder / "run")},
    }
    return evolve(Config.from_dict(tree))


def test_each_run_has_its_own_guarantee_and_settings(finished: Path, other: Path) -> None:
    runs = compare([str(finished), str(other)])
    lines = {line[0]: line[1:] for line in tabulate(runs)}
    assert lines["run"] == [str(finished), str(other)]
    assert [float(cell) for cell in lines["epsilon"]] == pytest.approx(
        [run.epsilon for run in runs], rel=1e-5
    )
    assert lines["delta"] == ["0.0001", "1e-05"]
    assert lines["schedule.iterations"] == ["3", "1"]
    assert "output.path" not in lines
    assert "embedder.size" not in lines
    assert float(lines["survivors"][1]) > 0


def test_epsilons_of_other_deltas_are_not_on_one_axis(
    finished: Path, other: Path, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = copied("same")
    for run in (finished, copy, other):
        file = run / "scores" / "iter=0001.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"public/fid": 5.0}))
    runs = compare([str(finished), str(copy), str(other)])
    page = write_comparison(runs, tmp_path / "page.html").read_text()
    for run in (finished, other):
        (run / "scores" / "iter=0001.json").unlink()
    charts = [part.split("</svg>")[0] for part in page.split("<svg")[1:]]
    assert len(charts) == 2
    assert [len(re.findall(r"run \d: 5 at epsilon", chart)) for chart in charts] == [2, 1]
    assert [len(set(re.findall(r"var\(--c\d\)", chart))) for chart in charts] == [2, 1]  # dots
    assert "delta 0.0001" in charts[0]
    assert "delta 1e-05" in charts[1]
    assert 'class="warn"' in page
    assert 'class="warn"' not in write_comparison(runs[:2], tmp_path / "page.html").read_text()
    assert "PRIVATE" not in page
    assert not re.search(r"<script|https?:|\bsrc=", page)


def test_private_scores_are_marked_and_kept_out_of_runs(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"accuracy": 0.75}))
    command = ["compare", str(finished), str(other), "--scores", f"{finished}={scores}"]
    page = tmp_path / "page.html"
    assert cli.main([*command, "--output", str(page)]) == 0
    printed = capsys.readouterr()
    assert "PRIVATE accuracy" in printed.out
    assert "PRIVATE" in printed.err
    assert page.read_text().count("PRIVATE") >= 4
    assert "0.75" in page.read_text()
    inside = finished / "page.html"
    assert cli.main([*command, "--output", str(inside)]) == 2
    assert "--output" in capsys.readouterr().err
    assert not inside.exists()
    assert cli.main([*command, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["runs"][0]["private_scores"] == {"accuracy": 0.75}
    assert tree["runs"][1]["private_scores"] == {}


def test_bad_input_is_refused(finished: Path, tmp_path: Path) -> None:
    run, file = str(finished), tmp_path / "scores.json"
    with pytest.raises(InputError, match=r"^compare: "):
        compare([run, run])
    with pytest.raises(InputError, match=f"^run {tmp_path}: "):
        compare([run, str(tmp_path)])
    with pytest.raises(InputError, match=r"^--scores: elsewhere "):
        compare([run], {"elsewhere": file})
    with pytest.raises(InputError, match=f"^--scores: {file} "):
        compare([run], {run: file})
    file.write_text('["no scores"]')
    with pytest.raises(InputError, match=f"^--scores: {file} "):
        compare([run], {run: file})
    assert cli.main(["compare", run, "--scores", "nonsense"]) == 2
    with pytest.raises(InputError, match=f"^--output: {file}/page.html "):
        write_comparison(compare([run]), file / "page.html")
    with pytest.raises(InputError, match=f"^--output: {tmp_path} "):
        write_comparison(compare([run]), tmp_path)


def test_a_shell_need_not_expand_the_home_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an equals sign, where no shell does."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "scores.json").write_text('{"accuracy": 0.5}')
    arguments = ["compare", str(finished), "--output=~/page.html"]
    assert cli.main([*arguments, f"--scores={finished}=~/scores.json"]) == 0
    assert "0.5" in (tmp_path / "home" / "page.html").read_text()
