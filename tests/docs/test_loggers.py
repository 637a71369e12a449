"""The examples of docs/loggers.md run: TensorBoard's as it is, the others against stand-ins."""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loggers.md"
SCORE = "public/frechet_distance/pixels"


class Tracker(ModuleType):
    """What the examples use of wandb and mlflow; it takes plain numbers only."""

    def __init__(self) -> None:
        super().__init__("tracker")
        self.logged: list[tuple[str, float]] = []
        self.summary: dict[str, float] = {}
        self.artifacts: list[str] = []

    @contextlib.contextmanager
    def init(self, *, project: str, config: dict[str, Any]) -> Iterator[Tracker]:
        yaml.safe_dump(config)  # plain values
        yield self

    start_run = contextlib.nullcontext

    def log(self, values: dict[str, float]) -> None:
        self.logged += [(name, float(value)) for name, value in values.items()]

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.log({f"{name} {step}": value for name, value in values.items()})

    def log_metric(self, name: str, value: float) -> None:
        self.log({name: value})

    def log_dict(self, values: dict[str, Any], name: str) -> None:
        yaml.safe_dump(values)

    def log_artifact(self, path: str) -> None:
        self.artifacts.append(path)


@pytest.fixture
def tracker(
    ray_session: None, short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Tracker:
    """A tracker by either name, in a folder with a small run's configuration."""
    made = Tracker()
    short["metrics"] = {
        "public": {
            "data": "sklearn:digits",
            "metrics": [{"kind": "frechet", "embedder": {"kind": "pixels", "size": 4}}],
        }
    }
    short["private"]["data"] = str(save_digits(tmp_path))
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(short))
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, made)
    return made


def save_digits(folder: Path) -> Any:
    """Private digits that are no public ones by their path."""
    from sklearn.datasets import load_digits

    from pe_ray import save_images

    held = load_digits()
    images = (held.images[:100] * 15).astype("uint8")
    return save_images(images, folder / "d.parquet", [str(n) for n in held.target[:100]])


def run_example(heading: str) -> None:
    section = PAGE.read_text().split(f"\n## {heading}\n")[1]
    found = re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    Path("example.py").write_text(found[1])
    runpy.run_path("example.py")


def test_weights_and_biases(tracker: Tracker) -> None:
    run_example("Weights & Biases")
    names = [name for name, _ in tracker.logged]
    assert names.count(f"population/{SCORE}") == 2
    assert "population/rows" in names
    assert 0 < tracker.summary["epsilon"] <= 1


def test_mlflow(tracker: Tracker) -> None:
    run_example("MLflow")
    assert {f"{SCORE} 0", f"{SCORE} 1", "epsilon"} == {name for name, _ in tracker.logged}
    (page,) = tracker.artifacts
    assert Path(page).name == "report.html"


def test_tensorboard(tracker: Tracker, tmp_path: Path) -> None:
    run_example("TensorBoard")
    events = EventAccumulator(str(tmp_path / "logs" / "digits"))
    events.Reload()
    assert len(events.Scalars(f"population/{SCORE}")) == 2
