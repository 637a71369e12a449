"""A ledger older than its run is refused before anything is charged; so is another config.yaml."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pe_ray import Config, InputError, cli
from pe_ray.evolution import evolve, iterate
from pe_ray.expansion import expand
from pe_ray.files.digests import locate_digest
from pe_ray.planning import plan_releases
from pe_ray.plugins import registry
from pe_ray.private.evaluation import audit
from pe_ray.release.door import Door
from pe_ray.release.evidence import open_run, record_config, require_newest
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import votes_key
from pe_ray.report import write_report
from pe_ray.report.comparison import compare
from pe_ray.report.run_status import read_status
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.run_directory import RunDirectory, claim_directory, on_disk
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.values import LabelLayout, NoisyHistogram, Release


def test_an_older_ledger_is_refused_at_every_stage(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["privacy"]["label_fractions"] = "dp"
    config = Config.from_dict(tree)
    older: list[Path] = []
    with claim_directory(config) as directory, connect_to_ray(config.resources):
        ledger = Ledger.create(directory.ledger, config.privacy.budget, config.fingerprint)
        older.append(Path(shutil.copy(ledger.path, tmp_path / "0.sqlite")))
        record_config(ledger, directory, config)
        door = Door(prepare_run(config, directory), ledger, plan_releases(config))
        for population in iterate(prepare_run(config, directory), door):
            require_newest(ledger, directory, config)
            for copy in older:
                with pytest.raises(InputError, match="give the newer ledger"):
                    require_newest(Ledger.open(copy), directory, config)
            copy = tmp_path / f"{population.iteration + 1}.sqlite"
            older.append(Path(shutil.copy(ledger.path, copy)))
    newest = ledger.path.read_bytes()
    (older.pop()).unlink()  # of S_T, after which nothing is released
    for copy in older:
        shutil.copy(copy, ledger.path)
        held = ledger.path.read_bytes()
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(tree))
        for verb in ("run", "check"):
            assert cli.main([verb, str(file)]) != 0
        with pytest.raises(InputError, match=r"^output\.path: .*give the newer ledger"):
            evolve(config)
        assert ledger.path.read_bytes() == held
    ledger.path.write_bytes(newest)
    assert evolve(config) == directory.path
    assert ledger.path.read_bytes() == newest


def votes(iteration: int, prefix: str = "") -> Release:
    key = votes_key(iteration, prefix)
    return Release(key=key, kind="votes", iteration=iteration, votes_per_unit=1, sigma=30.0)


def release(ledger: Ledger, given: Release) -> NoisyHistogram:
    ledger.reserve(given)
    ledger.commit(given.key, np.arange(40))
    return NoisyHistogram(release=given, noisy_votes=np.arange(40))


@pytest.fixture
def made(tree: dict[str, Any]) -> tuple[Config, RunDirectory, Ledger]:
    """A run with a ledger that holds the votes of its first iteration."""
    config = Config.from_dict(tree)
    directory = on_disk(config.output.path)
    directory.ledger.parent.mkdir()
    ledger = Ledger.create(directory.ledger, config.privacy.budget, config.fingerprint)
    layout = LabelLayout(counts=(4,) * 10)
    directory.write_histogram(release(ledger, votes(1)), layout)
    require_newest(ledger, directory, config)
    return config, directory, ledger


@pytest.mark.parametrize(
    "file",
    [
        "histograms/iter=0002.parquet",
        "smoothed/iter=0002.parquet",
        "populations/iter=0002/part-00000.parquet",
        "synthetic/part-00000.parquet",
        "teacher/weights.npz",
    ],
)
def test_each_file_proves_what_it_was_made_from(
    made: tuple[Config, RunDirectory, Ledger], file: str
) -> None:
    config, directory, ledger = made
    path = Path(str(directory.path), file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name == "histograms":
        shutil.copy(str(directory.histogram(1)), path)
    else:
        path.touch()
    for state in ("absent", "reserved"):
        if state == "reserved":
            ledger.reserve(votes(2))
        with pytest.raises(InputError, match=r"^output\.path: .*give the newer ledger"):
            require_newest(ledger, directory, config)
    release(ledger, votes(2))
    require_newest(ledger, directory, config)


def test_a_second_answer_is_refused(made: tuple[Config, RunDirectory, Ledger]) -> None:
    config, directory, ledger = made
    ledger.path.unlink()
    again = Ledger.create(ledger.path, config.privacy.budget, config.fingerprint)
    again.reserve(votes(1))
    again.commit(votes(1).key, np.arange(40) + 1)
    with pytest.raises(InputError, match="give the newer ledger"):
        require_newest(again, directory, config)


def test_a_damaged_histogram_is_no_sign_of_an_older_ledger(
    made: tuple[Config, RunDirectory, Ledger],
) -> None:
    """Its digest tells, whichever of its bytes changed; without one, it is named."""
    config, directory, ledger = made
    file = Path(str(directory.histogram(1)))
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        require_newest(ledger, directory, config)
    locate_digest(file).unlink()
    file.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"iter=0001\.parquet: is damaged"):
        require_newest(ledger, directory, config)


def test_first_populations_prove_the_label_counts(tree: dict[str, Any]) -> None:
    tree["privacy"]["label_fractions"] = "dp"
    config = Config.from_dict(tree)
    directory = on_disk(config.output.path)
    Path(str(directory.population(0))).mkdir(parents=True)
    ledger = Ledger.create(directory.ledger, config.privacy.budget, config.fingerprint)
    require_newest(ledger, directory, config)
    (Path(str(directory.population(0))) / "part-00000.parquet").touch()
    with pytest.raises(InputError, match="label_counts"):
        require_newest(ledger, directory, config)


def test_labels_exchanged_in_the_runs_configuration_are_refused(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    run = evolve(Config.from_dict(short))
    file = Path(str(run), "config.yaml")
    text = file.read_text()
    given = yaml.safe_load(text)
    labels = given["private"]["labels"]
    labels[0], labels[1] = labels[1], labels[0]
    file.write_text(yaml.safe_dump(given))
    for look in (
        lambda: expand(run, 40, tmp_path / "more"),
        lambda: write_report(run),
        lambda: read_status(run),
        lambda: compare([run]),
        lambda: audit(open_run(run)),
    ):
        with pytest.raises(InputError, match=f"^{file}: "):
            look()
    assert cli.main(["audit", str(run)]) == 2
    file.write_text("# restored\n" + yaml.safe_dump(yaml.safe_load(text)))  # laid out otherwise
    assert read_status(run)["state"] == "finished"


@pytest.mark.parametrize("where", ["configuration", "below a metric", "ledger"])
def test_opening_a_run_imports_nothing_of_its_authors_choice(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    marker, kind = tmp_path / "imported", "harmful:Harm"
    (tmp_path / "harmful.py").write_text(
        "from pathlib import Path\nfrom outside import NoNumbers as Harm, SquareRoot as Root\n"
        f"Path({str(marker)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    if where == "configuration":
        tree["selection"] = {"denoise": "harmful:Root"}
    elif where == "below a metric":
        tree["metrics"]["audit"] = [{"kind": "frechet", "embedder": {"kind": kind}}]
    config = Config.from_dict(tree)
    with claim_directory(config) as directory:
        ledger = Ledger.create(directory.ledger, config.privacy.budget, config.fingerprint)
        record_config(ledger, directory, config)
    if where == "ledger":
        ledger.reserve(Release(key="x", kind=kind, iteration=0, votes_per_unit=1, sigma=1e3))
    # As a process does that has not made this run.
    monkeypatch.setattr(registry, "_loaded", set())
    monkeypatch.delitem(sys.modules, "harmful", raising=False)
    marker.unlink(missing_ok=True)
    run = str(directory.path)
    for look in (
        lambda: expand(run, 40, tmp_path / "more"),
        lambda: write_report(run),
        lambda: read_status(run),
        lambda: compare([run]),
        lambda: open_run(run),
    ):
        with pytest.raises(InputError, match=r"--trust-plugins"):
            look()
    assert cli.main(["status", run]) == 2
    assert not marker.exists()
    assert cli.main(["status", run, "--trust-plugins"]) == 0
    assert marker.exists()
    marker.unlink()
    assert cli.main(["status", run]) == 0  # no new import
