"""The contract that every registered plugin keeps, and how plugins are found."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from image_service import KEY, Service, serving
from tiny_diffusion import save_pipeline
from tiny_networks import save_clip, save_dinov2, save_inception, save_onnx, save_timm
from tiny_public import save_public
from tiny_unets import save_improved, save_unet

from pe_ray import InputError, plugins
from pe_ray.components.embedders import label_features
from pe_ray.files.array_files import write_arrays
from pe_ray.plugins.seeds import normals, row_seeds, uniforms
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.values import ImageShape

NAMES = ("0", "1", "2")
LABELS = np.array([0, 2, 1, 1, 0, 2, 2], dtype=np.int32)
ROWS = np.arange(len(LABELS), dtype=np.int64)


@cache
def service() -> Service:
    """An image service for as long as this process lives."""
    running = ExitStack()
    atexit.register(running.close)
    os.environ["PE_RAY_TEST_KEY"] = KEY
    return running.enter_context(serving())


def _save_diffusers(folder: Path) -> dict[str, Any]:
    return {
        "checkpoint": save_pipeline(folder / "checkpoint", "sd"),
        "prompts": {"1": "a one"},
        "image_size": 32,
        "random": {"steps": 2},
        "vary": {"steps": 4},
    }


NEEDS_FILES: dict[tuple[str, str], Callable[[Path], dict[str, Any]]] = {
    ("generator", "diffusers"): _save_diffusers,
    ("generator", "stable_diffusion"): _save_diffusers,
    ("generator", "improved_diffusion"): save_improved,
    ("generator", "image_api"): lambda folder: service().options(folder / "store"),
    ("generator", "fal"): lambda folder: service().options(
        folder / "store",
        random={"model": "fal-ai/tiny", "size": 256},
        vary={"model": "fal-ai/tiny/image-to-image", "size": 256},
    ),
    ("generator", "nearest_image"): lambda folder: {
        "data": str(save_public(folder / "public", NAMES)),
        "image_size": 16,
        "cache": str(folder / "cache"),
    },
    ("generator", "mixture"): lambda folder: {
        "members": {
            "fonts": {"generator": {"kind": "rendered_text", "image_size": 12}},
            "blobs": {"generator": {"kind": "gaussians", "image_size": 12}},
        }
    },
    ("generator", "gaussians"): lambda folder: {"image_size": 12},
    ("generator", "unet"): lambda folder: {"checkpoint": save_unet(folder), "steps": 5},
    ("embedder", "inception"): lambda folder: {"weights": str(save_inception(folder))},
    ("embedder", "transformers"): lambda folder: {"checkpoint": str(save_dinov2(folder))},
    ("embedder", "clip"): lambda folder: {"checkpoint": str(save_clip(folder))},
    ("embedder", "dinov2"): lambda folder: {"checkpoint": str(save_dinov2(folder))},
    ("embedder", "timm"): lambda folder: {
        "model": "test_resnet",
        "weights": str(save_timm(folder)),
    },
    ("embedder", "joined"): lambda folder: {
        "members": [{"embedder": "pixels"}, {"embedder": "gradients"}]
    },
    ("embedder", "onnx"): lambda folder: {"file": str(save_onnx(folder / "n.onnx")), "size": 8},
    ("metric", "kid"): lambda folder: {
        "embedder": {"kind": "inception", "weights": str(save_inception(folder))}
    },
}
"""(type, kind) -> options, for plugins that can't be made from defaults alone."""

DEGREES = {"improved_diffusion": 2, "unet": 2, "nearest_image": 3}
"""Kind -> a degree, for generators in whose units 0.5 is none."""

NETWORK_LEVELS = 1  # of 255, of a network's images in another batch


def _options_of(made: Any, plugin_type: str, kind: str, folder: Path) -> Any:
    given = NEEDS_FILES.get((plugin_type, kind), lambda _: {})(folder)
    return made.Options.model_validate(given)


@pytest.mark.parametrize("rehearsed", [False, True])
@pytest.mark.parametrize("kind", sorted(plugins.registered("generator")))
def test_generators(kind: str, rehearsed: bool, tmp_path: Path) -> None:
    made = plugins.load("generator", kind)
    options = _options_of(made, "generator", kind, tmp_path)
    if rehearsed:
        options = options.rehearsal(
            Rehearsal(folder=tmp_path, labels=NAMES, iterations=(1, 2), num_samples=16)
        )
    degree = DEGREES.get(kind, 0.5)
    options.check_degree(degree)
    generator, shape = made(options, NAMES), options.image_shape

    def check(rows: plugins.Rows, count: int) -> None:
        assert set(rows) >= {"image", *options.columns}
        assert rows["image"].shape == (count, shape.height, shape.width, shape.channels)
        assert rows["image"].dtype == np.uint8
        for name, (dtype, width) in options.columns.items():
            assert rows[name].dtype == np.dtype(dtype)
            assert rows[name].reshape(count, width).shape == (count, width)

    drawn = generator.random(LABELS, row_seeds(1, "random", 0, ROWS))
    check(drawn, len(LABELS))
    drawn["label"] = LABELS
    seeds = row_seeds(1, "variation", 1, ROWS)
    varied = generator.vary(drawn, degree, seeds)
    check(varied, len(LABELS))
    assert not np.array_equal(varied["image"], drawn["image"])
    order = np.array([4, 0, 6])
    some = {name: values[order] for name, values in drawn.items()}
    again = generator.vary(some, degree, seeds[order])
    networks = ("diffusers", "stable_diffusion", "improved_diffusion", "unet")
    rounding = NETWORK_LEVELS if kind in networks else 0
    assert np.abs(again["image"].astype(int) - varied["image"][order]).max() <= rounding
    for name in options.columns:
        assert np.array_equal(again[name], varied[name][order]), name


def learnt(channels: int, file: Path) -> label_features.LearntFeaturesOptions:
    """What a run would have learnt, of images that tell nothing."""
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    write_arrays(file, label_features.fit(images, np.arange(40) % 2, 5, 1, 0))
    return label_features.LearntFeaturesOptions(file=str(file), num_features=5)


@pytest.mark.parametrize("kind", sorted(plugins.registered("embedder")))
@pytest.mark.parametrize("channels", [1, 3])
def test_embedders(kind: str, channels: int, tmp_path: Path) -> None:
    made = plugins.load("embedder", kind)
    options = _options_of(made, "embedder", kind, tmp_path)
    if options.learnt:
        options = learnt(channels, tmp_path / "learnt.npz")
        made = label_features.LearntFeatures
    embedder = made(options)
    images = np.random.default_rng(0).integers(0, 256, (5, 11, 9, channels), dtype=np.uint8)
    vectors = embedder.embed(images)
    dim = options.dim(ImageShape(height=11, width=9, channels=channels))
    assert vectors.shape == (5, dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert np.array_equal(embedder.embed(images[3:4]), vectors[3:4])
    assert embedder.metric in ("l2", "cosine", "inner_product")


@pytest.mark.parametrize("kind", sorted(plugins.registered("metric")))
def test_metrics(kind: str, tmp_path: Path) -> None:
    made = plugins.load("metric", kind)
    options = _options_of(made, "metric", kind, tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 6, 6, 1), dtype=np.uint8)
    labels = np.arange(60, dtype=np.int32) % 3
    scores = made(options).score(images, labels, images[::-1], labels[::-1])
    assert scores
    assert all(np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown", "is not known; use one of"),
        ("no.such.module:Thing", "can't load"),
        ("pe_ray.values:Absent", "can't load"),
        ("pe_ray.values:Budget", "has no Options model"),
    ],
)
def test_a_wrong_kind_is_named(kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugins.load("generator", kind)


def test_module_and_class_load_a_third_partys_plugin() -> None:
    found: Any = plugins.load("embedder", "pe_ray.components.embedders.pixels:Pixels")
    assert found is plugins.load("embedder", "pixels")


def test_seeds_differ_in_every_argument_and_streams_are_uniform() -> None:
    ids = np.arange(1000, dtype=np.int64)
    streams = [
        row_seeds(0, "variation", 1, ids),
        row_seeds(1, "variation", 1, ids),
        row_seeds(0, "lookahead", 1, ids),
        row_seeds(0, "variation", 2, ids),
        row_seeds(0, "variation", 1, ids, 1),
    ]
    assert len(np.unique(np.concatenate(streams))) == 5000
    assert np.array_equal(row_seeds(0, "variation", 1, ids[7:8]), streams[0][7:8])
    draws = uniforms(streams[0], 200).ravel()
    assert 0 < draws.min() < draws.max() < 1
    expected = len(draws) / 50
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 49 degrees of freedom
    gauss = normals(streams[0], 200).ravel()
    assert abs(gauss.mean()) < 0.02
    assert gauss.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("plugin_type", get_args(plugins.PluginType))
def test_a_package_names_plugins_of_every_type(
    plugin_type: plugins.PluginType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, options = f"outside_{plugin_type}", "Options"
    if plugin_type in ("generator", "embedder"):
        options = f"{plugin_type.title()}Options"
    (tmp_path / f"{module}.py").write_text(
        f"from pe_ray import plugins\nclass Mine:\n    Options = plugins.{options}\n"
    )
    installed = tmp_path / f"{module}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    group = plugins.group_of(plugin_type)
    (installed / "entry_points.txt").write_text(f"[{group}]\nmine = {module}:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plugins.load(plugin_type, "mine")
    assert found is plugins.load(plugin_type, f"{module}:Mine")
    assert found.__module__ == module
    with pytest.raises(InputError, match=rf"{plugin_type}\.kind"):
        plugins.load(plugin_type, "yours")


def test_the_group_is_the_plural_of_the_type() -> None:
    assert plugins.group_of("generator") == "pe_ray.generators"
    assert plugins.group_of("tuning_strategy") == "pe_ray.tuning_strategies"
