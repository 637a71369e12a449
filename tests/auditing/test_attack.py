"""The verb: what it writes, what it refuses, and that it goes on after an interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pe_ray import Config, InputError, cli, evolution
from pe_ray.auditing.canaries import _apart, canary_data
from pe_ray.auditing.game import play
from pe_ray.release.ledger import Ledger
from pe_ray.values import Budget


@pytest.fixture
def attacked(tree: dict[str, Any]) -> dict[str, Any]:
    tree["private"] |= {"data": "/no/private/data", "labels": ["0", "1"]}
    tree["generator"] |= {"elastic": 0.0, "forms": ["outline"], "fit": False}
    tree["embedder"] |= {"size": 12, "normalize": False}
    tree["votes"] = {}
    tree["schedule"] = {"iterations": 1, "num_samples": [200, 40], "degrees": 0.5}
    tree["privacy"] |= {"epsilon": 8.0, "label_fractions": "dp", "account": "/no/account"}
    tree["output"]["path"] += "-of-real-data"
    return tree


def written(tree: dict[str, Any], folder: Path) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@pytest.mark.parametrize(
    "embedder", ["pixels", pytest.param("label_features", marks=pytest.mark.slow)]
)
def test_an_attack_from_the_command_line(
    ray_session: None,
    attacked: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    embedder: str,
) -> None:
    if embedder == "label_features":
        attacked["embedder"] = {"kind": embedder, "num_images": 100, "features": 6, "epochs": 1}
    output = tmp_path / "attack"
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["attack", written(attacked, tmp_path), "--output=~/attack"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((output / "attack.json").read_text())
    assert found["refuted"] is False
    assert found["conclusive"] is True
    assert found["measurable"] > found["claimed"]
    assert 0 <= found["assumption_free"] <= found["measured"] < found["claimed"] <= 8.0
    assert found["claimed"] == Ledger.open(output / "run" / "ledger.sqlite").spent()
    included = pq.read_table(output / "included.parquet")
    assert included.num_rows == found["num_included"]
    assert not Path(attacked["output"]["path"]).exists()
    # Again: nothing is flipped, drawn or spent anew.
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "the claim stands" in text
    assert json.loads((output / "attack.json").read_text()) == found


def test_too_few_canaries_conclude_nothing(
    ray_session: None,
    attacked: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    attacked["schedule"]["num_samples"] = [30, 30]
    attacked["privacy"]["epsilon"] = 50.0
    arguments = ["attack", written(attacked, tmp_path), "--output", str(tmp_path / "attack")]
    assert cli.main([*arguments, "--restarts", "0"]) == 0
    text = capsys.readouterr().out
    assert "inconclusive" in text
    assert "stands" not in text
    found = json.loads((tmp_path / "attack" / "attack.json").read_text())
    assert found["conclusive"] is False
    assert 0 < found["measurable"] <= found["claimed"]


def test_an_attack_goes_to_the_cluster_that_is_named(
    attacked: dict[str, Any], tmp_path: Path
) -> None:
    """In a process of its own, since a Ray may run in this one."""
    command = [sys.executable, "-m", "pe_ray", "attack", written(attacked, tmp_path)]
    command += ["--output", str(tmp_path / "attack"), "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pe-ray: resources.address: " in done.stderr.splitlines()[-1]


def test_users_are_canaries_with_records_in_every_label(
    ray_session: None, attacked: dict[str, Any], tmp_path: Path
) -> None:
    attacked["privacy"]["unit"] = "user"
    attacked["private"]["user_column"] = "whoever"
    attacked["votes"] = {"max_votes_per_user": 2}
    game = play(Config.from_dict(attacked), tmp_path / "attack", restarts=0)
    m = len(game.canaries.coins)
    assert m >= 20
    assert np.bincount(game.canaries.owner).tolist() == [4] * m
    assert [release.votes_per_unit for release in game.releases] == [2]
    votes = game.votes[0]
    assert np.bincount(votes.claimed[0]).tolist() == [2] * m
    assert np.bincount(votes.reached[0]).tolist() == [4] * m
    assert len(np.unique(votes.reached[1])) == 4 * m


def test_an_interrupted_attack_goes_on_with_the_same_coins(
    ray_session: None,
    attacked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(config: Config) -> Path:
        raise KeyboardInterrupt

    config = Config.from_dict(attacked)
    with monkeypatch.context() as patch:
        patch.setattr(evolution, "evolve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            play(config, tmp_path / "attack")
    included = (tmp_path / "attack" / "included.parquet").read_bytes()
    play(config, tmp_path / "attack", restarts=0)
    assert (tmp_path / "attack" / "included.parquet").read_bytes() == included


def test_an_output_that_is_a_file_is_named(attacked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "attack").write_text("kept")
    with pytest.raises(InputError, match=r"^--output: .*/attack can't be used \(File exists\)"):
        play(Config.from_dict(attacked), tmp_path / "attack")


def test_a_real_ledger_is_never_gone_near(
    attacked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(attacked["output"]["path"])
    run.mkdir()
    budget = Budget(epsilon=1.0, delta=1e-4, unit="record")
    Ledger.create(run / "ledger.sqlite", budget, "print")
    before = sorted(run.iterdir())
    config = written(attacked, tmp_path)
    assert cli.main(["attack", config, "--output", str(tmp_path / "attack")]) == 2
    assert "holds a run with a ledger" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before
    assert not (tmp_path / "attack").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "privacy.epsilon=.inf"], "privacy.epsilon: inf claims nothing"),
        (["--confidence", "1"], "--confidence"),
        (["--restarts", "-1"], "--restarts"),
        (["--set", "schedule.num_samples=12"], "room for"),
    ],
)
def test_what_can_not_be_attacked(
    ray_session: None,
    attacked: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    config = written(attacked, tmp_path)
    assert cli.main(["attack", config, "--output", str(tmp_path / "attack"), *changes]) == 2
    assert message in capsys.readouterr().err


def test_private_data_are_never_named_to_the_run(attacked: dict[str, Any]) -> None:
    made = canary_data(Config.from_dict(attacked), Path("canaries.parquet"))
    assert made.data == "canaries.parquet"
    assert made.cache == "none"


def test_chosen_rows_share_no_bin() -> None:
    choices = np.array([[0, 1], [1, 2], [2, 3], [4, -1], [5, 6]])
    assert _apart(choices).tolist() == [True, False, True, False, True]


def test_the_output_may_not_be_the_configurations(attacked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--output"):
        play(Config.from_dict(attacked), Path(attacked["output"]["path"]))
