"""Runs side by side: each with its own guarantee."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import small_tree

from pe_ray import Config, InputError, cli
from pe_ray.evolution import evolve
from pe_ray.report.comparison import compare, tabulate


@pytest.fixture(scope="session")
def other(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another delta and fewer samples."""
    folder = tmp_path_factory.mktemp("other")
    tree = small_tree(folder)
    tree["schedule"]["num_samples"] = 20
    tree["privacy"] |= {"epsilon": 2.0, "delta": 1e-5}
    return evolve(Config.from_dict(tree))


def test_each_run_has_its_own_guarantee_and_settings(finished: Path, other: Path) -> None:
    runs = compare([str(finished), str(other)])
    results, settings = tabulate(runs)
    lines = {line[0]: line[1:] for line in [*results, *settings]}
    assert lines["run"] == [str(finished), str(other)]
    assert [float(cell) for cell in lines["epsilon"]] == pytest.approx(
        [run["epsilon"] for run in runs], rel=1e-5
    )
    assert lines["delta"] == ["0.0001", "1e-05"]
    assert lines["schedule.iterations"] == ["3", "1"]
    assert "output.path" not in lines
    assert "embedder.size" not in lines
    assert float(lines["survivors"][1]) > 0


def test_epsilons_of_other_deltas_are_said_to_differ(
    finished: Path, other: Path, copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(finished), str(copied("same"))]) == 0
    assert "can't be compared" not in capsys.readouterr().out
    assert cli.main(["compare", str(finished), str(other)]) == 0
    assert "can't be compared" in capsys.readouterr().out


def test_the_last_value_of_each_metric_is_printed(
    copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied("scored")
    (run / "scores").mkdir(exist_ok=True)
    for iteration, score in ((0, 31.5), (3, 12.25)):
        file = run / "scores" / f"iter={iteration:04d}.json"
        file.write_text(json.dumps({"public/fid": score}))
    assert cli.main(["compare", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["metrics"]["public/fid"] == 12.25
    assert found["finished"] is True


def test_what_is_no_run_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^run {tmp_path}: "):
        compare([str(finished), str(tmp_path)])


def test_a_page_shows_pictures_and_results_before_settings(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.html"
    assert cli.main(["compare", str(finished), str(other), "--html", str(file)]) == 0
    printed, page = capsys.readouterr().out, file.read_text()
    assert printed.index("survivors") < printed.index("schedule.iterations")
    assert page.index("<img") < page.index("survivors") < page.index("<details")
    assert page.index("<details") < page.index("schedule.iterations")
    assert page.count("<img") == 2 * 10  # labels of two runs
    assert "<script" not in page
    assert "://" not in page
    wrong = ["compare", str(finished), "--html", f"{file}/page.html"]
    assert cli.main(wrong) == 2
