"""A data set is recognised by what its files hold, wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.private.data_set import _divide, digest_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(4):
        place = tmp_path / "data" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(place / f"{number}.png")
    return tmp_path / "data"


def private(data: Path, **keys: object) -> PrivateConfig:
    tree = {"data": str(data), "labels": ["class0", "class1"], **keys}
    return PrivateConfig.model_validate(tree)


def test_content_alone_decides(ray_session: None, folder: Path, tmp_path: Path) -> None:
    all_files = digest_data(private(folder), "record", 60.0)
    assert len(all_files) == 4
    shutil.move(folder / "class0" / "0.png", folder / "class1" / "renamed.png")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert digest_data(private(moved), "record", 60.0) == all_files
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(moved / "class0" / "added.png")
    assert digest_data(private(moved), "record", 60.0) > all_files
    (folder / "class0" / "2.png").unlink()
    Image.fromarray(np.ones((8, 8), np.uint8)).save(folder / "class1" / "1.png")
    changed = digest_data(private(folder), "record", 60.0)
    assert len(changed) == 3
    assert len(changed - all_files) == 1


def test_users_of_another_column_are_other_units(ray_session: None, tmp_path: Path) -> None:
    from pe_ray import save_images

    images, labels = np.zeros((4, 8, 8, 1), np.uint8), ["class0", "class1"] * 2
    file = tmp_path / "private.parquet"
    save_images(images, file, labels, [1, 1, 2, 2])
    column = private(file, user_column="user")
    assert digest_data(column, "record", 60.0) == digest_data(private(file), "record", 60.0)
    users = digest_data(column, "user", 60.0)
    assert len(users) == 1
    assert users.isdisjoint(digest_data(column, "record", 60.0))


def test_a_data_set_that_is_not_there_is_named(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^private\.data"):
        digest_data(private(tmp_path / "absent"), "record", 60.0)


def test_large_files_are_read_side_by_side() -> None:
    files = [(str(number), 1 << 29) for number in range(5)] + [("large", 1 << 40)]
    assert list(_divide(files)) == [["0", "1"], ["2", "3"], ["4"], ["large"]]
    assert [len(paths) for paths in _divide([("small", 1)] * 4500)] == [2000, 2000, 500]
