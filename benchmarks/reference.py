"""Compare pe_ray with the reference implementation on the same job, whole processes, in turn.

2,000 digits of 28x28, drawn as text and varied for 6 iterations with lookahead 4; scikit-learn's
digits vote, epsilon 1. Imports, Ray's start and the report are counted. CPU seconds are those of a
process and all that it starts (looked at five times a second, so a little is missed). Needs Linux
(/proc) and a clone of github.com/microsoft/DPSDA. What the clone imports and isn't installed here
is replaced by stand-ins that do nothing; of `omegaconf` it uses a dictionary with attributes. The
clone writes no checkpoint and no picture.

    python -m benchmarks.reference --reference CHECKOUT [--runs 3] [--python PYTHON]

--python: the interpreter of pe_ray's default install, which `make demo` makes in a fresh clone.
Without it pe_ray runs as the reference does, in the environment of this command.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import yaml

from benchmarks.digits.pipeline import DIGITS, IMAGE, ITERATIONS, LOOKAHEAD, SAMPLES, config
from benchmarks.watch import Watch

_THEIRS = f"""
import importlib.abc, importlib.machinery, sys, types
from unittest.mock import MagicMock

class StandIn(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()

class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        package = name.partition(".")[0]
        known = package in NAMED and (name == package or isinstance(sys.modules[package], StandIn))
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None
    def create_module(self, spec):
        made = StandIn(spec.name)
        if spec.name == "omegaconf":
            made.OmegaConf = types.SimpleNamespace(create=to_attributes)
        return made
    def exec_module(self, module):
        pass

class Attributes(dict):
    __setattr__ = dict.__setitem__
    __hash__ = lambda self: hash(repr(self))
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

def to_attributes(tree):
    if isinstance(tree, dict):
        return Attributes({{name: to_attributes(value) for name, value in tree.items()}})
    return [to_attributes(value) for value in tree] if isinstance(tree, list) else tree

NAMED = set(sys.argv[3].split(","))
sys.meta_path.append(StandIns())

import numpy as np, pandas as pd
from pe.api.image import DrawText
from pe.data import Data
from pe.embedding import Embedding
from pe.histogram import NearestNeighbors
from pe.population import PEPopulation
from pe.runner import PE

class Pooled(Embedding):
    def compute_embedding(self, data):
        rows = self.filter_uncomputed_rows(data)
        if len(rows.data_frame):
            images = np.stack(rows.data_frame["PE.IMAGE"].values).astype(np.float32).mean(axis=3)
            small = images.reshape(len(images), 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49)
            index = rows.data_frame.index
            rows.data_frame[self.column_name] = pd.Series(list(small), index=index)
        return self.merge_computed_rows(data, rows)

with np.load(sys.argv[1]) as stored:
    frame = pd.DataFrame({{"PE.IMAGE": list(stored["images"]), "PE.LABEL_ID": stored["labels"]}})
private = Data(data_frame=frame, metadata={{"label_info": [{{"name": d}} for d in {DIGITS}]}})
api = DrawText(
    font_root_path=sys.argv[2],
    font_variation_degrees=0.2,
    text_variation_degrees=0.0,
    font_size_variation_degrees=4,
    rotation_degree_variation_degrees=8,
    stroke_width_variation_degrees=1,
    text_list={{d: [d] for d in {DIGITS}}},
)
votes = NearestNeighbors(embedding=Pooled(), mode="L2", lookahead_degree={LOOKAHEAD}, api=api)
population = PEPopulation(api=api, histogram_threshold=0)
made = PE(priv_data=private, population=population, histogram=votes).run(
    num_samples_schedule=[{SAMPLES}] * {ITERATIONS + 1}, delta=1e-4, epsilon=1.0,
    save_checkpoint=False, fraction_per_label_id=[1] * {len(DIGITS)},
)
assert len(made.data_frame) == {SAMPLES}
"""


def measure(command: Sequence[str], folder: Path, path: str) -> tuple[float, float]:
    """Return CPU and wall seconds of a command, run in `folder` with PYTHONPATH `path`."""
    log = folder / "log.txt"
    watch, started = Watch(interval=0.2), time.perf_counter()
    with log.open("wb") as sink:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    wall = time.perf_counter() - started
    watch.stop()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return watch.cpu_seconds(), wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_digits(folder / "digits.npz")
        (folder / "theirs.py").write_text(_THEIRS)
        found: dict[str, list[tuple[float, float]]] = {"reference": [], "pe_ray": []}
        for run in range(options.runs):
            place = folder / str(run)
            place.mkdir()
            (place / "config.yaml").write_text(yaml.safe_dump(config(place).tree()))
            ours = [options.python, "-m", "pe_ray", "run", f"{place}/config.yaml"]
            checkout = str(options.reference.resolve())
            theirs = [sys.executable, f"{folder}/theirs.py", f"{folder}/digits.npz", _find_fonts()]
            theirs.append(",".join(_list_imports(options.reference)))
            for who, command, path in (
                ("reference", theirs, checkout),
                ("pe_ray", ours, str(Path(__file__).resolve().parents[1])),
            ):
                found[who].append(measure(command, place, path))
                cpu, wall = found[who][-1]
                print(f"{who:<10}{cpu:8.1f} CPU s{wall:8.1f} s wall", flush=True)
    for who, runs in found.items():
        cpu, wall = (median(column) for column in zip(*runs, strict=True))
        print(f"median of {options.runs}: {who:<10}{cpu:8.1f} CPU s{wall:8.1f} s wall")


def _write_digits(file: Path) -> None:
    """Write the private digits at the size of the synthetic ones, in RGB as the reference's are."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.clip(digits.images * 16, 0, 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((IMAGE, IMAGE))) for one in grey]
    images = np.stack(large)[..., None].repeat(3, axis=3)
    np.savez(file, images=images, labels=digits.target)


def _find_fonts() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")


def _list_imports(checkout: Path) -> list[str]:
    """Return the packages that the clone's own files import."""
    text = "import clip\n"  # which the package cleanfid imports for it
    text += "\n".join(file.read_text() for file in checkout.glob("pe/**/*.py"))
    return sorted(set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)))


if __name__ == "__main__":
    main()
