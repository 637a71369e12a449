"""Foreign input of any kind: a clear error or a right answer, and no record content in an error."""

from __future__ import annotations

import copy
import functools
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from whole_slices import list_slices

from pe_ray.components.generators.pipeline_loading import PipelineOptions, load_pipeline
from pe_ray.components.weights import loading_errors, read_weights
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.parts import MANIFEST, commit, read_manifest, write_part
from pe_ray.private.records import read_records
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.synthetic.population import read_layout
from pe_ray.values import Budget, Framing, ImageShape, Release

few = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

FRAMING = Framing(shape=ImageShape(height=4, width=4, channels=1))
SECRET = b"SECRET-5f1c"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all examples: each writes its file anew."""
    return tmp_path_factory.mktemp("fuzz")


def told(kind: type[Exception], call: Callable[[], Any]) -> Exception | None:
    """The error of this kind that the call ends in, None if it ends well; others pass."""
    try:
        call()
    except kind as error:
        return error
    return None


VALID: dict[str, Any] = {
    "private": {"data": "sklearn:digits", "labels": ["0", "1"], "where": {"split": "a"}},
    "generator": {"kind": "rendered_text", "image_size": 12, "texts": {"0": ["0"]}},
    "embedder": {"kind": "pixels", "size": 6},
    "votes": {"lookahead": 1, "neighbors": 2},
    "selection": {"threshold": "auto", "overrides": {"2": {"denoise": "none"}}},
    "schedule": {"iterations": 2, "num_samples": 40, "degrees": {"start": 0.5, "end": 0.25}},
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"},
    "metrics": {"audit": [{"kind": "frechet"}]},
    "resources": {"num_cpus": 2},
    "output": {"path": "/nonexistent/run"},
}

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2, 2**63, 1e308, -0.0])
leaves = (
    st.none()
    | st.booleans()
    | numbers
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "switch",
            "pixels",
            "rendered_text",
            "user",
            "dp",
            "auto",
            ".inf",
            "\0",
            "a:b",
            "os:system",
        ]
    )
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a tree."""
    found = [path] if path else []
    if isinstance(tree, dict):
        for key, below in tree.items():
            found += places(below, (*path, key))
    return found


@few(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from(places(VALID)), trees), min_size=1, max_size=3))
def test_configuration_trees(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    tree = copy.deepcopy(VALID)
    for path, value in changes:
        at: Any = tree
        for key in path[:-1]:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[path[-1]] = value
    error = told(InputError, lambda: Config.from_dict(tree))
    if error is None:
        made = Config.from_dict(tree)
        assert Config.from_dict(made.model_dump(mode="json")).fingerprint == made.fingerprint
    else:
        assert len(str(error).strip()) > 8


@few(max_examples=40)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.text(max_size=30))
def test_configuration_files(scratch: Path, content: bytes, override: str) -> None:
    file = scratch / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError):
        Config.from_yaml(file)
    file.write_text(yaml.safe_dump(VALID))
    for text in (override, f"votes.{override}", f"votes.lookahead={override}"):
        told(InputError, lambda text=text: Config.from_yaml(file, [text]))  # type: ignore[misc]


@functools.cache
def records() -> bytes:
    sink = io.BytesIO()
    images_, labels, users = [], [], []
    for number in range(6):
        content = io.BytesIO()
        Image.fromarray(np.full((4, 4), 40 * number, np.uint8)).save(content, format="PNG")
        images_.append(content.getvalue() + SECRET)
        labels.append(str(number % 2))
        users.append(SECRET.decode())
    pq.write_table(pa.table({"image": images_, "label": labels, "user": users}), sink)
    return sink.getvalue()


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)


def edited(content: bytes, changes: list[tuple[float, int]], kept: float) -> bytes:
    """`content` with some bytes replaced, cut off after a share of it."""
    data = bytearray(content)
    for place, value in changes:
        data[int(place * len(data))] = value
    return bytes(data[: round(kept * len(data))])


cuts = st.just(1.0) | st.floats(0, 1)


@few(max_examples=80)
@given(edits, cuts)
@example([(0.6400338242151484, 0)], 1.0)  # a footer that says more rows than can be read
def test_parquet(scratch: Path, changes: list[tuple[float, int]], kept: float) -> None:
    file = scratch / "records.parquet"
    file.write_bytes(edited(records(), changes, kept))
    config = PrivateConfig(
        data=str(file), labels=("0", "1"), user_column="user", cache="none", where={"label": "1"}
    )
    error = told(
        InputError, lambda: [list(read_records(p, config, FRAMING)) for p in list_slices(config)]
    )
    assert error is None or SECRET.decode() not in f"{error} {error.__cause__!r}"


@few(max_examples=80)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]),
    st.sampled_from(["L", "RGB", "RGBA", "P", "1"]),
    edits,
    cuts,
    st.sampled_from([1, 3]),
)
def test_images(
    form: str, mode: str, changes: list[tuple[float, int]], kept: float, channels: int
) -> None:
    sink = io.BytesIO()
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode)
    try:
        picture.save(sink, format=form)
    except OSError:  # this format has no such mode
        picture.convert("RGB").save(sink, format=form)
    content = edited(sink.getvalue(), changes, kept)
    error = told(images.Unusable, lambda: images.decode_image(content, channels))
    if error is None:
        found = images.decode_image(content, channels)
        assert found.dtype == np.uint8
        assert found.shape[2] == channels
    else:
        assert str(error).startswith("image ")


@few(max_examples=60)
@given(st.binary(max_size=200))
def test_images_that_are_none(content: bytes) -> None:
    error = told(images.Unusable, lambda: images.decode_image(content, 1))
    assert error is None or str(error).startswith("image ")


@functools.cache
def weights(suffix: str) -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}
    if suffix == ".safetensors":
        return bytes(save(tensors))
    sink = io.BytesIO()
    torch.save(tensors, sink)
    return sink.getvalue()


@few(max_examples=40)
@given(st.sampled_from([".safetensors", ".pt"]), edits, cuts, st.booleans())
def test_weights(
    scratch: Path,
    suffix: str,
    changes: list[tuple[float, int]],
    kept: float,
    noise: bool,
) -> None:
    file = scratch / f"model{suffix}"
    content = edited(weights(suffix), changes, kept)
    file.write_bytes(content[::-1] if noise else content)

    def read() -> None:
        with loading_errors("generator.checkpoint", file):
            read_weights(file)

    error = told(InputError, read)
    assert error is None or str(error).startswith("generator.checkpoint")


@few(max_examples=40)
@given(
    trees.map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=40),
    trees | st.just("StableDiffusionPipeline"),
    trees,
)
def test_checkpoint_indexes(scratch: Path, content: bytes, family: Any, part: Any) -> None:
    folder = scratch / "checkpoint"
    folder.mkdir(exist_ok=True)
    known = json.dumps({"_class_name": family, "unet": part}).encode()
    for text in (content, known):
        (folder / "model_index.json").write_bytes(text)
        with pytest.raises(InputError, match=r"^generator\.checkpoint"):
            load_pipeline("Text2Image", PipelineOptions(checkpoint=str(folder)))


manifests = st.fixed_dictionaries(
    {},
    optional={
        "num_rows": trees,
        "label_counts": trees,
        "parts": trees
        | st.lists(
            st.fixed_dictionaries(
                {"file": leaves | st.just("part-0000000000-0000000002.npy"), "num_bytes": leaves},
                optional={"start": leaves, "stop": leaves, "more": leaves},
            ),
            max_size=2,
        ),
    },
)


@few(max_examples=80)
@given(manifests | trees, st.binary(max_size=20) | st.none())
def test_manifests(scratch: Path, tree: Any, instead: bytes | None) -> None:
    """A manifest that isn't ours counts as none: the stage is made again."""
    folder = scratch / "stage"
    part = write_part(folder, 0, 2, "npy", b"xy")
    commit(folder, [part], {"label_counts": [2]})
    assert read_layout(folder) is not None
    (folder / MANIFEST).write_bytes(json.dumps(tree).encode() if instead is None else instead)
    found = read_manifest(folder)
    assert found is None or len(found["parts"]) >= 0
    read_layout(folder)


def test_a_bottomless_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"[" * 100_000)
    assert read_manifest(tmp_path) is None


@functools.cache
def ledger_bytes(folder: Path) -> bytes:
    file = folder / "whole.sqlite"
    ledger = Ledger.create(file, Budget(epsilon=1.0, delta=1e-5, unit="record"), "print")
    for number in range(2):
        release = Release(
            key=f"votes/{number}", kind="votes", iteration=number, votes_per_unit=1, sigma=9.0
        )
        ledger.reserve(release)
        ledger.commit(release.key, np.arange(50))
    return file.read_bytes()


@few(max_examples=60)
@given(edits, cuts)
@example([(0.09375, 128)], 1.0)  # SQLite's own error is no UTF-8 then
def test_ledgers(scratch: Path, changes: list[tuple[float, int]], kept: float) -> None:
    file = scratch / "ledger.sqlite"
    file.write_bytes(edited(ledger_bytes(scratch), changes, kept))

    def read() -> None:
        ledger = Ledger.open(file)
        for entry in ledger.entries():
            found = ledger.stored(entry.release.key)
            assert found is None or found.tolist() == list(range(50))
        ledger.spent()

    told(InputError, read)


COLUMNS = ("votes_per_unit", "sigma", "iteration", "kind", "key", "sensitivity", "mu_squared")


@few(max_examples=60)
@given(
    st.sampled_from(COLUMNS),
    st.none() | st.text(max_size=5) | st.binary(max_size=5) | st.floats() | st.integers(-3, 3),
)
def test_ledgers_with_other_values(scratch: Path, column: str, value: Any) -> None:
    file = scratch / "changed.sqlite"
    file.write_bytes(ledger_bytes(scratch))
    with sqlite3.connect(file) as database:
        try:
            database.execute(f"UPDATE releases SET {column} = ? WHERE position = 1", (value,))
        except sqlite3.Error:
            return
        finally:
            database.commit()
    database.close()

    def read() -> None:
        ledger = Ledger.open(file)
        for entry in ledger.entries():
            ledger.released(entry.release.key)
        ledger.spent()

    told(InputError, read)


@few(max_examples=40)
@given(st.binary(max_size=40) | trees.map(lambda tree: yaml.safe_dump(tree).encode()))
def test_run_directories(scratch: Path, content: bytes) -> None:
    run = scratch / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_bytes(content)
    (run / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(InputError):
        open_run(run)
    from pe_ray.runtime.run_directory import claim_directory

    tree = {**VALID, "output": {"path": str(run)}}
    with pytest.raises(InputError), claim_directory(Config.from_dict(tree)):
        pass
