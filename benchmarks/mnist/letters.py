"""Measure the teacher on public stand-ins: ten EMNIST letters instead of private digits.

One process, no Ray, no ledger: the votes' noise and the release's are Gaussian and NOT private, so
this is for choosing settings on public data only. 17,000 letters stand for 60,000 records, so noise
is scaled by 17/60. Accuracies are on all 19,000 letters, which the synthetic set saw through noise
only.

    python -m benchmarks.mnist.letters LETTERS.parquet --population FILE.npz
        [--share .5] [--seed 0] [--rows votes relabel filter]

LETTERS.parquet: columns image, label (0..25) and split. FILE.npz keeps the last population, so that
further rows reuse it (a minute or more of rendering).
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pe_ray import plugins
from pe_ray.components.denoisers import Simplex
from pe_ray.components.embedders import convnet, label_features
from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.components.moments import GRAM_SHARE
from pe_ray.config import Config
from pe_ray.files.storage import expand_home
from pe_ray.plugins.seeds import row_seeds
from pe_ray.synthetic.denoising import fall_back
from pe_ray.synthetic.selection import draw_parents
from pe_ray.synthetic.teacher import ridge

LETTERS = "ABDEGHMNQR"
RECORDS = 60_000
MU = 0.2416  # Gaussian DP at epsilon 1, delta 1.515e-6
PIPELINE = Path(__file__).parents[2] / "pipelines" / "mnist.yaml"
WIDE = (
    "generator.size=[0.94, 1.3]",
    "generator.offset=[-0.08, 0.08]",
    "generator.placement_change=0.2",
    "schedule.degrees=[0.6, 0.45, 0.35, 0.3]",
    "schedule.num_samples=[60000, 20000, 20000, 20000, 60000]",
    "teacher.keep=null",
)
"""Changes of the pipeline that suit characters of any size and place, and keep all that is made."""
Floats = NDArray[np.float64]


def read_letters(file: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    table = pq.read_table(file)
    images, labels = [], []
    columns = (table[name].to_pylist() for name in ("image", "label", "split"))
    for cell, label, part in zip(*columns, strict=True):
        if part == split and chr(65 + label) in LETTERS:
            content = cell["bytes"] if isinstance(cell, dict) else cell
            images.append(np.asarray(Image.open(io.BytesIO(content)).convert("L")))
            labels.append(LETTERS.index(chr(65 + label)))
    return np.stack(images)[..., None], np.array(labels, dtype=np.int32)


def evolve(
    records: NDArray[np.uint8], record_labels: NDArray[np.int32], share: float, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return images and labels of the last population, with `share` of the budget for votes."""
    import faiss

    config = Config.from_yaml(PIPELINE, WIDE)
    options = config.generator.options
    generator = plugins.load("generator", "rendered_text")(options, list(LETTERS))
    embedder = Pixels(PixelsOptions(size=14, blur=1.0))
    schedule, k = config.schedule, config.votes.neighbors
    denoiser = Simplex(plugins.Options())
    rng = np.random.default_rng(seed + 1000)
    sigma = math.sqrt(k * schedule.iterations / share) / MU * len(records) / RECORDS
    vectors = embedder.embed(records)
    labels = np.repeat(np.arange(10, dtype=np.int32), schedule.sizes[0] // 10)
    rows = generator.random(labels, row_seeds(seed, "random", 0, np.arange(len(labels))))
    for iteration, degree in enumerate(schedule.degree_list, start=1):
        samples, parents = embedder.embed(rows["image"]), []
        for label in range(10):
            ids = np.flatnonzero(labels == label)
            nearest = faiss.knn(vectors[record_labels == label], samples[ids], k)[1]
            counts = np.bincount(nearest.ravel(), minlength=len(ids))
            noisy = np.round(counts + rng.normal(0, sigma, len(ids)))
            weights = fall_back(denoiser.weigh(noisy, sigma), noisy)
            num = schedule.sizes[iteration] // 10
            chosen = draw_parents(weights, num, "systematic", seed * 100 + iteration * 10 + label)
            parents.append(ids[chosen])
        family = np.concatenate(parents)
        labels = labels[family]
        before = {name: values[family] for name, values in rows.items()} | {"label": labels}
        seeds = row_seeds(seed, "variation", iteration, np.arange(len(family)))
        rows = generator.vary(before, degree, seeds)
    return rows["image"], labels


def noisy_moments(
    features: Floats, labels: NDArray[np.int32], share: float, seed: int
) -> tuple[Floats, Floats, float]:
    """Return noisy F^T F and F^T Y and their sigma, scaled to the number of stand-ins."""
    rng, size, scale = np.random.default_rng(seed), features.shape[1], len(labels) / RECORDS
    sigma = scale / (MU * math.sqrt(share))
    upper = np.triu(rng.normal(size=(size, size)), 1) / math.sqrt(2)
    noise = upper + upper.T + np.diag(rng.normal(size=size))
    gram = features.T @ features + sigma / math.sqrt(GRAM_SHARE) * noise
    cross = features.T @ np.eye(10)[labels]
    cross = cross + sigma / math.sqrt(1 - GRAM_SHARE) * rng.normal(size=cross.shape)
    return gram, cross, sigma


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=expand_home)
    parser.add_argument("--population", type=expand_home, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of the teacher; votes: the rest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rows", nargs="+", default=["votes", "relabel"])
    options = parser.parse_args()
    records, record_labels = read_letters(options.data, "train")
    others, other_labels = read_letters(options.data, "test")
    whole, truth = np.concatenate([records, others]), np.concatenate([record_labels, other_labels])
    if not options.population.exists():
        made = evolve(records, record_labels, 1 - options.share, options.seed)
        np.savez(options.population, images=made[0], labels=made[1])
    with np.load(options.population, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]

    def report(name: str, train_on: Any, targets: NDArray[np.int32]) -> None:
        guesses = convnet.classify(convnet.train(train_on, targets, epochs=2, seed=21), whole)
        print(f"{name}: {100 * np.mean(guesses == truth):.2f}", flush=True)

    if "votes" in options.rows:
        report("votes alone", images, labels)
    arrays = label_features.fit(images, labels, options.features, epochs=2, seed=options.seed)
    file = options.population.with_suffix(".features.npz")
    np.savez(file, allow_pickle=False, **arrays)
    settings = label_features.LearntFeaturesOptions(file=str(file), num_features=options.features)
    embedder = label_features.LearntFeatures(settings)
    of_records = embedder.embed(records).astype(np.float64)
    moments = noisy_moments(of_records, record_labels, options.share, options.seed)
    weights = ridge(*moments, arrays["prior"])
    relabelled = (embedder.embed(images) @ weights).argmax(axis=1).astype(np.int32)
    alone = np.mean((embedder.embed(whole) @ weights).argmax(axis=1) == truth)
    kept = relabelled == labels
    print(f"the teacher alone as classifier: {100 * alone:.2f}")
    print(f"final images that keep their label: {100 * kept.mean():.1f}", flush=True)
    if "relabel" in options.rows:
        report("relabelled", images, relabelled)
    if "filter" in options.rows:
        report("without images that the teacher labels differently", images[kept], labels[kept])


if __name__ == "__main__":
    main()
