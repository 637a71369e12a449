"""Measure a teacher on a real data set: a whole run, then its labels of the test images.

    python -m benchmarks.natural.teacher DATA PUBLIC --output DIR
        [--kind natural|gradients|joined] [--model lite0] [--size 128]
        [--channels 3] [--image-size 32] [--features 256] [--epsilon 1] [--share .9] [--seed 0]

DATA: parquet with columns image, label (0..9) and split (train, test). PUBLIC: public images, on
which the embedder is whitened and which the run's samples are. joined: natural and gradients. DIR
keeps the run and, for the next with the same embedder, the private features. The test images are
read once, by `label_images`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pe_ray import Config, evolve, label_images


def configure(given: argparse.Namespace, num_records: int) -> dict[str, Any]:
    natural = {"kind": "natural", "model": given.model, "size": given.size}
    embedder: dict[str, Any] = {
        "natural": natural,
        "joined": {"kind": "joined", "members": [{"embedder": natural}, {"embedder": "gradients"}]},
    }.get(given.kind, {"kind": given.kind})
    embedder |= {"whiten": {"data": given.public}}
    name = f"{given.kind}-{given.model}-{given.features}-{given.epsilon:g}-{given.share:g}"
    return {
        "private": {
            "data": given.data,
            "labels": [str(label) for label in range(10)],
            "where": {"split": "train"},
            "cache": f"{given.output}/private",
        },
        "generator": {
            "kind": "nearest_image",
            "data": given.public,
            "classes": "random",
            "image_size": given.image_size,
            "channels": given.channels,
            "cache": f"{given.output}/public",
        },
        "embedder": {"kind": "pixels"},
        "schedule": {
            "iterations": 1,
            "num_samples": 1000,
            "degrees": 16,
            "seed": given.seed,
        },
        "privacy": {
            "epsilon": given.epsilon,
            "delta": 1 / (num_records * math.log(num_records)),
            "unit": "record",
            "label_fractions": "uniform",
        },
        "teacher": {"share": given.share, "features": given.features, "embedder": embedder},
        "output": {"path": f"{given.output}/{name}-{given.seed}"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("public")
    parser.add_argument("--output", required=True)
    parser.add_argument("--kind", default="natural")
    parser.add_argument("--model", default="lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(given.data)
    is_test = np.array(rows["split"].to_pylist()) == "test"
    test = rows.filter(is_test)
    pq.write_table(test.select(["image"]), folder / "test.parquet")
    started = time.monotonic()
    run = evolve(Config.from_dict(configure(given, int((~is_test).sum()))))
    trained = time.monotonic()
    file = label_images(run, str(folder / "test.parquet"), str(folder / "labels.parquet"))
    made = pq.read_table(file)
    truth = np.array(test["label"], dtype=np.int64)
    right = np.array(made["label"]) == truth
    surest = np.argsort(-np.array(made["score"]))[: len(right) // 10]
    shown = {
        "run": run.path.name,
        "accuracy": round(float(right.mean()), 4),
        "of the surest tenth": round(float(right[surest].mean()), 4),
        "run_seconds": round(trained - started),
        "label_seconds": round(time.monotonic() - trained),
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
