"""A run directory is bound to its configuration once something was made or charged, not before."""

from __future__ import annotations

import os
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_public import save_parquet
from undisturbed import content

from pe_ray import Config, InputError
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.release.ledger import Ledger
from pe_ray.runtime import run_directory
from pe_ray.runtime.run_directory import claim_directory, write_config


def images(run: Path) -> dict[str, bytes]:
    return {name: held for name, held in content(run).items() if name.endswith(".parquet")}


def test_anything_but_resources_is_bound(ray_session: None, short: dict[str, Any]) -> None:
    short["privacy"]["epsilon"] = float("inf")
    run = evolve(Config.from_dict(short))
    short["votes"]["lookahead"] = 0
    with pytest.raises(InputError, match=r"votes\.lookahead: differs from"):
        evolve(Config.from_dict(short))
    short["votes"]["lookahead"] = 1
    for lost in (b"", None):  # SQLite would make an empty file anew, and all be spent again
        (run / "ledger.sqlite").unlink()
        if lost is not None:
            (run / "ledger.sqlite").write_bytes(lost)
        with pytest.raises(InputError, match="no ledger"):
            evolve(Config.from_dict(short))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("private.labels", [*"9876543210"]),
        ("generator.image_size", 13),
        ("embedder.size", 7),
        ("votes.neighbors", 2),
        ("selection.keep_selected", True),
        ("selection.overrides", {1: {"method": "rank"}}),
        ("schedule.noise", 0.5),
        ("schedule.seed", 1),
        ("privacy.epsilon", 2.0),
        ("privacy.delta", 1e-5),
        ("output.rows_per_part", 18),
    ],
)
def test_every_change_but_resources_is_refused_by_name(
    tree: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    config = Config.from_dict(tree)
    with claim_directory(config) as run:
        Ledger.create(run.ledger, config.privacy.budget, config.fingerprint)
        write_config(run, config)
        (tmp_path / "run" / "populations").mkdir()
        (tmp_path / "run" / "populations" / "part").write_bytes(b"made")
    tree["resources"] = {"workers": 7, "batch_size": 3, "num_cpus": 5}
    tree["private"]["cache"] = str(tmp_path / "elsewhere")
    tree["metrics"] = {"audit": [{"kind": "classifier"}], "audit_where": {"split": "test"}}
    with claim_directory(Config.from_dict(tree)):
        pass
    block, name = key.split(".")
    tree.setdefault(block, {})[name] = value
    with (
        pytest.raises(InputError, match=rf"^{re.escape(key)}[\w.]*: differs from"),
        claim_directory(Config.from_dict(tree)),
    ):
        pass


def test_a_leading_tilde_is_the_home_folder_everywhere(
    ray_session: None, short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder of that name below the working directory, with private embeddings in it."""
    home, work = tmp_path / "home", tmp_path / "work"
    save_parquet(home / "data", [*"0123456789"], 3)
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    short["private"] |= {"data": "~/data", "cache": "~/cache"}
    short["output"]["path"] = "~/run"
    run = evolve(Config.from_dict(short))
    assert run == home / "run"
    assert list((home / "cache").glob("*.npz"))
    assert expand("~/run", 30, "~/more") == home / "more"
    assert not list(work.iterdir())
    short["private"]["cache"] = "~/run/cache"
    with pytest.raises(InputError, match=r"private\.cache: must lie outside output\.path"):
        Config.from_dict(short)
    with pytest.raises(InputError, match=r"--output: .* lies in private\.data"):
        expand("~/run", 30, home / "data" / "more")


def test_a_population_of_another_configuration_is_not_taken_over(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Left by a search, say, before anything was charged; a run writes its configuration first."""
    config = Config.from_dict(tree)
    with claim_directory(config) as run:
        Ledger.create(run.ledger, config.privacy.budget, config.fingerprint)
    (tmp_path / "run" / "populations").mkdir()
    (tmp_path / "run" / "populations" / "part").write_bytes(b"made")
    tree["schedule"]["seed"] = 1
    with pytest.raises(InputError, match="belongs to another configuration"):
        evolve(Config.from_dict(tree))


def test_a_first_mistake_is_mended_in_place(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    kept = deepcopy(short)
    kept["output"]["path"] = str(tmp_path / "fresh")
    kept["privacy"]["epsilon"] = float("inf")
    data = save_parquet(tmp_path / "data", [*"0123456789"], 1)
    for mistake in ({"label_column": "lable"}, {"where": {"label": "none"}}):
        wrong = deepcopy(short)
        wrong["private"] |= {"data": str(data), **mistake}
        with pytest.raises(InputError, match=r"^private\."):
            evolve(Config.from_dict(wrong))
    wrong = deepcopy(short)
    wrong["generator"]["fonts"] = "/nowhere"
    with pytest.raises(InputError, match=r"^generator\.fonts"):
        evolve(Config.from_dict(wrong))
    mended = deepcopy(short)
    mended["privacy"]["epsilon"] = float("inf")
    assert images(evolve(Config.from_dict(mended))) == images(evolve(Config.from_dict(kept)))


def test_what_a_run_has_written_counts_as_it_takes_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one that just fits also continues: small images take more than they hold."""
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(b"small")
    os.sync()
    needed = 512 * sum(file.stat().st_blocks for file in tmp_path.iterdir())
    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    run_directory.require_disk(tmp_path, needed, "output.path")
    with pytest.raises(InputError, match=r"^output.path: .* needs about .* GiB free"):
        run_directory.require_disk(tmp_path, needed + 1, "output.path")
