"""Compare ways to a final set of public images, on features that are made once.

    python -m benchmarks.natural.finite PUBLIC --output DIR
        [--data DATA] [--model lite0] [--limit N] [--seeds 1] [--ways pe,mean] [--sets]

PUBLIC: parquet with columns image and label. Without DATA, half of its classes stand for private
records, in ten groups of neighbours by name, and the other half is public: settings are chosen so.
DATA: parquet with columns image, label (0..9) and split (train, test).

Steps are those of the product (search, noise's scale, smoothing, threshold, selection, ridge,
herding), on Gaussian noise instead of the discrete. Where there are fewer than 50,000 records,
each votes for as many nearest images as records it stands for. DIR keeps features and, with
--sets, final sets and pictures of a hundred of their images. --limit: images read of each file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.components.denoisers import Threshold, ThresholdOptions
from pe_ray.components.embedders import convnet
from pe_ray.components.embedders.timm_networks import NaturalOptions
from pe_ray.components.embedders.whitening import fit_whitening, whiten
from pe_ray.components.metrics.distances import frechet_distance
from pe_ray.components.moments import RidgeMoments
from pe_ray.components.nearest import NearestSearch, nearest_others
from pe_ray.files.images import frame_image
from pe_ray.plugins import build
from pe_ray.synthetic.final_choice import herd
from pe_ray.synthetic.selection import draw_parents
from pe_ray.synthetic.smoothing import smooth
from pe_ray.synthetic.teacher import find_means, ridge
from pe_ray.values import Framing, ImageShape

Ids = NDArray[np.int64]
Floats = NDArray[Any]
Set = tuple[Ids, Ids]
"""Public images and their labels."""

NUM_LABELS, NUM_FEATURES, RECORDS, WIDEST = 10, 256, 50_000, 1024
FRAMING = Framing(shape=ImageShape(height=32, width=32, channels=3))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return mu of Gaussian DP that is (epsilon, delta)-DP (Dong, Roth, Su 2022, corollary 1)."""
    normal = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    low, high = 0.0, 10.0 + epsilon
    for _ in range(100):
        mu = (low + high) / 2
        found = normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)
        low, high = (mu, high) if found < delta else (low, mu)
    return low


def embed(folder: Path, name: str, images: Floats, model: str) -> Floats:
    """Return features, float32 [n, 1280]; each thousand is kept in `folder` once it is made."""
    embedder = build("embedder", "natural", NaturalOptions(model=model))
    made = []
    for start in range(0, len(images), 1000):
        file = folder / f"{name}-{model}-{start:06d}.npy"
        if not file.exists():
            np.save(file, embedder.embed(images[start : start + 1000]).astype(np.float16))
        made.append(np.load(file, allow_pickle=False))
    return np.concatenate(made).astype(np.float32)


def read(file: str, limit: int | None, **where: str) -> tuple[Floats, Any]:
    table = pq.read_table(file)
    for column, value in where.items():
        table = table.filter(np.array(table[column].to_pylist()) == value)
    rows = np.linspace(0, len(table) - 1, min(len(table), limit or len(table))).astype(np.int64)
    images = [frame_image(cell, FRAMING) for cell in table["image"].take(rows).to_pylist()]
    return np.stack(images), np.array(table["label"].take(rows).to_pylist())


@dataclass
class Data:
    """Images uint8 and features of public and private images and of the test set, and labels."""

    public: Floats
    public_features: Floats
    private: Floats
    labels: Ids
    test: Floats
    test_features: Floats
    test_labels: Ids


def load(given: argparse.Namespace, folder: Path) -> Data:
    images, classes = read(given.public, given.limit)
    features = embed(folder, f"public{given.limit or ''}", images, given.model)
    if given.data:
        private, labels = read(given.data, given.limit, split="train")
        test, truth = read(given.data, given.limit, split="test")
        name = f"{Path(given.data).stem}{given.limit or ''}"
        made = [
            embed(folder, f"{name}-{which}", part, given.model)
            for which, part in (("train", private), ("test", test))
        ]
        return Data(images, features, made[0], labels, test, made[1], truth)
    number = np.unique(classes, return_inverse=True)[1]
    group = number // 2 // 10
    shown, order = number % 2 == 1, np.random.default_rng(0).permutation(len(images))
    own = order[~shown[order]]
    private, test = own[: len(own) * 4 // 5], own[len(own) * 4 // 5 :]
    return Data(
        images[shown], features[shown], features[private], group[private], images[test],
        features[test], group[test],
    )  # fmt: skip


def search(queries: Floats, rows: Floats, num: int) -> Ids:
    found = NearestSearch(queries, num, "cosine")
    found.add(rows, 0)
    return found.ids


class Ways:
    """Final sets by each way; share: of the budget's mu^2."""

    def __init__(self, data: Data, mu: float, seed: int) -> None:
        self.data, self.mu, self.rng = data, mu, np.random.default_rng(seed)
        self.num = len(data.public)
        self.times = max(1, RECORDS // len(data.private))
        rows = np.linspace(0, self.num - 1, min(5000, self.num)).astype(np.int64)
        fitted = fit_whitening(data.public_features[rows], NUM_FEATURES)
        self.public, self.private, self.test = (
            whiten(x, **fitted) for x in (data.public_features, data.private, data.test_features)
        )
        wide = self.private.astype(np.float64)
        self.gram = wide.T @ wide * self.times
        self.cross = wide.T @ np.eye(NUM_LABELS)[data.labels] * self.times

    @cached_property
    def near(self) -> NDArray[np.int32]:
        """The nearest other public images of each."""
        found = nearest_others(self.public, min(WIDEST - 1, self.num - 1), "cosine")
        return np.concatenate([ids.astype(np.int32) for _, ids in found])

    @cached_property
    def votes(self) -> Floats:
        """Votes of each label for each public image, [labels, images]."""
        votes = np.zeros((NUM_LABELS, self.num))
        nearest = search(self.private, self.public, self.times)
        np.add.at(votes, (np.repeat(self.data.labels, self.times), nearest.ravel()), 1)
        return votes

    def sigma(self, share: float) -> float:
        return 1 / (self.mu * math.sqrt(share)) if math.isfinite(self.mu) else 0.0

    def add_noise(self, counts: Floats, share: float) -> tuple[Floats, float]:
        sigma = self.sigma(share)
        return np.round(counts + self.rng.normal(size=len(counts)) * sigma), sigma

    def draw(self, votes: Floats, sigma: float, num: int) -> Ids:
        weights = Threshold(ThresholdOptions()).weigh(votes, sigma)
        if weights.sum() <= 0:
            weights = np.maximum(votes, 0)
        return draw_parents(weights, num, "systematic", int(self.rng.integers(2**31)))

    def evolve(self, num: int, share: float) -> Set:
        """Private Evolution, 6 iterations of 2,000 samples."""
        chosen, degrees = [], (256, 128, 64, 32, 16, 8)
        for label in range(NUM_LABELS):
            own = self.private[self.data.labels == label]
            population = self.rng.integers(0, self.num, 2000 // NUM_LABELS)
            for t, degree in enumerate(degrees):
                population = np.sort(population)
                alike, first = np.unique(population, return_index=True)
                voted = search(own, self.public[alike], min(self.times, len(alike)))
                counts = np.bincount(first[voted.ravel()], minlength=len(population))
                counts = counts * (self.times / voted.shape[1])
                noisy, sigma = self.add_noise(counts, share / len(degrees))
                size = num if t == len(degrees) - 1 else 2000
                parents = population[self.draw(noisy, sigma, size // NUM_LABELS)]
                population = self.near[parents, self.rng.integers(0, degree, len(parents))]
            chosen.append(population.astype(np.int64))
        return np.concatenate(chosen), np.repeat(np.arange(NUM_LABELS), num // NUM_LABELS)

    def vote_on_all(self, num: int, share: float, most: int = WIDEST) -> Set:
        """One release over every image times every label."""
        chosen = []
        for label in range(NUM_LABELS):
            noisy, sigma = self.add_noise(self.votes[label], share)
            chosen.append(self.draw(*smooth(noisy, self.near, sigma, most), num // NUM_LABELS))
        return np.concatenate(chosen), np.repeat(np.arange(NUM_LABELS), num // NUM_LABELS)

    def vote_on_some(self, num: int, share: float, each: int = 1000) -> Set:
        """One release over `each` distinct images a label; children are near images."""
        chosen = []
        for label in range(NUM_LABELS):
            some = self.rng.permutation(self.num)[:each]
            own = search(self.private[self.data.labels == label], self.public[some], 1)
            counts = np.bincount(own[:, 0], minlength=len(some)) * self.times
            parents = some[self.draw(*self.add_noise(counts, share), num // NUM_LABELS)]
            degree = max(1, self.num // each)
            chosen.append(self.near[parents, self.rng.integers(0, degree, len(parents))])
        made = np.concatenate(chosen).astype(np.int64)
        return made, np.repeat(np.arange(NUM_LABELS), num // NUM_LABELS)

    def vote_across(self, num: int, share: float, most: int = WIDEST) -> Ids:
        """One release over every image once, whatever the records' labels."""
        noisy, sigma = self.add_noise(self.votes.sum(axis=0), share)
        return self.draw(*smooth(noisy, self.near, sigma, most), num)

    def teach(self, share: float) -> tuple[Floats, Floats]:
        """Return the teacher's weights and the labels' means."""
        moments = RidgeMoments(num_features=NUM_FEATURES, num_labels=NUM_LABELS)
        sigma = self.sigma(share)
        gram, cross = moments.unpack(self.rng.normal(size=moments.num_values) * sigma)
        gram, cross = gram + self.gram, cross + self.cross
        return ridge(gram, cross, sigma, np.zeros_like(cross)), find_means(gram, cross, sigma)

    def keep(self, taught: tuple[Floats, Floats], pool: Ids, each: int, by: str) -> Set:
        """Of each label, `each` of the pool by the teacher's score, or to follow its mean."""
        weights, means = taught
        scores = self.public[pool] @ weights
        chosen, labels = [], scores.argmax(axis=1)
        for label in range(NUM_LABELS):
            own = np.flatnonzero(labels == label)
            order = np.argsort(-scores[own, label], kind="stable")[:each]
            if by == "mean":
                order = herd(self.public[pool[own]], means[:, label], each)
            chosen.append(own[order])
        rows = np.concatenate(chosen)
        return pool[rows], labels[rows]

    def relabel(self, taught: tuple[Floats, Floats], chosen: Ids) -> Set:
        return chosen, (self.public[chosen] @ taught[0]).argmax(axis=1)

    def list_ways(self, num: int) -> Iterator[tuple[str, Callable[[], Set]]]:
        every, each = np.arange(self.num), num // NUM_LABELS
        half, most = self.teach(0.5), self.teach(0.9)
        for name, taught in (("half", half), ("nine tenths", most)):
            right = ((self.test @ taught[0]).argmax(axis=1) == self.data.test_labels).mean()
            print(json.dumps({"teacher": name, "accuracy": round(100 * float(right), 1)}))
        yield "pe", lambda: self.evolve(num, 1)
        yield "all", lambda: self.vote_on_all(num, 1)
        yield "all, not smoothed", lambda: self.vote_on_all(num, 1, 1)
        yield "some", lambda: self.vote_on_some(num, 1)
        yield "score", lambda: self.keep(most, every, each, "score")
        yield "mean", lambda: self.keep(most, every, each, "mean")
        yield "every + teacher", lambda: self.relabel(most, every)
        yield "pe + teacher", lambda: self.relabel(half, self.evolve(num, 0.5)[0])
        yield "all + teacher", lambda: self.relabel(half, self.vote_on_all(num, 0.5)[0])
        yield "some + teacher", lambda: self.relabel(half, self.vote_on_some(num, 0.5)[0])
        yield "across + teacher", lambda: self.relabel(half, self.vote_across(num, 0.5))
        yield "across + score", lambda: self._across_and(half, num, "score")
        yield "across + mean", lambda: self._across_and(half, num, "mean")

    def _across_and(self, taught: tuple[Floats, Floats], num: int, by: str) -> Set:
        pool = np.unique(self.vote_across(2 * num, 0.5))
        return self.keep(taught, pool, num // NUM_LABELS, by)


def probe(features: Floats, labels: Ids, test: Floats, truth: Ids) -> float:
    """Accuracy in % of a logistic regression on the embedder's features."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    fitted = LogisticRegression(C=1e-3, max_iter=60).fit((features - mean) / scale, labels)
    return 100 * float(fitted.score((test - mean) / scale, truth))


def draw_sheet(images: Floats, labels: Ids, file: Path) -> None:
    """Write ten random images of each label, a row a label, twice their size."""
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for label in range(NUM_LABELS):
        own = np.flatnonzero(labels == label)
        picked = images[rng.choice(own, 10)] if len(own) else np.zeros((10, 32, 32, 3), np.uint8)
        rows.append(np.concatenate(list(picked), axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((2 * sheet.width, 2 * sheet.height)).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("public")
    parser.add_argument("--output", required=True)
    parser.add_argument("--data")
    parser.add_argument("--model", default="lite0")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--ways", help="names, separated by commas; default: all")
    parser.add_argument("--epochs", type=int, default=0, help="of a network from scratch; 0: none")
    parser.add_argument("--sets", action="store_true")
    given = parser.parse_args()
    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = load(given, folder)
    delta = 1 / (RECORDS * math.log(RECORDS))
    mu = gaussian_mu(given.epsilon, delta) if math.isfinite(given.epsilon) else math.inf
    for seed in range(given.seeds):
        ways = Ways(data, mu, seed)
        for name, make in ways.list_ways(given.samples):
            if given.ways and name not in given.ways.split(","):
                continue
            started = time.monotonic()
            chosen, labels = make()
            features = data.public_features[chosen]
            shown = {
                "way": name,
                "seed": seed,
                "images": len(chosen),
                "distinct": len(np.unique(chosen)),
                "probe": round(probe(features, labels, data.test_features, data.test_labels), 1),
                "frechet": round(frechet_distance(features, data.test_features), 2),
            }
            if given.epochs:
                network = convnet.train(data.public[chosen], labels, given.epochs, seed)
                right = convnet.classify(network, data.test) == data.test_labels
                shown["from scratch"] = round(100 * float(right.mean()), 1)
            print(json.dumps(shown | {"seconds": round(time.monotonic() - started)}), flush=True)
            if given.sets:
                place = f"{'data' if given.data else 'standin'}-{name.replace(' ', '_')}-{seed}"
                np.savez(folder / f"{place}.npz", chosen=chosen, labels=labels)
                draw_sheet(data.public[chosen], labels, folder / f"{place}.png")


if __name__ == "__main__":
    main()
