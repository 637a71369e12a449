"""A run as an object: it says what its files say, and does what the command line does."""

from __future__ import annotations

import copy
import doctest
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pe_ray import (
    Config,
    InputError,
    Run,
    Search,
    cli,
    evolve,
    expand,
    save_images,
    tune,
)
from pe_ray import run as run_module
from pe_ray.files.parts import MANIFEST

TREE: dict[str, Any] = {
    "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
    "generator": {"kind": "rendered_text", "image_size": 12},
    "embedder": {"kind": "pixels", "size": 6},
    "schedule": {"iterations": 2, "num_samples": 40, "degrees": 0.5},
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"},
    "metrics": {"audit": [{"kind": "frechet"}]},
    "resources": {"num_cpus": 2, "workers": 1},
}


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run in three parts each; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    tree = {**TREE, "output": {"path": path, "rows_per_part": 17}}  # a Path, not text
    return evolve(Config.from_dict(tree))


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_a_population_equals_its_files(run: Run, iteration: int) -> None:
    found = run.population(iteration)
    parts = sorted((run / "populations" / f"iter={iteration:04d}").glob("*.parquet"))
    assert len(parts) > 1
    rows = [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]
    images, labels = found.to_numpy()
    assert images.shape == (40, 12, 12, 1)
    assert [image.tobytes() for image in images] == [row["image"] for row in rows]
    assert labels.tolist() == [row["label"] for row in rows]


def test_every_view_of_a_set_has_the_files_images_and_labels(run: Run) -> None:
    images, labels = run.synthetic.to_numpy()
    stored = pq.read_table(run / "synthetic")
    pixels = [Image.open(io.BytesIO(cell["bytes"])) for cell in stored["image"].to_pylist()]
    assert np.array_equal(images[..., 0], np.stack([np.asarray(one) for one in pixels]))
    assert labels.tolist() == stored["label"].to_pylist()
    frame = run.synthetic.to_pandas()
    assert np.array_equal(np.stack(frame["image"].to_list()), images)
    assert frame["label"].to_list() == [run.synthetic.labels[label] for label in labels]
    made = run.synthetic.to_dataset()
    assert made.features["label"].names == list(run.synthetic.labels)
    assert made.with_format("arrow")[:].to_pylist() == stored.to_pylist()
    assert isinstance(made[0]["image"], Image.Image)
    pictures, numbers = run.synthetic.to_torch()[:]
    assert np.array_equal(pictures.numpy(), images.transpose(0, 3, 1, 2))
    assert numbers.tolist() == labels.tolist()


@pytest.mark.parametrize("form", ["parquet", "webdataset", "folder"])
def test_an_expansion_is_that_of_the_command_line(run: Run, tmp_path: Path, form: str) -> None:
    made = run.expand(30, tmp_path / "object", form)
    images, labels = made.to_numpy()
    assert len(images) == 30
    command = ["expand", str(run), "--num-samples", "30", "--output", str(tmp_path / "verb")]
    assert cli.main([*command, "--format", form]) == 0
    for file in (file for file in (tmp_path / "verb").rglob("*") if file.is_file()):
        if file.name != MANIFEST:  # it has times
            assert (made.path / file.relative_to(tmp_path / "verb")).read_bytes() == (
                file.read_bytes()
            )
    again = expand(run, 30, tmp_path / "function")
    in_order, _ = again.to_numpy()
    if form == "folder":  # which is read label by label
        order = np.argsort(again.to_numpy()[1], kind="stable")
        in_order = in_order[order]
    assert np.array_equal(images, in_order)
    assert (np.bincount(labels) == 3).all()


def test_ledger_audit_and_report_are_those_of_the_command_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, told in (("ledger", run.ledger), ("audit", run.audit())):
        assert cli.main([verb, str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == told
    assert len(run.ledger["releases"]) == 2
    assert run.report() == run / "report.html"
    assert (run / "report.html").exists()
    assert run.search is None


def test_a_run_is_opened_from_any_path_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    for path in (run, run.path, str(run), "run", Path("run")):
        opened = Run.open(path)
        assert opened == run
        assert opened.config.fingerprint == run.config.fingerprint
    assert Path(run) == run.path
    assert os.listdir(run)
    assert run.config.resources.workers == 1
    assert Run.open(run).config.resources.workers is None


Use = Callable[[Path, Config], object]


@pytest.mark.parametrize(
    ("use", "field"),
    [
        (lambda folder, config: Run.open(folder), "run"),
        (lambda folder, config: Run.open(folder / "missing"), "run"),
        (lambda folder, config: Run.open(config), "run"),
        (lambda folder, config: expand(config, 1, folder / "more"), "run"),
        (lambda folder, config: evolve("config.yaml"), "config"),
        (lambda folder, config: evolve(folder), "config"),
        (lambda folder, config: evolve(TREE), "config"),
        (lambda folder, config: tune(config), "search"),
        (lambda folder, config: tune("config.yaml"), "search"),
        (lambda folder, config: Config.from_yaml(config), "config"),
        (lambda folder, config: Config.from_yaml(TREE), "config"),
        (lambda folder, config: Config.from_dict("config.yaml"), "config"),
        (lambda folder, config: Search.from_dict("config.yaml"), "config"),
        (lambda folder, config: save_images([], config), "path"),
    ],
)
def test_the_wrong_thing_is_one_error(tmp_path: Path, use: Use, field: str) -> None:
    config = Config.from_dict({**TREE, "output": {"path": str(tmp_path / "run")}})
    with pytest.raises(InputError, match=rf"^{field}\b"):
        use(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_what_is_not_made_yet_is_one_error(run: Run, tmp_path: Path) -> None:
    begun = Run.open(shutil.copytree(run, tmp_path / "begun"))
    for folder in ("synthetic", "populations/iter=0002"):
        (begun / folder / MANIFEST).unlink()
    assert len(begun.population(1).to_numpy()[1]) == 40
    assert begun.ledger == run.ledger
    for iteration in (2, 3, -1):
        with pytest.raises(InputError, match=r"^iteration: "):
            begun.population(iteration)
    with pytest.raises(InputError, match=r"^run .*: not finished"):
        _ = begun.synthetic
    with pytest.raises(InputError, match=r"^run .*: not finished"):
        begun.expand(3, tmp_path / "more")


def test_a_damaged_file_is_not_read(run: Run, tmp_path: Path) -> None:
    hurt = Run.open(shutil.copytree(run, tmp_path / "hurt"))
    for folder, read in (
        ("synthetic", lambda: hurt.synthetic.to_numpy()),
        ("populations/iter=0001", lambda: hurt.population(1).to_numpy()),
    ):
        part = min((hurt / folder).glob("part-*.parquet"))
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
        with pytest.raises(InputError, match=part.name):
            read()


def test_images_in_memory_become_records(run: Run, tmp_path: Path) -> None:
    """`private.data` takes what `save_images` returns; a run of the same images is the same."""
    images, labels = run.synthetic.to_numpy()
    names = [run.synthetic.labels[label] for label in labels]
    tree = copy.deepcopy(TREE) | {"output": {"path": tmp_path / "again"}}
    tree["private"]["data"] = save_images(images, tmp_path / "records.parquet", names)
    assert Config.from_dict(tree).private.data == str(tmp_path / "records.parquet")


@pytest.mark.slow
def test_a_search_says_how_it_ended(ray_session: None, tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE) | {"output": {"path": tmp_path / "tuned"}}
    tree["tuning"] = {
        "strategy": "proxy",
        "space": {"votes.neighbors": [1, 2]},
        "objective": {"kind": "moments", "share": 0.1},
        "num_trials": 1,
    }
    events = []
    run = tune(Search.from_dict(tree), on_event=events.append)
    assert run.search is not None
    assert run.config.votes.neighbors == run.search["best"]["settings"]["votes.neighbors"]
    assert len(run.search["trials"]) == 1
    assert run.ledger["epsilon"] <= 1.0
    assert len(run.synthetic.to_numpy()[0]) == 40
    assert "population" in {event.kind for event in events}


def test_the_docstring_runs(ray_session: None) -> None:
    assert doctest.testmod(run_module).attempted
    assert not doctest.testmod(run_module).failed
