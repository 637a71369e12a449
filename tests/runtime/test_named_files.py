"""A run is bound to the content of the files that its configuration names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_public import save_public
from undisturbed import charged, content
from weighed import save_weights

from pe_ray import Config, InputError
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.release.ledger import Ledger
from pe_ray.runtime.named_files import digest_named_files
from pe_ray.runtime.run_directory import claim_directory, write_config

FONT = "DejaVuSans.ttf"


def fonts(folder: Path, name: str) -> Path:
    """A folder with one of matplotlib's fonts."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    source = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    shutil.copy(source, folder / FONT)
    return folder


def replace_in_place(file: Path, write: Callable[[], object]) -> bytes:
    """Let `write` change the file and hide that in its time; return what it held."""
    held, state = file.read_bytes(), file.stat()
    write()
    assert file.read_bytes() != held
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    return held


def test_a_run_is_not_continued_or_expanded_with_other_files(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = save_weights(tmp_path / "models" / "clip", 0)
    weights = checkpoint / "network" / "weights.npy"
    tree["generator"]["fonts"] = str(fonts(tmp_path / "fonts", FONT))
    tree["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
    config = Config.from_dict(tree)
    run = evolve(config)
    made, spent = content(run), charged(run)
    assert json.loads((run / "files.json").read_bytes()).keys() == {
        *(str(tmp_path / "fonts"), str(checkpoint))
    }

    held = replace_in_place(weights, lambda: save_weights(checkpoint, 1))
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: .*clip "):
        evolve(config)
    expand(run, 40, tmp_path / "more")  # needs no embedder
    weights.write_bytes(held)

    font = tmp_path / "fonts" / FONT
    held = replace_in_place(font, lambda: fonts(tmp_path / "fonts", "DejaVuSerif.ttf"))
    with pytest.raises(InputError, match=r"^generator\.fonts: "):
        evolve(config)
    with pytest.raises(InputError, match=r"^generator\.fonts: "):
        expand(run, 40, tmp_path / "less")
    assert not (tmp_path / "less").exists()
    assert (content(run), charged(run)) == (made, spent)
    font.write_bytes(held)
    evolve(config)
    expand(run, 40, tmp_path / "less")
    assert (content(run), charged(run)) == (made, spent)


def test_workers_that_stay_use_the_files_as_they_are(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["privacy"]["epsilon"] = float("inf")
    histograms = []
    for name, place, seed in (("a", "clip", 0), ("b", "clip", 1), ("c", "elsewhere", 1)):
        checkpoint = save_weights(tmp_path / place, seed)
        tree["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
        tree["output"]["path"] = str(tmp_path / name)
        made = content(evolve(Config.from_dict(tree)))
        histograms.append({key: held for key, held in made.items() if "histograms" in key})
    assert histograms[0] != histograms[1] == histograms[2]


def start(config: Config) -> None:
    """What a start does before it reads a record."""
    with claim_directory(config) as run:
        Ledger.create(run.ledger, config.privacy.budget, config.fingerprint, renew=run.is_bare)
        write_config(run, config)


def make_something(run: Path) -> None:
    (run / "populations").mkdir()
    (run / "populations" / "part").write_bytes(b"made")


def test_until_something_was_made_another_file_may_take_its_place(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    run, checkpoint = tmp_path / "run", save_weights(tmp_path / "clip", 0)
    tree["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
    config = Config.from_dict(tree)
    start(config)
    (run / "features").mkdir()
    (run / "features" / "learnt.npz").write_bytes(b"from the first")
    start(config)
    assert (run / "features").exists()
    save_weights(checkpoint, 1)
    start(config)
    assert not (run / "features").exists()
    make_something(run)
    start(config)
    save_weights(checkpoint, 0)
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: "):
        start(config)


def test_a_run_from_before_files_were_recorded_is_bound_from_its_next_start(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    run, checkpoint = tmp_path / "run", save_weights(tmp_path / "clip", 0)
    tree["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
    config = Config.from_dict(tree)
    start(config)
    make_something(run)
    (run / "files.json").unlink()
    start(config)
    save_weights(checkpoint, 1)
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: "):
        start(config)
    (run / "files.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"files\.json: is damaged"):
        start(config)


def test_files_that_only_workers_have_are_left_to_them(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    run, checkpoint = tmp_path / "run", save_weights(tmp_path / "clip", 0)
    tree["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(checkpoint)}
    config = Config.from_dict(tree)
    checkpoint.rename(tmp_path / "away")
    start(config)
    assert not (run / "files.json").exists()
    make_something(run)
    (tmp_path / "away").rename(checkpoint)
    start(config)
    checkpoint.rename(tmp_path / "away")
    start(config)
    assert [*json.loads((run / "files.json").read_bytes())] == [str(checkpoint)]


def test_nothing_of_the_private_data_is_recorded(tree: dict[str, Any], tmp_path: Path) -> None:
    """However the configuration names them: other rows of the files may be public."""
    records = save_public(tmp_path / "records", [*"0123456789"], 1)
    audited = save_public(tmp_path / "audited", [*"0123456789"], 1)
    public = save_public(tmp_path / "public", [*"0123456789"], 1)
    (tmp_path / "link").symlink_to(records)
    tree["private"] |= {"data": str(records), "where": {"split": "train"}}
    tree["metrics"] = {
        "audit_data": str(audited),
        "public": {
            "data": str(tmp_path / "link"),
            "where": {"split": "test"},
            "metrics": [{"kind": "frechet"}],
        },
    }
    tree["generator"] = {
        "kind": "nearest_image",
        "data": str(public),
        "image_size": 12,
        "embedder": {"kind": "weighed:Weighed", "checkpoint": str(audited / "0")},
    }
    tree["schedule"]["degrees"] = [2, 1]
    config = Config.from_dict(tree)
    start(config)
    recorded = json.loads((tmp_path / "run" / "files.json").read_bytes())
    assert [*recorded] == [str(public)]
    assert digest_named_files(config, config.model_dump(mode="json")).keys() == {str(public)}


def test_a_mistake_that_named_the_private_data_leaves_no_digest(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """Exchanged with the public images, and exchanged back before anything was made."""
    places = [str(save_public(tmp_path / name, [*"0123456789"], 1)) for name in ("one", "other")]
    tree["schedule"]["degrees"] = [2, 1]
    for private, public in (places, places[::-1]):
        tree["private"]["data"] = private
        tree["generator"] = {"kind": "nearest_image", "data": public, "image_size": 12}
        start(Config.from_dict(tree))
        recorded = json.loads((tmp_path / "run" / "files.json").read_bytes())
        assert [*recorded] == [public]


def test_a_link_into_the_private_data_is_not_followed(tree: dict[str, Any], tmp_path: Path) -> None:
    records = save_public(tmp_path / "records", [*"0123456789"], 1)
    public = save_public(tmp_path / "public", [*"0123456789"], 1)
    tree["private"]["data"] = str(records)
    tree["generator"] = {"kind": "nearest_image", "data": str(public), "image_size": 12}
    tree["schedule"]["degrees"] = [2, 1]
    config = Config.from_dict(tree)
    assert digest_named_files(config, config.bound()).keys() == {str(public)}
    (public / "0" / "more").symlink_to(records / "1")
    assert digest_named_files(config, config.bound()) == {}
