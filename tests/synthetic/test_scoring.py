"""Scores on public images: of the right population, once, and without the private records."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import run_in
from undisturbed import charged, content

from pe_ray import Config, InputError, plugins
from pe_ray.components.metrics.distances import frechet_distance
from pe_ray.evolution import evolve
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.ledger import Ledger
from pe_ray.report import write_report
from pe_ray.synthetic import scoring
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.scoring import read_scores, score_population

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture
def scored(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The small run, scored against 150 public rendered digits of another style."""
    made = plugins.load("generator", "rendered_text")
    generator = made(made.Options(image_size=12, stroke=(0.1, 0.15)), NAMES)
    labels = (np.arange(150) % 10).astype(np.int32)
    seeds = row_seeds(5, "random", 0, np.arange(150, dtype=np.int64))
    images = generator.random(labels, seeds)["image"]
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images[..., 0]))
    pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / "public.parquet")
    tree["metrics"]["public"] = {
        "data": str(tmp_path / "public.parquet"),
        "metrics": [
            {"kind": "frechet", "embedder": {"kind": "pixels", "size": 4, "normalize": False}},
            {"kind": "classifier", "size": 6},
        ],
    }
    return tree


def rows_of(run: Path) -> list[dict[str, Any]]:
    write_report(run)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_population_has_its_own_scores(ray_session: None, scored: dict[str, Any]) -> None:
    config = Config.from_dict(scored)
    run = evolve(config)
    rows = rows_of(run)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    public = pq.read_table(scored["metrics"]["public"]["data"])["image"].combine_chunks()
    made = plugins.load("embedder", "pixels")
    embedder = made(made.Options(size=4, normalize=False))
    reference = embedder.embed(public.to_numpy_ndarray()[..., None])
    for row in rows:
        folder = run / "populations" / f"iter={row['iteration']:04d}"
        images = read_population(folder, np.arange(40), config.generator.options)["image"]
        expected = frechet_distance(embedder.embed(images), reference)
        assert row["public/frechet_distance/pixels"] == pytest.approx(expected, rel=1e-12)
        assert 0 <= row["public/accuracy_train_synthetic"] <= 1
    assert len({row["public/frechet_distance/pixels"] for row in rows}) == 3
    assert "noisy_votes" in rows[1]


def test_scores_are_made_once_and_made_again_where_they_are_lost(
    ray_session: None, scored: dict[str, Any]
) -> None:
    scored["metrics"]["public"] |= {"every": 2, "max_images": 30}
    run = evolve(Config.from_dict(scored))
    first, last = sorted((run / "scores").glob("iter=*"))
    assert [first.name, last.name] == ["iter=0000.json", "iter=0002.json"]
    before, kept = last.read_bytes(), first.stat()
    last.unlink()
    evolve(Config.from_dict(scored))
    assert first.stat().st_mtime_ns == kept.st_mtime_ns
    assert last.read_bytes() == before
    shutil.rmtree(run / "scores")
    assert len(rows_of(run)) == 2


def test_a_score_that_is_no_number_is_left_out_and_stops_no_run(
    scored: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = {"public/a": float("nan"), "public/b": 0.5}
    monkeypatch.setattr(scoring, "run_in_worker", lambda *arguments, resources: made)
    population: Any = SimpleNamespace(iteration=2)
    run = run_in(tmp_path, Config.from_dict(scored))
    score_population(run, population)
    assert read_scores(run.directory.scores(2)) == {"public/b": 0.5}
    assert "public/a of population 2 is not finite" in caplog.text


def test_a_reference_that_cant_be_used_is_refused_before_anything_is_spent(
    ray_session: None, scored: dict[str, Any], tmp_path: Path
) -> None:
    public = scored["metrics"]["public"]
    run = Path(scored["output"]["path"])
    scored["metrics"]["public"] = public | {"data": "/nowhere"}
    with pytest.raises(InputError, match=r"metrics\.public\.data: /nowhere does not exist"):
        evolve(Config.from_dict(scored))
    assert not run.exists()
    scored["metrics"]["public"] = public | {"label_column": None}
    with pytest.raises(InputError, match=r"metrics\.public\.metrics\.1: classifier needs"):
        evolve(Config.from_dict(scored))
    assert not run.exists()


def test_private_records_are_no_public_reference(scored: dict[str, Any]) -> None:
    public = scored["metrics"]["public"]
    scored["private"]["data"] = public["data"]
    with pytest.raises(InputError, match=r"metrics\.public\.data: is private\.data"):
        Config.from_dict(scored)
    scored["private"]["where"] = {"split": "train"}
    with pytest.raises(InputError, match=r"metrics\.public\.data: is private\.data"):
        Config.from_dict(scored)
    public["where"] = {"split": "train", "fold": 1}
    with pytest.raises(InputError, match=r"metrics\.public\.data: is private\.data"):
        Config.from_dict(scored)
    public["where"] = {"split": "test"}
    Config.from_dict(scored)
    public["data"] = str(Path(public["data"]).parent)
    del public["where"]
    with pytest.raises(InputError, match=r"metrics\.public\.data: is private\.data"):
        Config.from_dict(scored)


def test_a_metric_that_cant_be_built_is_refused_before_the_label_counts_are_charged(
    ray_session: None, scored: dict[str, Any], tmp_path: Path
) -> None:
    scored["privacy"]["label_fractions"] = "dp"
    damaged, metrics = tmp_path / "inception.pt", scored["metrics"]["public"]["metrics"]
    damaged.write_bytes(b"no network")
    embedder = {"kind": "inception", "weights": str(damaged)}
    broken = {"public": scored["metrics"]["public"] | {"metrics": [{**metrics[0]}]}}
    broken["public"]["metrics"][0]["embedder"] = embedder
    with pytest.raises(InputError, match=r"weights: "):
        evolve(Config.from_dict(scored | {"metrics": broken}))
    ledger = Ledger.open(Path(scored["output"]["path"]) / "ledger.sqlite")
    assert not ledger.charged
    run = evolve(Config.from_dict(scored))
    assert ledger.charged
    assert len(rows_of(run)) == 3


def test_a_run_continues_with_other_metrics_and_scores_all_populations_again(
    ray_session: None, scored: dict[str, Any], tmp_path: Path
) -> None:
    run = evolve(Config.from_dict(scored))
    made, spent = content(run), charged(run)
    first = rows_of(run)
    # Another metric: no score of the one before is left.
    changed = copy.deepcopy(scored)
    changed["metrics"]["public"]["metrics"] = [scored["metrics"]["public"]["metrics"][0]]
    evolve(Config.from_dict(changed))
    kept = [{name: row[name] for name in row if "accuracy" not in name} for row in first]
    assert rows_of(run) == kept
    # Other public images at the same path: the scores are new.
    file = Path(scored["metrics"]["public"]["data"])
    pq.write_table(pq.read_table(file).slice(0, 50), file)
    evolve(Config.from_dict(changed))
    name = "public/frechet_distance/pixels"
    assert all(row[name] != before[name] for row, before in zip(rows_of(run), first, strict=True))
    # None: none.
    changed["metrics"]["public"] = None
    evolve(Config.from_dict(changed))
    assert not any("public" in name for row in rows_of(run) for name in row)
    assert (content(run), charged(run)) == (made, spent)
