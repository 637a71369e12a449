"""Batches: bounded, halved where memory runs out, no row made twice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from pe_ray import InputError
from pe_ray.config.kinds import Plugin
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.values import ImageShape


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class FakeOptions(GeneratorOptions):
    limit: int
    """Rows that fit into memory."""
    error: str = "OutOfMemoryError"

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=2, width=3, channels=1)


class Fake:
    Options: ClassVar[type[GeneratorOptions]] = FakeOptions

    def __init__(self, options: FakeOptions, label_names: Sequence[str]) -> None:
        self.options = options
        self.batches: list[int] = []
        self.made: list[int] = []

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        self.batches.append(len(seeds))
        if len(seeds) > self.options.limit:
            errors = {"OutOfMemoryError": OutOfMemoryError, "MemoryError": MemoryError}
            raise errors.get(self.options.error, RuntimeError)("no")
        self.made += [int(seed) for seed in seeds]
        image = np.broadcast_to(seeds.astype(np.uint8)[:, None, None, None], (len(seeds), 2, 3, 1))
        return {"image": image}

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        return self.random(rows["label"], seeds)


def batched(batch_size: int, **options: Any) -> tuple[BatchedGenerator, Fake]:
    kind = f"{__name__}:Fake"
    plugin = Plugin(plugin_type="generator", kind=kind, options=FakeOptions(**options))
    config: Any = SimpleNamespace(
        private=SimpleNamespace(labels=("a",)),
        resources=SimpleNamespace(batch_size=batch_size),
    )
    made = BatchedGenerator(plugin, config)
    fake = made._generator
    assert isinstance(fake, Fake)
    fake.batches, fake.made = [], []
    return made, fake


SEEDS = np.arange(20, dtype=np.uint64)
LABELS = np.zeros(20, dtype=np.int32)


@pytest.mark.parametrize("error", ["OutOfMemoryError", "MemoryError"])
def test_a_batch_too_large_is_halved_once_and_for_all(
    caplog: pytest.LogCaptureFixture, error: str
) -> None:
    generator, fake = batched(8, limit=3, error=error)
    with caplog.at_level(logging.WARNING):
        rows = generator.random(LABELS, SEEDS)
    assert fake.made == list(range(20))
    assert fake.batches == [8, 4] + [2] * 10
    assert np.array_equal(rows["image"][:, 0, 0, 0], np.arange(20))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "out of memory with a batch of 8",
        "out of memory with a batch of 4",
    ]
    generator.vary(rows, 1, SEEDS)
    assert fake.batches[12:] == [2] * 10


def test_rows_made_before_are_kept() -> None:
    generator, fake = batched(8, limit=8)
    original = fake.random

    def third_batch_fails(labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        if len(fake.batches) == 2:
            fake.batches.append(len(seeds))
            raise OutOfMemoryError("no")
        return original(labels, seeds)

    fake.random = third_batch_fails  # type: ignore[method-assign]
    generator.random(LABELS, SEEDS)
    assert fake.made == list(range(20))
    assert fake.batches == [8, 8, 4, 2, 2]


def test_a_single_image_too_large_is_the_users_to_mend() -> None:
    generator, _ = batched(4, limit=0)
    with pytest.raises(
        InputError, match=r"resources\.batch_size: out of memory with a single image"
    ):
        generator.random(LABELS, SEEDS)


def test_other_errors_pass_through() -> None:
    generator, fake = batched(8, limit=3, error="RuntimeError")
    with pytest.raises(RuntimeError, match="no"):
        generator.random(LABELS, SEEDS)
    assert fake.batches == [8]
