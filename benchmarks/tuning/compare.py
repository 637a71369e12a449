"""Compare untuned settings, with the whole budget, with every strategy of search inside it.

    python -m benchmarks.tuning.compare --data FOLDER [--seeds 3] [--strategies public compose ...]

FOLDER holds mnist.parquet (private: its train split) and emnist_letters_50k.parquet (the public
stand-in of `public`), both with columns image, label, split. Total epsilon 1, delta 1e-5 for all.
Scored by the audit: accuracy on MNIST's test split of a support vector machine trained on the
synthetic set. Audit scores choose nothing. A seed is that of the public randomness and the search.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import string
import tempfile
import time
from pathlib import Path
from typing import Any

from pe_ray import Config, evolve
from pe_ray.files.storage import expand_home
from pe_ray.private.evaluation import audit
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.tuning.search import search_of
from pe_ray.tuning.tune import tune

STRATEGIES = ("untuned", "public", "proxy", "compose")
DEGREES = [0.5, {"start": 0.6, "end": 0.3}, {"start": 0.4, "end": 0.15}]
SPACE: dict[str, Any] = {
    "votes.neighbors": [1, 4, 12],
    "schedule.degrees": DEGREES,
    "selection.denoise": ["threshold", "simplex"],
    "embedder.blur": [0.0, 1.0],
    "generator.elastic": [0.05, 0.15],
}


def settings(data: Path, folder: Path, num_samples: int, seed: int) -> dict[str, Any]:
    """Return a run with the package's defaults wherever there is one."""
    return {
        "private": {
            "data": str(data / "mnist.parquet"),
            "where": {"split": "train"},
            "labels": list(string.digits),
            "cache": str(folder / "cache"),
        },
        "generator": {"kind": "rendered_text", "image_size": 28},
        "embedder": {"kind": "pixels"},
        "schedule": {
            "iterations": 4,
            "num_samples": num_samples,
            "degrees": DEGREES[0],
            "seed": seed,
        },
        "privacy": {
            "epsilon": 1.0,
            "delta": 1e-5,
            "unit": "record",
            "label_fractions": "uniform",
        },
        "metrics": {"audit_where": {"split": "test"}, "audit": [{"kind": "classifier"}]},
    }


def tuning(strategy: str, data: Path, folder: Path, trials: int, seed: int) -> dict[str, Any]:
    """Return the search: the same space and number of trials for every strategy."""
    letters = {
        "data": str(data / "emnist_letters_50k.parquet"),
        "labels": list(string.ascii_uppercase),
        "label_values": "position",
        "where": {"split": "train"},
        "cache": str(folder / "cache"),
    }
    found: dict[str, Any] = {
        "strategy": strategy,
        "space": SPACE,
        "num_trials": trials,
        "seed": seed,
        "objective": {"kind": "moments", "share": 0.1},
        "scheduler": "asha" if strategy == "compose" else "none",
    }
    if strategy == "proxy":
        found["strategy"] = {"kind": strategy, "proxy_voters": 60_000}
    if strategy == "compose":
        found["strategy"] = {"kind": strategy, "full_trials": max(1, trials // 2)}
    if strategy == "public":
        found["public_data"] = letters
        found["objective"] = {
            "kind": "public",
            "mode": "max",
            "metric": {"kind": "classifier"},
            "reference": {**letters, "where": {"split": "test"}},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=expand_home, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {name: [] for name in options.strategies}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in range(options.seeds):
            for name in options.strategies:
                started = time.perf_counter()
                tree = settings(options.data.resolve(), folder, options.num_samples, seed)
                tree["output"] = {"path": str(folder / f"{name}-{seed}")}
                chosen: dict[str, Any] = {}
                if name == "untuned":
                    path = evolve(Config.from_dict(tree))
                else:
                    tree = copy.deepcopy(tree)
                    tree["tuning"] = tuning(
                        name, options.data.resolve(), folder, options.trials, seed
                    )
                    outcome = tune(search_of(tree))
                    path, chosen = outcome.path, outcome.settings
                accuracy = next(iter(audit(open_run(str(path))).values()))
                accuracies[name].append(accuracy)
                spent = Ledger.open(path / "ledger.sqlite").spent()
                print(
                    f"{name:<10}seed {seed}: accuracy {accuracy:.4f}, epsilon {spent:.4f}, "
                    f"{time.perf_counter() - started:.0f} s {json.dumps(chosen)}",
                    flush=True,
                )
    print("\n| strategy | accuracy, mean | spread (max - min) |\n|---|---|---|")
    for name, found in accuracies.items():
        print(f"| {name} | {statistics.mean(found):.4f} | {max(found) - min(found):.4f} |")


if __name__ == "__main__":
    main()
