"""The privacy score of real runs: what it tells, what it writes (nothing), and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from pe_ray import Config, cli
from pe_ray.auditing.privacy_score import score_privacy
from pe_ray.evolution import evolve
from pe_ray.release.evidence import open_run

CHANNELS = {"counts", "survival", "children", "lineage", "images", "together"}


def save(file: Path, images: np.ndarray, labels: np.ndarray, **columns: Any) -> str:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    pq.write_table(pa.table({"image": column, "label": labels, **columns}), file)
    return str(file)


@pytest.fixture
def scored(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Digits, every other one of which votes; the others are held out, ten copies among them."""
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)
    split = np.where(np.arange(len(images)) % 2, "test", "train")
    images[1:20:2] = images[0:20:2]
    users = np.arange(len(images)) // 4 + 300 * (split == "test")  # 149 of them in both splits
    tree["private"] |= {
        "data": save(tmp_path / "data.parquet", images, digits.target, split=split, user=users),
        "where": {"split": "train"},
    }
    tree["metrics"] = {"audit_where": {"split": "test"}}
    tree["schedule"]["num_samples"] = [800, 400, 200]
    tree["privacy"]["epsilon"] = 10.0
    return tree


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_score_is_printed_and_written_nowhere(
    ray_session: None, scored: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(str(evolve(Config.from_dict(scored))))
    before = contents(run)
    assert cli.main(["audit", str(run), "--privacy", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert contents(run) == before
    assert score["units"]["voted"] == 899
    assert score["units"]["held_out_dropped"] == 10
    assert score["units"]["held_out"] == 888
    assert set(score["channels"]) == CHANNELS
    # The votes were followed exactly, lookahead included: what is left is the noise.
    assert score["exact"] is True
    assert score["controls"]["noise"] == pytest.approx([1, 1], abs=0.15)
    assert score["controls"]["records"]["low"] < 0.55
    assert score["near_copies"]["expected"] == 2
    assert not any(found["above"] for found in score["channels"].values())
    assert 9 < score["epsilon"] <= 10
    assert set(score["channels"]["counts"]["by_label"]) == set("0123456789")


@pytest.mark.slow
def test_images_that_are_records_are_listed(
    ray_session: None, scored: dict[str, Any], tmp_path: Path
) -> None:
    """A public set that holds the records: nothing but the images tells."""
    table = pq.read_table(scored["private"]["data"])
    voted = table.filter(pc.equal(table["split"], "train"))
    images = voted["image"].combine_chunks().to_numpy_ndarray()
    public = save(tmp_path / "public.parquet", images, voted["label"].combine_chunks())
    scored["generator"] = {
        "kind": "nearest_image",
        "data": public,
        "image_size": 8,
        "channels": 1,
        "cache": str(tmp_path / "cache"),
    }
    scored["schedule"] = {"iterations": 1, "num_samples": [800, 800], "degrees": 3}
    scored["embedder"]["size"] = 8
    scored["votes"] = {}
    scored["privacy"]["epsilon"] = 1.0
    score = score_privacy(open_run(evolve(Config.from_dict(scored))))
    assert score["near_copies"]["number"] == 800
    assert score["near_copies"]["images"][0][1] == 0
    assert score["distances"]["nearer"]["share"] > 0.95
    assert score["distances"]["closest"]["voted"] == 0
    assert score["controls"]["first_population"]["low"] > 0.6
    assert score["channels"]["images"]["above"]
    assert score["channels"]["images"]["epsilon"] > 1


@pytest.mark.slow
def test_users_are_units(
    ray_session: None, scored: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    scored["private"]["user_column"] = "user"
    scored["privacy"]["unit"] = "user"
    scored["votes"] = {"max_votes_per_user": 2}
    scored["schedule"] = {"iterations": 1, "num_samples": [1500, 100], "degrees": 0.5}
    run = evolve(Config.from_dict(scored))
    score = score_privacy(open_run(run), 250)
    assert score["units"]["voted"] == 250
    assert score["units"]["held_out"] < 250
    assert score["units"]["held_out_dropped"] > 0
    assert cli.main(["audit", str(run), "--privacy"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("PRIVATE")
    assert all(f"\n{name} " in output.out for name in CHANNELS)


@pytest.mark.slow
def test_votes_are_followed_less_exactly_without_lookahead(
    ray_session: None, scored: dict[str, Any]
) -> None:
    score = score_privacy(open_run(evolve(Config.from_dict(scored))), lookahead=False)
    assert score["exact"] is False
    assert min(score["controls"]["noise"]) > 1.2


@pytest.mark.slow
def test_what_can_not_be_scored(
    ray_session: None, scored: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    scored["schedule"] = {"iterations": 1, "num_samples": 40, "degrees": 0.5}
    for metrics, options, field in (
        ({}, [], "metrics.audit_where"),
        ({"audit_where": {"split": "tset"}}, [], "metrics.audit_where"),
        ({"audit_data": "/absent.parquet"}, [], "metrics.audit_data"),
        ({"audit_where": {"split": "test"}}, [], "--num-records"),  # one for each of 40 samples
        ({"audit_where": {"split": "test"}}, ["--num-records", "19"], "--num-records"),
        ({"audit_where": {"split": "test"}}, ["--set", "privacy.epsilon=3"], "--set"),
    ):
        scored["metrics"] = metrics
        run = evolve(Config.from_dict(scored))
        assert cli.main(["audit", str(run), "--privacy", *options]) == 2
        assert f"pe-ray: {field}: " in capsys.readouterr().err
    shutil.rmtree(run / "populations" / "iter=0001")
    assert cli.main(["audit", str(run), "--privacy"]) == 2
    assert "not finished" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--num-records", "50"], ["--no-lookahead"]])
def test_options_of_the_score_are_not_ignored_without_it(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", "no-such-run", *options]) == 2
    assert "pe-ray: --privacy: " in capsys.readouterr().err
