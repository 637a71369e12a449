"""DPImageBench's data sets: their private rows, the pipeline that makes each, published accuracies.

Published (DPImageBench, CCS 2025, and FETA-Pro, 2026): the best of three networks at epsilon 1 and
10, in %; the epoch was chosen on private validation images without noise.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What the protocol says of one data set.

    pipeline: file in pipelines/, None if it has none of its own. private_rows: training rows that
    are private; DPImageBench keeps the others for validation.
    """

    pipeline: str | None
    labels: tuple[str, ...]
    private_rows: int
    recipe: str = "other"
    published: dict[str, tuple[float, float]] = field(default_factory=dict)


def _number(count: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(count))


DATA_SETS = {
    "mnist": DataSet(
        pipeline="mnist.yaml",
        labels=_number(10),
        private_rows=55_000,
        published={
            "PE (ImageNet model)": (27.9, 32.7),
            "DP-FETA": (95.6, 98.1),
            "DP-LoRA": (82.2, 97.1),
            "PrivImage": (94.0, 97.8),
            "FETA-Pro": (97.3, 98.5),
        },
    ),
    "fashion": DataSet(
        pipeline="fashion.yaml",
        labels=_number(10),
        private_rows=55_000,
        published={
            "PE (ImageNet model)": (47.9, 57.8),
            "DP-FETA": (81.7, 87.3),
            "DP-LoRA": (63.5, 83.8),
            "PrivImage": (79.9, 87.1),
            "FETA-Pro": (83.4, 88.2),
        },
    ),
    "emnist": DataSet(
        pipeline="mnist.yaml", labels=tuple(string.ascii_uppercase), private_rows=44_200
    ),
    "cifar10": DataSet(
        pipeline="cifar10_public.yaml",
        labels=_number(10),
        private_rows=45_000,
        recipe="cifar",
        published={
            "PE (ImageNet model)": (64.6, 75.3),
            "DP-FETA": (35.1, 43.3),
            "DP-LoRA": (64.6, 77.2),
            "PrivImage": (74.5, 78.4),
            "FETA-Pro": (37.9, 44.6),
        },
    ),
    "cifar100": DataSet(
        pipeline="cifar10_public.yaml",
        labels=_number(100),
        private_rows=45_000,
        recipe="cifar",
        published={
            "PE (ImageNet model)": (15.4, 24.9),
            "DP-FETA": (5.0, 8.1),
            "DP-LoRA": (4.3, 33.2),
            "PrivImage": (9.9, 15.8),
        },
    ),
    "eurosat": DataSet(
        pipeline="cifar10_public.yaml",
        labels=_number(10),
        private_rows=21_000,
        published={
            "PE (ImageNet model)": (32.1, 36.8),
            "DP-FETA": (58.0, 75.0),
            "DP-LoRA": (70.7, 83.6),
            "PrivImage": (47.3, 71.0),
        },
    ),
    "celeba": DataSet(
        pipeline="cifar10_public.yaml",
        labels=_number(2),
        private_rows=145_064,
        published={
            "PE (ImageNet model)": (70.5, 74.2),
            "DP-FETA": (82.3, 94.2),
            "DP-LoRA": (87.0, 92.0),
            "PrivImage": (90.8, 92.0),
            "FETA-Pro": (90.0, 94.9),
        },
    ),
    "camelyon": DataSet(
        pipeline="cifar10_public.yaml",
        labels=_number(2),
        private_rows=269_538,
        published={
            "PE (ImageNet model)": (63.3, 64.9),
            "DP-FETA": (77.3, 82.9),
            "DP-LoRA": (84.1, 87.0),
            "PrivImage": (82.8, 82.9),
            "FETA-Pro": (84.0, 84.3),
        },
    ),
}
