"""Labels of a teacher: what the final set has, for any images, in their order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_public import save_public

from pe_ray import Config, InputError, label_images, save_images
from pe_ray.components.metrics.accuracy_metrics import ClassifierAccuracy
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.evolution import evolve
from pe_ray.files.image_batches import read_images
from pe_ray.report import write_report
from pe_ray.synthetic.scoring import reference_table

ONE = ResourcesConfig(num_cpus=2, workers=1)


@pytest.fixture
def taught(short: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run whose teacher reads digits by their edges, whitened on pictures of something else."""
    public = save_public(tmp_path / "public", ["a", "b", "c"], 80)
    whiten = {"data": str(public), "num_images": 200}
    short["embedder"] = {"kind": "pixels", "whiten": {"data": "population", "dims": 20}}
    short["embedder"]["whiten"]["num_images"] = 100
    short["teacher"] = {"features": 80, "embedder": {"kind": "gradients", "whiten": whiten}}
    short["privacy"]["epsilon"] = 10.0
    short["metrics"] = {}
    return short


def test_any_images_are_labelled_as_the_final_set_is(
    ray_session: None, taught: dict[str, Any], tmp_path: Path
) -> None:
    digits = load_digits()
    images = (digits.images[1200:, ..., None] * 15.9).astype(np.uint8)
    truth = digits.target[1200:]
    held = save_images(list(images), tmp_path / "held.parquet", truth.tolist())
    taught["metrics"] = {"public": {"data": str(held), "metrics": [{"kind": "classifier"}]}}
    run = evolve(Config.from_dict(taught))

    written = pq.read_table(label_images(run, str(held), str(tmp_path / "held-labels"), ONE))
    assert written.column_names == ["label", "score"]
    features = json.loads(written.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == list("0123456789")
    labels, scores = np.array(written["label"]), np.array(written["score"])
    right = labels == truth
    assert right.mean() > 0.8
    assert right[np.argsort(-scores)[:200]].mean() > right.mean()

    label_images(run, str(Path(run) / "synthetic"), str(tmp_path / "again"), ONE)
    final = pq.read_table(Path(run) / "synthetic")["label"]
    assert pq.read_table(tmp_path / "again")["label"].to_pylist() == final.to_pylist()

    page = write_report(run)
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["public/accuracy_teacher"] == pytest.approx(right.mean())
    assert f"{100 * right.mean():.1f} %" in Path(page).read_text()
    # The final set has the teacher's labels, so what is said of it is scored with them.
    images_made, labels_made = _read_final(Path(run))
    scorer = ClassifierAccuracy(ClassifierAccuracy.Options())
    config = Config.from_dict(taught)
    assert config.metrics.public is not None
    held_out = read_images(reference_table(config, config.metrics.public), config.framing)
    (expected,) = scorer.score(images_made, labels_made, *held_out).values()
    assert rows[-1]["public/accuracy_train_synthetic/final_set"] == pytest.approx(expected)

    # What it was whitened on is bound, and made again the same where it is lost.
    for file in (Path(run) / "features").glob("*.npz"):
        before = file.read_bytes()
        file.unlink()
        evolve(Config.from_dict(taught))
        assert file.read_bytes() == before

    # What can't be labelled is said, and nothing is written.
    public, output = tmp_path / "public", tmp_path / "labels"
    for wrong, place, message in (
        ("/nowhere", output, "IMAGES: /nowhere does not exist"),
        (taught["private"]["data"], output, "IMAGES: .* private records"),
        (str(public), tmp_path, "--output: .* is a folder"),
        (str(public), public / "labels", "--output: .* lies in"),
    ):
        with pytest.raises(InputError, match=message):
            label_images(run, wrong, str(place), ONE)
    (public / "a" / "00000.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"IMAGES: .*00000\.png"):
        label_images(run, str(public), str(output), ONE)
    assert not output.exists()


@pytest.mark.slow
def test_a_run_without_a_teacher_labels_nothing(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    short["metrics"] = {}
    run = evolve(Config.from_dict(short))
    with pytest.raises(InputError, match=r"run .*: has no teacher"):
        label_images(run, "sklearn:digits", str(tmp_path / "labels"))


def _read_final(run: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = pq.read_table(run / "synthetic")
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in rows["image"].to_pylist()]
    return np.stack(images)[..., None], np.array(rows["label"])
