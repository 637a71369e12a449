"""Public images as samples: of which label, which are near, worked out once per machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_public import pictures, save_parquet, save_public
from weighed import save_weights
from whole_slices import list_slices, read_slice

from pe_ray import Config, InputError
from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.components.generators.nearest_image import NearestImage, NearestImageOptions
from pe_ray.evolution import evolve
from pe_ray.plugins.seeds import row_seeds
from pe_ray.synthetic.population_files import read_population

NAMES = ("a", "b", "c")
MANY = np.arange(600, dtype=np.int64)


def made(folder: Path, names: tuple[str, ...] = NAMES, **options: Any) -> NearestImage:
    given = {"data": str(folder), "image_size": 16, "cache": str(folder.parent / "cache")}
    return NearestImage(NearestImageOptions(**(given | options)), names)


def by_hand(vectors: np.ndarray, num: int) -> np.ndarray:
    """Nearest others by (distance, row), every distance in float64."""
    exact = vectors.astype(np.float64)
    found = []
    for row in range(len(exact)):
        distances = np.square(exact - exact[row]).sum(axis=1)
        distances[row] = np.inf
        found.append(np.lexsort((np.arange(len(exact)), distances))[:num])
    return np.array(found)


def features() -> np.ndarray:
    return Pixels(PixelsOptions()).embed(pictures(60))


@pytest.mark.parametrize("save", [save_public, save_parquet])
def test_random_draws_are_of_the_label_and_alike_from_any_source(tmp_path: Path, save: Any) -> None:
    generator = made(save(tmp_path / "public", NAMES))
    labels = (MANY % 3).astype(np.int32)
    drawn = generator.random(labels, row_seeds(1, "random", 0, MANY))
    assert np.array_equal(drawn["public_image"] // 20, labels)
    assert len(np.unique(drawn["public_image"])) == 60
    assert np.array_equal(drawn["image"], pictures(60)[drawn["public_image"]])


def test_variations_are_the_nearest_of_the_label_all_equally_likely(tmp_path: Path) -> None:
    generator = made(save_public(tmp_path / "public", NAMES))
    vectors = features()
    nearest = by_hand(vectors[20:40], 4) + 20
    rows = {"label": np.full(600, 1, np.int32), "public_image": np.full(600, 33)}
    varied = generator.vary(rows, 4, row_seeds(1, "variation", 1, MANY))["public_image"]
    values, counts = np.unique(varied, return_counts=True)
    assert set(values) == set(nearest[13])
    assert counts.min() > 100
    closest = generator.vary(rows, 1, row_seeds(1, "variation", 1, MANY))["public_image"]
    assert set(closest) == {nearest[13][0]}
    same = generator.vary(rows, 0, row_seeds(1, "variation", 1, MANY))
    assert set(same["public_image"]) == {33}
    assert np.array_equal(same["image"][0], pictures(60)[33])
    every = generator.vary(rows, 4000, row_seeds(1, "variation", 1, MANY))["public_image"]
    assert set(every) == set(range(20, 40)) - {33}


def test_classes_of_other_names(tmp_path: Path) -> None:
    folder = save_parquet(tmp_path / "public", [7, 8, 9])
    labels = (MANY % 2).astype(np.int32)
    seeds = row_seeds(1, "random", 0, MANY)
    anything = made(folder, ("x", "y"), classes="random")
    drawn = anything.random(labels, seeds)
    assert len(np.unique(drawn["public_image"][labels == 0])) > 50
    nearest = by_hand(features(), 2)
    rows = {"label": labels, "public_image": drawn["public_image"]}
    varied = anything.vary(rows, 2, seeds)["public_image"]
    assert (varied[:, None] == nearest[drawn["public_image"]]).any(axis=1).all()
    mapped = made(folder, ("x", "y"), classes={"x": ("9",), "y": ("7", "8")})
    numbers = mapped.random(labels, seeds)["public_image"] // 20
    assert set(numbers[labels == 0]) == {2}
    assert set(numbers[labels == 1]) == {0, 1}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("a", "d"), {}, "label 'd' .*'a', 'b', 'c'"),
        (("a",), {"classes": {"q": ["a"]}}, "generator.classes: 'q' is not a label"),
        (("a", "b"), {"classes": {"a": ["a"]}}, "label 'b'"),
        (("a",), {"data": "/absent"}, "generator.data: /absent"),
    ],
)
def test_what_does_not_match_is_named(
    tmp_path: Path, names: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        made(save_public(tmp_path / "public", NAMES, each=2), names, **options)


def test_an_unreadable_public_image_is_named_and_leaves_no_cache(tmp_path: Path) -> None:
    folder = save_public(tmp_path / "public", NAMES, each=2)
    bad = folder / "b" / "00002.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40])
    with pytest.raises(InputError, match=r"b/00002\.png: image can't be decoded"):
        made(folder)
    bad.write_bytes(content)
    assert np.array_equal(made(folder)._public.images.take(np.arange(6)), pictures(6))


@pytest.mark.parametrize(("degree", "fine"), [(0, True), (4096, True), (0.5, False), (5000, False)])
def test_degrees_are_whole_numbers_of_neighbours(degree: float, fine: bool) -> None:
    options = NearestImageOptions(data="absent", image_size=8)
    if fine:
        return options.check_degree(degree)
    with pytest.raises(ValueError, match="number of nearest public images"):
        options.check_degree(degree)


def test_images_and_neighbours_are_worked_out_once(tmp_path: Path) -> None:
    def cached() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}

    folder = save_public(tmp_path / "public", NAMES)
    rows = {"label": np.zeros(20, np.int32), "public_image": np.arange(20)}
    seeds = row_seeds(0, "variation", 1, rows["public_image"])
    first = made(folder).vary(rows, 6, seeds)
    before = cached()
    again = made(folder)
    assert np.array_equal(again.vary(rows, 6, seeds)["image"], first["image"])
    assert np.array_equal(again.vary(rows, 2, seeds)["public_image"] < 20, [True] * 20)
    assert isinstance(again._public.images.parts[0], np.memmap)
    assert cached() == before
    again.vary(rows, 19, seeds)  # a larger degree than any before
    wider = cached()
    assert len(wider) == len(before) + 1
    os.utime(folder / "a" / "00000.png", ns=(1, 1))
    made(folder)  # other files: decoded again
    assert len(cached()) > len(wider)


def test_neighbours_are_those_of_the_embedder_as_it_is(tmp_path: Path) -> None:
    folder = save_public(tmp_path / "public", NAMES)
    rows = {"label": np.full(600, 1, np.int32), "public_image": np.full(600, 33)}

    def neighbours(checkpoint: Path) -> set[int]:
        generator = made(
            folder, embedder={"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
        )
        varied = generator.vary(rows, 6, row_seeds(1, "variation", 1, MANY))
        return set(varied["public_image"])

    checkpoint = save_weights(tmp_path / "clip", 0)
    before = neighbours(checkpoint)
    file = checkpoint / "network" / "weights.npy"
    state = file.stat()
    save_weights(checkpoint, 1)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert neighbours(checkpoint) == neighbours(save_weights(tmp_path / "elsewhere", 1)) != before


def test_public_images_that_replace_others_are_read(tmp_path: Path) -> None:
    """With the size and the time of the file before."""
    folder = tmp_path / "public"
    file = folder / "a" / "image.bmp"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(file)
    state, before = file.stat(), made(folder, ("a",))
    other = tmp_path / "other.bmp"
    Image.new("RGB", (16, 16), "blue").save(other)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    labels, seeds = np.zeros(1, np.int32), row_seeds(1, "random", 0, MANY[:1])
    red, blue = (each.random(labels, seeds)["image"] for each in (before, made(folder, ("a",))))
    assert not np.array_equal(red, blue)


def test_processes_that_start_together_share_the_work(tmp_path: Path) -> None:
    """Each part of the cache is made by one of them, and all see the same."""
    folder = save_parquet(tmp_path / "public", ["any"], each=600)
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import numpy as np, os
from pathlib import Path
from test_nearest_image import made, row_seeds
from pe_ray.components.generators import nearest_image
nearest_image._EMBEDDED = 32
rows = {{"label": np.zeros(600, np.int32), "public_image": np.arange(600)}}
generator = made(Path({str(folder)!r}), classes="random")
varied = generator.vary(rows, 5, row_seeds(0, "variation", 1, np.arange(600)))
print(varied["public_image"].tolist(), varied["image"].sum())
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0] for process in running}
    assert len(outputs) == 1
    assert outputs.pop().startswith("[")
    cache = tmp_path / "cache"
    assert len(list(cache.rglob("images.npy"))) == 24  # files of 25 rows
    assert len(list(cache.rglob("vectors.npy"))) == 19
    assert not list(cache.rglob("*part-*"))
    nearest = by_hand(Pixels(PixelsOptions()).embed(pictures(600)), 5)
    rows = {"label": np.zeros(600, np.int32), "public_image": np.arange(600)}
    varied = made(folder, classes="random").vary(rows, 5, row_seeds(1, "variation", 1, MANY))
    assert (varied["public_image"][:, None] == nearest).any(axis=1).all()
    assert np.array_equal(varied["image"], pictures(600)[varied["public_image"]])


def test_public_images_are_cut_as_private_ones_are(tmp_path: Path, tree: dict[str, Any]) -> None:
    """The same photograph, private and public: their arrays are equal, in every mode."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, 10, 3), np.uint8)
    for side in ("private", "public"):
        (tmp_path / side / "0").mkdir(parents=True)
        photo = Image.fromarray(pixels).resize((80, 40))
        photo.save(tmp_path / side / "0" / f"{side}.png")
    for resize in ("crop", "pad", "stretch"):
        tree["private"] |= {"data": str(tmp_path / "private"), "labels": ["0"], "resize": resize}
        tree["generator"] = {
            "kind": "nearest_image",
            "data": str(tmp_path / "public"),
            "image_size": 16,
            "resize": resize,
            "cache": str(tmp_path / "cache"),
        }
        tree["schedule"]["degrees"] = 1
        tree["schedule"]["num_samples"] = 4
        tree["metrics"] = {}
        config = Config.from_dict(tree)
        generator = NearestImage(config.generator.options, ["0"])
        (public,) = generator.random(np.zeros(1, np.int32), np.zeros(1, np.uint64))["image"]
        (part,) = list_slices(config.private)
        assert np.array_equal(
            read_slice(part, config.private, config.image_shape).images[0], public
        )
    tree["private"]["resize"] = "crop"
    with pytest.raises(InputError, match=r"generator\.resize"):
        Config.from_dict(tree)


def test_a_run_on_public_images(ray_session: None, tree: dict[str, Any], tmp_path: Path) -> None:
    names = tree["private"]["labels"]
    tree["generator"] = {
        "kind": "nearest_image",
        "data": str(save_public(tmp_path / "public", names)),
        "image_size": 16,
        "channels": 1,
    }
    tree["schedule"]["degrees"] = [8, 3]
    config = Config.from_dict(tree)
    run = evolve(config)
    rows = read_population(
        run / "populations" / "iter=0002", np.arange(40), config.generator.options
    )
    assert np.array_equal(rows["public_image"] // 20, rows["label"])
    grey = np.asarray(Image.fromarray(pictures(200)[rows["public_image"][7]]).convert("L"))
    assert np.array_equal(rows["image"][7][:, :, 0], grey)
    tree["generator"]["cache"] = str(tmp_path / "elsewhere")  # changes no output
    assert evolve(Config.from_dict(tree)) == run
    tree["generator"]["classes"] = "random"
    with pytest.raises(InputError, match=r"generator\.classes: differs from"):
        evolve(Config.from_dict(tree))


def test_a_run_votes_on_every_public_image_once(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    """S_0 holds the whole set for each label, and degree 0 keeps the images that votes chose."""
    short["generator"] = {
        "kind": "nearest_image",
        "data": str(save_public(tmp_path / "public", ["any"], each=30)),
        "image_size": 16,
        "channels": 1,
        "classes": "random",
        "start": "distinct",
    }
    short["votes"] = {}
    short["schedule"] |= {"num_samples": [300, 40], "degrees": 0}
    config = Config.from_dict(short)
    run, options = evolve(config), config.generator.options
    first = read_population(run / "populations" / "iter=0000", np.arange(300), options)
    for label in range(10):
        assert set(first["public_image"][first["label"] == label]) == set(range(30))
    last = read_population(run / "populations" / "iter=0001", np.arange(40), options)
    assert np.array_equal(last["public_image"], first["public_image"][last["parent"]])


def test_fewer_distinct_draws_are_spread_over_the_set(tmp_path: Path) -> None:
    generator = made(save_public(tmp_path / "public", NAMES), start="distinct", classes="random")
    drawn = generator.random(np.zeros(12, np.int32), np.arange(40, 52).astype(np.uint64))
    _, counts = np.unique(drawn["public_image"] // 20, return_counts=True)
    assert len(np.unique(drawn["public_image"])) == 12
    assert counts.min() >= 3


@pytest.mark.parametrize("gpus_per_worker", [0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_generator_that_workers_cannot_build_ends_a_run_with_its_error(
    ray_session: None, tree: dict[str, Any], gpus_per_worker: float
) -> None:
    """In tasks, or in actors where there are GPUs."""
    tree["generator"] = {"kind": "nearest_image", "data": "/absent", "image_size": 12}
    tree["schedule"]["degrees"] = 4
    tree["resources"]["gpus_per_worker"] = gpus_per_worker
    with pytest.raises(InputError, match=r"generator\.data: /absent"):
        evolve(Config.from_dict(tree))


@pytest.mark.parametrize("public", ["/data/letters", "/data/./letters/part.parquet", "/data"])
def test_the_private_records_are_no_public_images(tree: dict[str, Any], public: str) -> None:
    """They would be published as they are."""
    tree["private"]["data"] = "/data/letters"
    made = {"kind": "nearest_image", "data": public, "image_size": 12, "channels": 1}
    other = made | {"data": "/data/other"}
    stages = [{"start": 0, "generator": other}, {"start": 1, "generator": made}]
    tree["schedule"]["degrees"] = [1, 1]
    for generator in (made, {"kind": "switch", "stages": stages}):
        with pytest.raises(InputError, match=r"generator\.data: is private\.data"):
            Config.from_dict(tree | {"generator": generator})
    Config.from_dict(tree | {"generator": other})


def save_ramp(folder: Path) -> Path:
    """Save one image whose red grows from left to right and whose green grows downwards."""
    (folder / "a").mkdir(parents=True)
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    ramp = np.stack([across * 4, down * 4, np.full_like(across, 255)], axis=2)
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "a" / "ramp.png")
    return folder


def draw_many(generator: NearestImage) -> np.ndarray:
    labels = np.zeros(600, np.int32)
    return generator.random(labels, row_seeds(1, "random", 0, MANY))["image"]


def test_a_view_is_a_part_of_its_image_anywhere_in_it(tmp_path: Path) -> None:
    generator = made(save_ramp(tmp_path / "public"), ("a",), view=(0.25, 0.5))
    red, green = np.moveaxis(draw_many(generator)[..., :2].astype(float), 3, 0)
    sides = (red[:, :, 14] - red[:, :, 1]).mean(axis=1) / 13 * 16 / 256
    down = (green[:, 14] - green[:, 1]).mean(axis=1) / 13 * 16 / 256
    assert np.abs(sides - down).max() < 0.02  # parts are squares
    assert sides.min() > 0.23
    assert sides.max() < 0.52
    assert np.abs(np.histogram(sides, 5, (0.25, 0.5))[0] / 600 - 0.2).max() < 0.06
    for middles in (red[:, 8, 8], green[:, 8, 8]):
        place = (middles / 256 - sides / 2) / (1 - sides)
        assert np.abs(np.histogram(place, 5, (0, 1.05))[0] / 600 - 0.2).max() < 0.08


def test_views_above_one_show_the_whole_image_in_background(tmp_path: Path) -> None:
    generator = made(save_ramp(tmp_path / "public"), ("a",), view=(1.5, 1.5), background="black")
    blue = draw_many(generator)[..., 2]
    area = blue.mean(axis=(1, 2)) / 255
    assert np.abs(area - 1 / 1.5**2).max() < 0.03
    assert len(np.unique(blue.reshape(600, -1), axis=0)) > 500


def test_half_of_mirrored_samples_are_mirrored(tmp_path: Path) -> None:
    generator = made(save_ramp(tmp_path / "public"), ("a",), mirror=True)
    plain = draw_many(made(tmp_path / "public", ("a",)))[0]
    drawn = draw_many(generator)
    turned = (drawn == plain[:, ::-1]).all(axis=(1, 2, 3))
    assert ((drawn == plain).all(axis=(1, 2, 3)) ^ turned).all()
    assert 0.43 < turned.mean() < 0.57


def test_a_view_depends_on_its_seed_alone(tmp_path: Path) -> None:
    generator = made(save_public(tmp_path / "public", NAMES), view=(0.5, 1.5), mirror=True)
    labels, seeds = (MANY % 3).astype(np.int32), row_seeds(1, "variation", 1, MANY)
    rows = {"label": labels, **generator.random(labels, seeds)}
    every = generator.vary(rows, 6, seeds)["image"]
    for row in (0, 7, 599):
        one = {name: column[row : row + 1] for name, column in rows.items()}
        assert np.array_equal(generator.vary(one, 6, seeds[row : row + 1])["image"][0], every[row])


@pytest.mark.parametrize("view", [(0.0, 1.0), (1.2, 0.8), (0.5, 9.0)])
def test_views_out_of_range_are_refused(view: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="view"):
        NearestImageOptions(data="absent", image_size=8, view=view)
