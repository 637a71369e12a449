"""DPImageBench's protocol: its networks, its training, and its table from one command."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pe_ray import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINE = """
private: {data: x, labels: ["0", "1"], where: {split: train}}
generator: {kind: rendered_text, image_size: 12}
embedder: {kind: pixels, size: 6}
schedule: {iterations: 1, num_samples: 60, degrees: 0.5}
privacy: {epsilon: 3.0, delta: 1.0e-4, unit: record, label_fractions: uniform}
metrics:
  audit_where: {split: test}
  audit: [classifier, {kind: frechet, embedder: {kind: pixels, size: 6}}]
resources: {num_cpus: 2, workers: 1}
output: {path: x}
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY))
        yield importlib.import_module("benchmarks.dpimagebench.__main__")


def draw(num: int, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Bright on the left (label 0) or on the right (label 1)."""
    images = np.random.default_rng(num).integers(0, 60, (num, size, size, 1))
    labels = np.arange(num) % 2
    images[labels == 0, :, : size // 2] += 150
    images[labels == 1, :, size // 2 :] += 150
    return images.astype(np.uint8), labels


def write_data(file: Path, num_train: int, num_test: int) -> None:
    images, labels = draw(num_train + num_test)
    cells = []
    for image in images[..., 0]:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "png")
        cells.append(sink.getvalue())
    split = ["train"] * num_train + ["test"] * num_test
    pq.write_table(pa.table({"image": cells, "label": labels, "split": split}), file)


@pytest.mark.parametrize(
    ("recipe", "channels", "network", "num_weights"),
    [  # of DPImageBench's own code, January 2026
        ("cifar", 3, "ResNet-164", 2_605_658),
        ("cifar", 3, "WRN-28-10", 36_479_194),
        ("cifar", 3, "ResNeXt-28 8x10", 40_559_690),
        ("other", 1, "ResNet-110", 1_730_426),
        ("other", 1, "WRN-40-4", 8_948_922),
        ("other", 1, "ResNeXt-29 8x4", 34_425_546),
    ],
)
def test_networks_are_the_known_ones(
    bench: ModuleType, recipe: str, channels: int, network: str, num_weights: int
) -> None:
    with torch.device("meta"):
        made = bench.RECIPES[recipe].networks[network](channels, 10)
        assert made(torch.empty(2, channels, 28, 28)).shape == (2, 10)
        # The last stage sees a quarter of the image's side.
        assert made[:-3](torch.empty(2, channels, 32, 32)).shape[2:] == (8, 8)
    assert sum(weights.numel() for weights in made.parameters()) == num_weights


def test_a_training_that_was_killed_ends_as_an_undisturbed_one(
    bench: ModuleType, tmp_path: Path
) -> None:
    recipe = replace(bench.RECIPES["cpu"], epochs=4, batch_size=16)

    def train(epochs: int, state: str) -> dict[str, float]:
        return bench.train_and_test(
            replace(recipe, epochs=epochs),
            "WRN-10-1",
            draw(60),
            draw(40),
            num_labels=2,
            num_train=50,
            seed=3,
            state=tmp_path / state,
        )

    undisturbed = train(4, "whole.pt")
    train(2, "killed.pt")  # what a kill in the third epoch leaves
    assert train(4, "killed.pt") == undisturbed
    weights = [torch.load(tmp_path / f"{name}.pt")["model"] for name in ("whole", "killed")]
    assert all(torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True))
    assert undisturbed["test"] > 80


@pytest.mark.slow
def test_the_command_writes_a_table_and_continues(
    bench: ModuleType, ray_session: None, tmp_path: Path
) -> None:
    data, pipeline = tmp_path / "data.parquet", tmp_path / "tiny.yaml"
    write_data(data, num_train=50, num_test=30)
    pipeline.write_text(PIPELINE)
    given = bench.read_arguments(
        f"--dataset mnist --data {data} --epsilon 1 --seeds 0 1 --budget cpu "
        f"--pipeline {pipeline} --output {tmp_path / 'out'} --set votes.neighbors=2".split()
    )
    given.num_images, given.num_train = 60, 50
    data_set = bench.DataSet(
        pipeline=None, labels=("0", "1"), private_rows=40, published={"Other": (50.0, 60.0)}
    )
    bench.measure(given, data_set)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "out/mnist.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert len(row["networks"]) == 3
        assert row["delta"] == pytest.approx(1 / (40 * np.log(40)))
        assert 0.9 < row["epsilon_spent"] <= 1
        assert list(row["distances"]) == ["frechet_distance/pixels"]
    table = (tmp_path / "out/mnist.md").read_text()
    best = np.mean([max(n["test"] for n in row["networks"].values()) for row in rows])
    assert f"{best:.2f}" in table
    assert "| Other | 10 | DPImageBench's | | | 60.0 | |" in table
    # A second start makes nothing again, except one network whose scores were lost.
    (tmp_path / "out/mnist/tiny-1-1/cpu/ResNet-8.json").unlink()
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.glob("out/mnist/tiny-*/cpu/*.json")}
    bench.measure(given, data_set)
    assert json.loads((tmp_path / "out/mnist.json").read_text()) == rows
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    assert pq.read_metadata(tmp_path / "out/mnist/data/private.parquet").num_rows == 40
    # Beside it, what the same networks read when trained on the private rows: on 33 of the 40.
    given.real = True
    bench.measure(given, data_set)
    made = json.loads((tmp_path / "out/mnist.json").read_text())
    real = [row for row in made if row["epsilon"] is None]
    assert [row for row in made if row not in real] == rows
    assert [row["seed"] for row in real] == [0, 1]
    images, test = (
        bench.read_images(tmp_path / "out/mnist/data" / name)
        for name in ("private.parquet", "test.parquet")
    )
    alone = bench.train_and_test(
        bench.RECIPES["cpu"],
        "ResNet-8",
        images,
        test,
        num_labels=2,
        num_train=33,
        seed=1,
        state=tmp_path / "alone.pt",
    )
    assert real[1]["networks"]["ResNet-8"] == alone
    mean = np.mean([n["test"] for row in real for n in row["networks"].values()])
    line = next(x for x in (tmp_path / "out/mnist.md").read_text().splitlines() if "| inf |" in x)
    assert line.startswith("| private rows |")
    assert f"{mean:.2f}" in line


def test_data_that_the_protocol_cannot_use_are_refused(bench: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "data.parquet"
    write_data(data, num_train=10, num_test=2)
    with pytest.raises(InputError, match="11 and some"):
        bench.split_data(data, 11, tmp_path / "out")
    pq.write_table(pq.read_table(data).drop_columns("split"), data)
    with pytest.raises(InputError, match="no column split"):
        bench.split_data(data, 10, tmp_path / "out")
