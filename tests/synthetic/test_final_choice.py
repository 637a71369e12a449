"""The final set that a teacher chooses: who is kept, and that all that reads it follows."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from verified import differing

from pe_ray import Config, InputError, evolve, expand, label_images, save_images
from pe_ray.components.metrics.distance_metrics import FrechetDistance
from pe_ray.files.array_files import read_arrays, write_arrays
from pe_ray.synthetic.final_choice import herd
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.teacher import find_means
from pe_ray.values import LabelLayout


@pytest.fixture
def choosing(short: dict[str, Any]) -> dict[str, Any]:
    """A run without noise, whose teacher keeps half of S_1."""
    short["votes"] = {}
    short["metrics"] = {"audit": [{"kind": "frechet"}]}
    short["privacy"]["epsilon"] = math.inf
    whiten = {"data": "population", "num_images": 200}
    embedder = {"kind": "pixels", "size": 6, "whiten": whiten}
    short["teacher"] = {"features": 16, "embedder": embedder, "keep": 20}
    return short


def images_of(folder: Path) -> list[bytes]:
    table = pq.read_table(folder, columns=["image"])
    return [cell["bytes"] for cell in table["image"].to_pylist()]


def test_the_teacher_keeps_its_share_of_each_label(
    ray_session: None, choosing: dict[str, Any], tmp_path: Path
) -> None:
    run = Path(str(evolve(Config.from_dict(choosing))))
    kept = read_arrays(run / "teacher" / "kept.npz")["ids"]
    table = pq.read_table(run / "synthetic")
    assert 10 <= len(table) == len(kept) <= 20
    assert np.bincount(table["label"]).max() == 2
    assert len(set(images_of(run / "synthetic"))) == len(table)
    labels = pq.read_table(label_images(run, run / "synthetic", tmp_path / "labels"))["label"]
    assert table["label"].to_pylist() == labels.to_pylist()
    assert differing(run) == set()

    expand(run, None, tmp_path / "same")
    assert sorted(images_of(tmp_path / "same")) == sorted(images_of(run / "synthetic"))
    expand(run, 3 * len(kept), tmp_path / "more")
    assert len(images_of(tmp_path / "more")) == 3 * len(kept)

    # Lost, it is chosen again as it was.
    shutil.rmtree(run / "synthetic")
    (run / "teacher" / "kept.npz").unlink()
    with pytest.raises(InputError, match="not finished"):
        expand(run, 10, tmp_path / "none")
    evolve(Config.from_dict(choosing))
    assert np.array_equal(read_arrays(run / "teacher" / "kept.npz")["ids"], kept)
    assert pq.read_table(run / "synthetic").equals(table)

    # Another choice than the final set's is seen.
    others = np.setdiff1d(np.arange(40), kept)[: len(kept)]
    write_arrays(run / "teacher" / "kept.npz", {"ids": others})
    assert differing(run)


def test_what_is_kept_is_scored(
    ray_session: None, choosing: dict[str, Any], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    public = save_images(list(noise), tmp_path / "public.parquet", [str(n % 10) for n in range(30)])
    choosing["metrics"]["public"] = {"data": str(public), "metrics": ["frechet"]}
    run = Path(str(evolve(Config.from_dict(choosing))))
    cells = [np.asarray(Image.open(io.BytesIO(image))) for image in images_of(run / "synthetic")]
    kept, labels = np.stack(cells)[..., None], np.zeros(len(cells), np.int32)
    metric = FrechetDistance(FrechetDistance.Options())
    (expected,) = metric.score(kept, labels, noise[..., None], labels).values()
    scores = json.loads((run / "scores" / "teacher.json").read_text())
    assert scores["public/frechet_distance/pixels/final_set"] == pytest.approx(expected)


def test_the_surest_are_kept(ray_session: None, choosing: dict[str, Any], tmp_path: Path) -> None:
    choosing["teacher"]["keep_by"] = "score"
    run = Path(str(evolve(Config.from_dict(choosing))))
    kept = read_arrays(run / "teacher" / "kept.npz")["ids"]
    del choosing["teacher"]["keep"]
    choosing["output"]["path"] = str(tmp_path / "all")
    whole = evolve(Config.from_dict(choosing)) / "synthetic"
    scored = pq.read_table(label_images(run, whole, tmp_path / "labels"))
    labels, scores = (np.asarray(scored[name]) for name in ("label", "score"))
    for label in range(10):
        own, chosen = scores[labels == label], scores[kept][labels[kept] == label]
        assert len(chosen) == min(2, len(own))
        assert np.sort(chosen).tolist() == np.sort(own)[-2:].tolist()[-len(chosen) or 2 :]


def test_herding_follows_the_mean_and_repeats_nothing() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((500, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mean = features[:100].mean(axis=0).astype(np.float64)
    chosen = herd(features, mean, 60)
    assert len(set(chosen.tolist())) == 60
    apart = np.linalg.norm(features[chosen].mean(axis=0) - mean)
    draws = [features[rng.choice(500, 60, replace=False)].mean(axis=0) for _ in range(100)]
    assert apart < min(np.linalg.norm(draw - mean) for draw in draws)
    assert sorted(herd(features[:5], mean, 60).tolist()) == list(range(5))


def test_means_are_told_from_moments() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000)
    features = np.eye(3)[labels] @ rng.standard_normal((3, 6)) + rng.standard_normal((3000, 6))
    features = np.concatenate([features, np.full((3000, 1), 0.8)], axis=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = find_means(features.T @ features, features.T @ np.eye(3)[labels], 0.0)
    true = np.stack([features[labels == label].mean(axis=0) for label in range(3)], axis=1)
    assert found == pytest.approx(true, rel=0.2, abs=0.02)
    lengths = np.linalg.norm(found, axis=0) * np.linalg.norm(true, axis=0)
    assert ((found * true).sum(axis=0) / lengths > 0.999).all()  # the number is told less well


def test_a_population_of_some_rows_keeps_their_labels() -> None:
    whole = Population(iteration=1, layout=LabelLayout(counts=(3, 0, 4)), directory=Path("none"))
    some = whole.only(np.array([0, 2, 5]))
    assert some.layout.counts == (2, 0, 1)
    assert some.find_rows(np.array([2, 0])).tolist() == [5, 0]
    assert whole.find_rows(np.array([2, 0])).tolist() == [2, 0]


@pytest.mark.parametrize("keep", [9, 41])
def test_more_than_there_are_or_none_of_a_label_cannot_be_kept(
    choosing: dict[str, Any], keep: int
) -> None:
    choosing["teacher"]["keep"] = keep
    with pytest.raises(InputError, match=r"teacher\.keep"):
        Config.from_dict(json.loads(json.dumps(choosing)))
