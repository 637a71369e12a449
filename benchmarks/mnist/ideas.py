"""Run settings other than the pipeline's through the whole pipeline, on ten EMNIST letters.

    python -m benchmarks.mnist.ideas LETTERS.parquet [--letters ABCDEFGHIJ] [--seeds 3] [--rows ...]

`pipelines/mnist.yaml` with wide ranges and the letters as private records; votes alone, in blurred
pixels, denoised to the simplex, not smoothed, unless a row says something else. Populations are
scaled with the records, so a sample gets as many votes under the same noise as for MNIST.
LETTERS.parquet: columns image, label (0..25) and split; the train split is private, the audit tests
on all of both splits. Seeds are those of the public randomness.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.mnist.letters import PIPELINE, WIDE
from pe_ray import Config, evolve
from pe_ray.files.storage import expand_home
from pe_ray.runtime.cluster import connect_to_ray

TUNED_ON = "ABDEGHMNQR"
"""The letters that the pipeline's settings were chosen on."""

ROWS: dict[str, dict[str, Any]] = {
    "votes": {},
    "teacher": {"teacher": {}},
    "threshold": {"selection": {"denoise": "threshold"}},
    "none": {"selection": {"denoise": "none"}},
    "keep_selected": {"selection": {"denoise": "simplex", "keep_selected": True}},
    "smooth": {"selection": {"denoise": "simplex", "smooth": 64}},
    "neighbors_1": {"votes": {"neighbors": 1}},
    "late": {"schedule.noise": 0.45},
    "label_features": {"embedder": {"kind": "label_features"}},
    "joint": {"embedder": {"kind": "label_features", "pixels": 0.8}},
    "before": {
        "embedder": {"kind": "label_features"},
        "generator.placement_change": 1.0,
        "schedule.degrees": [0.6, 0.45, 0.35, 0.45],
    },
}


def write_letters(data: Path, letters: str, file: Path) -> dict[str, int]:
    """Write the rows of `letters`, labelled by name; return their number by split."""
    table = pq.read_table(data)
    wanted = [ord(letter) - 65 for letter in letters]
    table = table.filter(pc.is_in(table["label"], pa.array(wanted, table["label"].type)))
    names = pa.array([chr(65 + label) for label in table["label"].to_pylist()])
    at = table.schema.get_field_index("label")
    pq.write_table(table.set_column(at, "label", names), file)
    splits = table["split"].to_pylist()
    return {split: splits.count(split) for split in ("train", "test")}


def settings(file: Path, letters: str, records: int, row: str, seed: int) -> dict[str, Any]:
    tree = Config.from_yaml(PIPELINE, WIDE).tree()
    tree["private"] |= {
        "data": str(file),
        "labels": list(letters),
        "cache": str(file.parent / "cache"),
    }
    sizes = [round(size * records / 60_000) for size in tree["schedule"]["num_samples"]]
    tree["schedule"] |= {"num_samples": sizes, "seed": seed}
    tree["metrics"]["audit_where"] = {}
    tree["embedder"] = {"kind": "pixels", "size": 14, "blur": 1.0}
    tree |= {"teacher": None, "selection": {"denoise": "simplex"}}
    for key, value in ROWS[row].items():
        block, _, name = key.partition(".")
        if name:
            tree[block][name] = value
        else:
            tree[block] = value
    tree["output"] = {"path": str(file.parent / f"{row}-{seed}")}
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=expand_home)
    parser.add_argument("--letters", default=TUNED_ON)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "letters.parquet"
        records = write_letters(options.data, options.letters, file)["train"]
        for row in options.rows:
            found: dict[str, list[float]] = {}
            for seed in range(options.seeds):
                config = Config.from_dict(settings(file, options.letters, records, row, seed))
                with connect_to_ray(config.resources):
                    for name, value in evolve(config).audit().items():
                        found.setdefault(name, []).append(value)
            for name, values in found.items():
                shown = ", ".join(f"{value:.4f}" for value in values)
                print(f"| {row} | {name} | {shown} | {statistics.mean(values):.4f} |", flush=True)


if __name__ == "__main__":
    main()
