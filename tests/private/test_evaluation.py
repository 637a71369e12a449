"""The audit scores on the records it was told to, and names a filter that keeps none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pe_ray import Config, InputError
from pe_ray.components.embedders.pixels import Pixels
from pe_ray.components.metrics.distances import frechet_distance
from pe_ray.evolution import evolve
from pe_ray.private.evaluation import audit
from pe_ray.release.evidence import open_run
from pe_ray.synthetic.population_files import read_population

SPLITS = ["train", "test"]


@pytest.fixture
def images(tree: dict[str, Any], tmp_path: Path) -> np.ndarray:
    """80 private images, every other one for testing, in the run's configuration."""
    made = np.random.default_rng(0).integers(0, 256, (80, 12, 12), dtype=np.uint8)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(made)
    table = pa.table({"image": column, "label": np.arange(80) % 10, "split": SPLITS * 40})
    pq.write_table(table, tmp_path / "records.parquet")
    tree["private"] |= {"data": str(tmp_path / "records.parquet"), "where": {"split": "train"}}
    embedder = {"kind": "pixels", "size": 3, "normalize": False}
    tree["metrics"] = {"audit": [{"kind": "frechet", "embedder": embedder}]}
    tree["privacy"]["epsilon"] = float("inf")
    return made


@pytest.mark.parametrize("split", [None, "test"])
def test_scores_are_on_the_rows_that_were_named(
    ray_session: None, tree: dict[str, Any], images: np.ndarray, split: str | None
) -> None:
    if split:
        tree["metrics"]["audit_where"] = {"split": split}
    config = Config.from_dict(tree)
    run = evolve(config)
    rows = read_population(
        run / "populations" / "iter=0002", np.arange(40), config.generator.options
    )
    embedder = Pixels(Pixels.Options(size=3, normalize=False))
    kept = images[SPLITS.index(split or "train") :: 2, :, :, None]
    expected = frechet_distance(embedder.embed(rows["image"]), embedder.embed(kept))
    assert audit(open_run(run)) == {"frechet_distance/pixels": pytest.approx(expected, rel=1e-12)}


def test_a_filter_that_keeps_nothing_is_named(
    ray_session: None, tree: dict[str, Any], images: np.ndarray
) -> None:
    tree["metrics"]["audit_where"] = {"split": "tset"}
    run = evolve(Config.from_dict(tree))
    with pytest.raises(InputError, match=r"^metrics\.audit_where: "):
        audit(open_run(run))


def test_a_finished_run_takes_over_what_to_audit(
    ray_session: None, tree: dict[str, Any], images: np.ndarray
) -> None:
    wanted, tree["metrics"] = tree["metrics"], {}
    run = evolve(Config.from_dict(tree))
    with pytest.raises(InputError, match=r"^metrics\.audit: "):
        audit(open_run(run))
    made = (run / "synthetic" / ".manifest.json").stat().st_mtime_ns
    tree["metrics"] = wanted | {"audit_data": "/nowhere"}
    evolve(Config.from_dict(tree))
    assert (run / "synthetic" / ".manifest.json").stat().st_mtime_ns == made
    with pytest.raises(InputError, match=r"^metrics\.audit_data: .*nowhere"):
        audit(open_run(run))
    tree["metrics"] = wanted
    evolve(Config.from_dict(tree))
    assert "frechet_distance/pixels" in audit(open_run(run))
