"""Make and score synthetic sets by DPImageBench's protocol; write its table with ours beside it.

    python -m benchmarks.dpimagebench --dataset mnist --data mnist.parquet --epsilon 1 10
        [--output runs/dpimagebench] [--budget cpu] [--seeds 0 1 2] [--inception FILE]
        [--pipeline FILE] [--set block.key=value ...] [--real]

FILE of --data: parquet with columns image, label (0, 1, ...) and split (train, test). For each
epsilon and seed it runs the data set's pipeline on its private rows. It trains three networks on
55,000 of the 60,000 images, chooses the epoch on the other 5,000 and tests once. Repeated after a
kill, it continues runs and networks. NAME.json and NAME.md in the output folder are the table. The
folder holds private images too: it is not for publishing.

--budget cpu: smaller networks and fewer epochs, for machines without a GPU. Accuracies of the two
budgets don't compare. --set changes the pipeline; public images are given so, for example
`--set generator.data=FILE`. --real: train on the private rows themselves, without privacy: what
these networks can read at best. Nothing else is made then.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.dpimagebench.data_sets import DATA_SETS, DataSet
from benchmarks.dpimagebench.training import RECIPES, Images, Labels, Recipe, train_and_test
from pe_ray import Config, InputError, evolve
from pe_ray.files.storage import expand_home

Rows = Iterator[tuple[Path, dict[str, Any]]]
PIPELINES = Path(__file__).parents[2] / "pipelines"
NUM_IMAGES, NUM_TRAIN = 60_000, 55_000


def split_data(data: Path, private_rows: int, folder: Path) -> tuple[Path, Path]:
    """Write the private rows, the same random ones for every seed, and the test rows."""
    files = folder / "private.parquet", folder / "test.parquet"
    if all(file.exists() for file in files):
        return files
    rows = pq.read_table(data)
    missing = {"image", "label", "split"} - set(rows.column_names)
    if missing:
        raise InputError(f"--data {data}: has no column {', '.join(sorted(missing))}; add it")
    train, test = (rows.filter(pc.equal(rows["split"], name)) for name in ("train", "test"))
    if len(train) < private_rows or not len(test):
        raise InputError(
            f"--data {data}: has {len(train):,} rows of split train and {len(test):,} of split "
            f"test; the protocol needs {private_rows:,} and some"
        )
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:private_rows])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file, part in zip(files, (train.take(pa.array(chosen)), test), strict=True):
        aside = file.with_suffix(".part")
        pq.write_table(part.select(["image", "label"]), aside)
        aside.replace(file)
    return files


def configure(
    data_set: DataSet,
    pipeline: Path,
    private: Path,
    run: Path,
    given: argparse.Namespace,
    epsilon: float,
    seed: int,
) -> Config:
    """Return the pipeline on the protocol's private rows and budget.

    Of the pipeline's own metrics only Frechet distances stay, of the private rows.
    """
    num_rows = pq.read_metadata(private).num_rows
    tree = yaml.safe_load(pipeline.read_text(encoding="utf-8"))
    own = tree.get("metrics", {}).get("audit", ())
    audited = [m for m in own if isinstance(m, dict) and m["kind"] == "frechet"] or ["frechet"]
    if given.inception:
        embedder = {"kind": "inception", "weights": str(given.inception.resolve())}
        audited.append({"kind": "frechet", "embedder": embedder})
    changes = {
        "private.data": str(private.resolve()),
        "private.where": {},
        "private.labels": list(data_set.labels),
        "private.label_values": "position",
        "private.cache": str((private.parent / "cache").resolve()),
        "privacy.epsilon": epsilon,
        "privacy.delta": 1 / (num_rows * math.log(num_rows)),
        "schedule.seed": seed,
        "metrics": {"audit": audited},
        "output.path": str(run.resolve()),
    }
    set_by_us = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    return Config.from_yaml(pipeline, [*given.set, *set_by_us])


def read_images(file: Path) -> tuple[Images, Labels]:
    """Decode the images of a parquet file; uint8 [n, h, w, c] and labels, int64 [n]."""
    rows = pq.read_table(file)
    cells = rows["image"].to_pylist()
    contents = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    images = np.stack([np.asarray(Image.open(BytesIO(content))) for content in contents])
    labels = np.array(rows["label"].to_pylist(), dtype=np.int64)
    return images[..., None] if images.ndim == 3 else images, labels


def score_run(
    config: Config,
    recipe: Recipe,
    test: tuple[Images, Labels],
    folder: Path,
    *,
    num_train: int,
    seed: int,
) -> dict[str, Any]:
    """Run or continue the pipeline, then train and test what is not in `folder` yet."""
    started = time.monotonic()
    run = evolve(config)
    seconds = time.monotonic() - started
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = run.synthetic.to_numpy()
    if images.shape[1:] != test[0].shape[1:]:
        raise InputError(
            f"generator.image_size: makes {images.shape[1:]}, but the test images are "
            f"{test[0].shape[1:]}; give the data set's size"
        )
    synthetic, num_labels = (images, labels.astype(np.int64)), len(config.private.labels)
    networks = train_networks(recipe, synthetic, test, folder, num_labels, num_train, seed)
    distances = _keep(folder / "distances.json", run.audit)
    about = {"seconds": round(seconds), "epsilon_spent": run.ledger["epsilon"]}
    kept = _keep(folder / "run.json", lambda: about)
    return {"networks": networks, "distances": distances, **kept}


def train_networks(
    recipe: Recipe,
    images: tuple[Images, Labels],
    test: tuple[Images, Labels],
    folder: Path,
    num_labels: int,
    num_train: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Train and test the networks of the recipe that `folder` has no scores of."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {
        name: _keep(
            folder / f"{name.replace(' ', '-')}.json",
            lambda name=name: train_and_test(
                recipe,
                name,
                images,
                test,
                num_labels=num_labels,
                num_train=num_train,
                seed=seed,
                state=folder / f"{name.replace(' ', '-')}.pt",
            ),
        )
        for name in recipe.networks
    }
    for state in folder.glob("*.pt"):
        state.unlink()
    return networks


def _keep(file: Path, make: Any) -> Any:
    """Return what the file holds, or make it and write it."""
    if not file.exists():
        made = make()
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(made), encoding="utf-8")
        aside.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))


def make_table(name: str, data_set: DataSet, rows: list[dict[str, Any]]) -> str:
    """Return the markdown table: ours, by budget and epsilon, real rows, and what is published."""
    lines = [
        f"# {name}",
        "",
        "Accuracy on the test set in %. *Mean* and *best* are of the three networks, averaged over",
        "the seeds, with the smallest and largest in brackets. Distances are from the private rows",
        "(the FID if weights were given). Published figures are the best of three networks, whose",
        "epochs were chosen on private images without noise.",
        "",
        "| set | epsilon | networks | seeds | mean | best | distances |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        epsilon = math.inf if row["epsilon"] is None else row["epsilon"]
        groups.setdefault((row["budget"], epsilon, row["pipeline"]), []).append(row)
    for (budget, epsilon, pipeline), group in sorted(groups.items()):
        accuracies = _by_name([row["networks"] for row in group], "test")
        networks = ", ".join(f"{n} {statistics.mean(a):.2f}" for n, a in accuracies.items())
        of_seeds = list(zip(*accuracies.values(), strict=True))
        distances = _by_name([row["distances"] for row in group])
        cells = [
            pipeline if math.isinf(epsilon) else f"**pe_ray**, {pipeline}",
            f"{epsilon:g}",
            f"{networks} (budget {budget})",
            ", ".join(str(row["seed"]) for row in group),
            *(_show([choose(seed) for seed in of_seeds]) for choose in (statistics.mean, max)),
            ", ".join(f"{n} {statistics.mean(d):.4g}" for n, d in distances.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for method, published in data_set.published.items():
        for epsilon, accuracy in zip((1, 10), published, strict=True):
            lines.append(f"| {method} | {epsilon} | DPImageBench's | | | {accuracy} | |")
    return "\n".join(lines) + "\n"


def _by_name(rows: list[dict[str, Any]], key: str | None = None) -> dict[str, list[float]]:
    return {
        name: [row[name] if key is None else row[name][key] for row in rows] for name in rows[0]
    }


def _show(values: list[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def measure(given: argparse.Namespace, data_set: DataSet) -> None:
    """Make all rows of the table, and write it after each."""
    folder = given.output / given.dataset
    make_rows = score_real if given.real else score_pipeline
    for place, row in make_rows(given, data_set, folder):
        row = {"dataset": given.dataset, "budget": given.budget, **row}
        (place / f"row-{given.budget}.json").write_text(json.dumps(row), encoding="utf-8")
        rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*/row-*.json"))]
        (given.output / f"{given.dataset}.json").write_text(json.dumps(rows, indent=1))
        table = make_table(given.dataset, data_set, rows)
        (given.output / f"{given.dataset}.md").write_text(table)
        print(table, flush=True)


def score_pipeline(given: argparse.Namespace, data_set: DataSet, folder: Path) -> Rows:
    """Yield a row for each seed and epsilon: a run of the pipeline, networks trained on its set."""
    pipeline = given.pipeline or PIPELINES / (data_set.pipeline or "")
    private, test_file = split_data(given.data, data_set.private_rows, folder / "data")
    test, recipe = read_images(test_file), choose_recipe(given, data_set)
    for seed, epsilon in itertools.product(given.seeds, given.epsilon):
        place = folder / f"{pipeline.stem}-{epsilon:g}-{seed}"
        config = configure(data_set, pipeline, private, place / "run", given, epsilon, seed)
        if config.num_final != given.num_images:
            field = "teacher.keep" if config.num_kept else "schedule.num_samples"
            raise InputError(
                f"{field}: the set has {config.num_final:,} images; the protocol has "
                f"{given.num_images:,}"
            )
        scores = score_run(
            config, recipe, test, place / given.budget, num_train=given.num_train, seed=seed
        )
        about = {"pipeline": pipeline.name, "set": given.set, "delta": config.privacy.delta}
        yield place, {**about, "epsilon": epsilon, "seed": seed, **scores}


def score_real(given: argparse.Namespace, data_set: DataSet, folder: Path) -> Rows:
    """Yield a row for each seed: networks trained on the private rows."""
    private, test_file = split_data(given.data, data_set.private_rows, folder / "data")
    images, test = read_images(private), read_images(test_file)
    num_train = len(images[0]) * given.num_train // given.num_images
    recipe, num_labels = choose_recipe(given, data_set), len(data_set.labels)
    for seed in given.seeds:
        place = folder / f"real-{seed}"
        networks = train_networks(
            recipe, images, test, place / given.budget, num_labels, num_train, seed
        )
        about = {"pipeline": "private rows", "epsilon": None, "seed": seed}
        yield place, {**about, "networks": networks, "distances": {}}


def choose_recipe(given: argparse.Namespace, data_set: DataSet) -> Recipe:
    return RECIPES["cpu" if given.budget == "cpu" else data_set.recipe]


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=list(DATA_SETS))
    parser.add_argument("--data", required=True, type=expand_home)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--output", type=expand_home, default=Path("runs/dpimagebench"))
    parser.add_argument("--budget", choices=["full", "cpu"], default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--inception", type=expand_home, help="weights, for the FID")
    parser.add_argument("--pipeline", type=expand_home)
    parser.add_argument("--set", action="append", default=[], metavar="block.key=value")
    parser.add_argument("--real", action="store_true", help="train on the private rows instead")
    parser.set_defaults(num_images=NUM_IMAGES, num_train=NUM_TRAIN)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    arguments = read_arguments()
    try:
        measure(arguments, DATA_SETS[arguments.dataset])
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
