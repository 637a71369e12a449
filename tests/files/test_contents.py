"""Digests tell one content from another, whatever sizes, times and paths say."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from pe_ray.files.contents import digest_place, find_place, holds_own_work, list_named


def save(folder: Path, **files: str) -> Path:
    time.sleep(0.02)  # the clock of a file system ticks every few ms
    folder.mkdir(parents=True, exist_ok=True)
    for name, held in files.items():
        (folder / name).write_text(held)
    return folder


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    state = file.stat()
    assert digest_place(file) == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    time.sleep(0.02)  # the clock of a file system ticks every few ms
    file.write_bytes(b"abd")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digest_place(file) == f"sha256:{hashlib.sha256(b'abd').hexdigest()}"


def test_a_folder_is_known_by_names_and_contents(tmp_path: Path) -> None:
    first = save(tmp_path / "first", a="1", b="2")
    digest = digest_place(first)
    assert digest_place(save(tmp_path / "copy", b="2", a="1")) == digest
    assert digest_place(save(tmp_path / "swapped", a="2", b="1")) != digest
    assert digest_place(save(tmp_path / "renamed", a="1", c="2")) != digest
    save(first, **{".notes": "of a tool"})
    assert digest_place(first) == digest
    save(first / "below", c="3")
    assert digest_place(first) != digest


def test_links_are_followed_and_may_lead_back(tmp_path: Path) -> None:
    blobs, folder = save(tmp_path / "blobs", weights="1"), save(tmp_path / "folder", config="x")
    (folder / "unet").symlink_to(blobs)
    (folder / "back").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    digest = digest_place(folder)
    save(blobs, weights="2")
    assert digest_place(folder) != digest


def test_what_holds_no_file_has_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert digest_place(tmp_path / "pipe") is None
    assert digest_place(tmp_path / "empty") is None
    assert [find_place(text) for text in ("", "nowhere", "https://a/b", "x" * 5000)] == [None] * 4


def test_a_large_image_set_is_known_by_names_and_sizes(tmp_path: Path) -> None:
    folder = save(tmp_path / "images", a="1")
    with open(folder / "large", "wb") as file:
        file.truncate((1 << 30) + 1)
    digest = digest_place(folder, images=True)
    save(folder, a="2")
    assert digest_place(folder, images=True) == digest
    save(folder, a="22")
    assert digest_place(folder, images=True) != digest


def test_folders_of_everything_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text to render may be a dot, a slash or a tilde."""
    monkeypatch.chdir(tmp_path)
    for text in (".", "..", "/", "~"):
        place = find_place(text)
        assert isinstance(place, Path)
        assert holds_own_work(place)
    assert not holds_own_work(save(tmp_path / "models", a="1"))


def test_files_are_named_in_options_and_as_image_sets() -> None:
    tree = {
        "generator": {"kind": "unet", "checkpoint": "a", "texts": {"x": ["word"]}},
        "metrics": {
            "public": {
                "data": "b",
                "image_column": "word",
                "metrics": [{"kind": "frechet", "embedder": {"kind": "inception", "weights": "c"}}],
            }
        },
        "tuning": {"search": "word", "space": {"embedder.checkpoint": ["d", "e"]}},
        "privacy": {"unit": "word"},
    }
    assert list(list_named(tree)) == [
        ("generator.checkpoint", "a"),
        ("metrics.public.data", "b"),
        ("metrics.public.metrics.embedder.weights", "c"),
        ("tuning.space.embedder.checkpoint", "d"),
        ("tuning.space.embedder.checkpoint", "e"),
    ]
