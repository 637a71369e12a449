"""A published folder, read as its users and reviewers read it; the same bytes after any kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import serve_hub
from PIL import Image
from small_runs import small_tree

from pe_ray import Config, InputError
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import commit, list_parts, write_part
from pe_ray.files.storage import name_left_aside
from pe_ray.publishing.about import About
from pe_ray.publishing.bundle import publish
from pe_ray.publishing.cards import PublishedSet, describe_privacy
from pe_ray.release.ledger import Ledger
from pe_ray.report.facts import gather

NAMESPACE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration and 40 samples; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    return Path(evolve(Config.from_dict(small_tree(folder))))


@pytest.fixture(scope="module")
def expanded(finished: Path) -> Path:
    return Path(expand(finished, 100, finished.parent / "more"))


@pytest.fixture(scope="module")
def published(finished: Path) -> Path:
    """The final set; not to be changed."""
    return publish(finished, finished.parent / "published")


def read_pngs(folder: Path) -> list[bytes]:
    """The PNGs of a set, in row order."""
    files = sorted(folder.glob("*.parquet"))
    return [cell["bytes"] for file in files for cell in pq.read_table(file)["image"].to_pylist()]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def read_all(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_it_reads_as_it_is(finished: Path, published: Path, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(published), cache_dir=str(tmp_path / "hf"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.features["label"].names == [str(digit) for digit in range(10)]
    source = read_pngs(finished / "synthetic")
    assert len(rows) == len(source) == 40
    table = pq.read_table(finished / "synthetic", partitioning=None)
    assert rows["label"] == table["label"].to_pylist()
    for row, png in zip(rows, source, strict=True):
        assert np.array_equal(np.asarray(row["image"]), pixels(png))


def test_each_image_carries_the_mark_unless_it_is_left_out(
    finished: Path, published: Path, tmp_path: Path
) -> None:
    source = read_pngs(finished / "synthetic")
    for png, plain in zip(read_pngs(published / "data"), source, strict=True):
        image = Image.open(io.BytesIO(png))
        packet = ElementTree.fromstring(image.info["XML:com.adobe.xmp"].strip("\ufeff"))
        (kind,) = [
            value
            for element in packet.iter()
            for name, value in element.attrib.items()
            if name == f"{NAMESPACE}DigitalSourceType"
        ]
        assert kind.endswith("/digitalsourcetype/trainedAlgorithmicMedia")
        assert np.array_equal(np.asarray(image), pixels(plain))
        Image.open(io.BytesIO(png)).verify()  # the checksum of every chunk
    plain = publish(finished, tmp_path / "plain", mark=False)
    assert read_pngs(plain / "data") == source
    assert "no mark" in (plain / "README.md").read_text()


def test_its_checksums_hold_and_cover_every_file(published: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "checksums.sha256"]
    checked = subprocess.run(command, cwd=published, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    lines = (published / "checksums.sha256").read_text().splitlines()
    listed = [line.split("  ", 1)[1] for line in lines]
    assert listed == sorted(listed)
    assert {*listed, "checksums.sha256"} == read_all(published).keys()


def test_the_evidence_is_the_run_without_images(finished: Path, published: Path) -> None:
    run, evidence = gather(finished), gather(published / "evidence")
    assert evidence.config == run.config
    assert (evidence.entries, evidence.spent) == (run.entries, run.spent)
    assert evidence.layouts == run.layouts
    told = pq.read_table(evidence.run.histogram(1))["noisy_votes"].to_numpy()
    assert np.array_equal(told, evidence.read_votes(1).noisy_votes)  # type: ignore[union-attr]
    for iteration in (0, 1):
        original = pq.read_table(run.run.population(iteration), partitioning=None)
        kept = pq.read_table(evidence.run.population(iteration), partitioning=None)
        assert kept.column_names == ["id", "label", "parent", "degree"]
        assert kept.equals(original.select(kept.column_names))


def test_the_cards_state_what_the_ledger_says(finished: Path, published: Path) -> None:
    ledger = Ledger.open(finished / "ledger.sqlite")
    card = json.loads((published / "privacy_card.json").read_text())
    assert (card["epsilon"], card["delta"], card["unit"]) == (ledger.spent(), 1e-4, "record")
    assert card["epsilon"] != ledger.budget.epsilon
    (entry,) = ledger.entries()
    assert card["releases"][0]["sigma"] == entry.release.sigma
    deployment = card["registry"]["deployment"]
    parameters = deployment["privacy_loss"]["privacy_parameters"]
    assert parameters == {"epsilon": ledger.spent(), "delta": 1e-4}
    assert deployment["basic"].keys() == {"name", "data_product_type", "description"}
    assert card["nist_sp_800_226"]["security_and_access_control"] is None
    text = (published / "README.md").read_text()
    assert f"epsilon = {ledger.spent():.6g}, delta = 0.0001" in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert "license" not in head


def test_croissant_names_the_files_and_reads_them(published: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    card = json.loads((published / "croissant.json").read_text())
    files = [entry for entry in card["distribution"] if entry["@type"] == "cr:FileObject"]
    assert [entry["contentUrl"] for entry in files] == ["data/train-00000-of-00001.parquet"]
    for entry in files:
        content = (published / entry["contentUrl"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    described = mlcroissant.Dataset(str(published / "croissant.json"))  # raises where it is invalid
    rows = list(described.records("images"))
    for row, png in zip(rows, read_pngs(published / "data"), strict=True):
        assert np.array_equal(np.asarray(row["images/image"]), pixels(png))
    labels = [row["labels/name"] for row in described.records("labels")]
    assert [str(name) for name in labels] == [str(digit) for digit in range(10)]


def test_what_only_the_publisher_knows_is_in_the_cards(finished: Path, tmp_path: Path) -> None:
    about = tmp_path / "about.yaml"
    told = {
        "name": "Digits: made up",
        "license": "cc-by-4.0",
        "data_curators": ["A Lab"],
        "publication_date": "2026-12-01",
        "access_control": "two persons",
        "intended_use": "tests",
    }
    about.write_text(yaml.safe_dump(told))
    output = publish(finished, tmp_path / "set", about=about)
    card = json.loads((output / "privacy_card.json").read_text())
    basic = card["registry"]["deployment"]["basic"]
    assert {name: basic[name] for name in ("name", "data_curators", "intended_use")} == {
        name: told[name] for name in ("name", "data_curators", "intended_use")
    }
    assert card["registry"]["url_slug"] == "digits-made-up"
    assert card["nist_sp_800_226"]["security_and_access_control"] == "two persons"
    text = (output / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-4.0"
    croissant = json.loads((output / "croissant.json").read_text())
    assert (croissant["license"], croissant["datePublished"]) == ("cc-by-4.0", "2026-12-01")
    about.write_text("licence: cc-by-4.0\n")
    with pytest.raises(InputError, match=r"^--about .*licence"):
        publish(finished, tmp_path / "other", about=about)
    assert not (tmp_path / "other").exists()


def test_users_are_the_unit_where_the_ledger_says_so(finished: Path) -> None:
    facts = gather(finished)
    facts = replace(facts, budget=replace(facts.budget, unit="user"))
    made = PublishedSet(
        facts=facts, about=About(), data=(), num_images=1, expanded=False, marked=True
    )
    card = describe_privacy(made)
    assert card["registry"]["deployment"]["privacy_loss"]["privacy_unit"] == "user-level"
    assert "all records of one user" in card["neighbouring_relation"]


def test_an_expansion_is_published(finished: Path, expanded: Path, tmp_path: Path) -> None:
    output = publish(finished, tmp_path / "set", expanded)
    made, source = read_pngs(output / "data"), read_pngs(expanded)
    assert len(made) == 100
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(made, source, strict=True))
    assert "100 synthetic images" in (output / "README.md").read_text()
    with pytest.raises(InputError, match=r"^--output: .* is of something else"):
        publish(finished, output)


def test_a_set_of_a_former_version_is_published(
    finished: Path, expanded: Path, tmp_path: Path
) -> None:
    """Its images are a column of bytes."""
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(expanded / ".expansion.json", old)
    parts = []
    for part in list_parts(expanded):
        table = pq.read_table(expanded / part.file)
        images = pa.array([cell["bytes"] for cell in table["image"].to_pylist()], pa.binary())
        sink = io.BytesIO()
        pq.write_table(table.set_column(0, "image", images), sink)
        parts.append(write_part(old, part.start, part.stop, "parquet", sink.getvalue()))
    commit(old, parts, {})
    made = [
        publish(finished, tmp_path / name, source) for name, source in (("a", old), ("b", expanded))
    ]
    assert read_all(made[0]) == read_all(made[1])


def test_only_a_finished_parquet_expansion_of_the_run_is_published(
    finished: Path, expanded: Path, tmp_path: Path
) -> None:
    held = json.loads((expanded / ".expansion.json").read_bytes())
    faults = {
        "no folder that": None,
        "another run": {**held, "run": "0"},
        "isn't parquet": {**held, "format": "folder"},
        "isn't finished": held,
    }
    for fault, note in faults.items():
        folder = tmp_path / fault.replace(" ", "-")
        folder.mkdir()
        if note is not None:
            (folder / ".expansion.json").write_text(json.dumps(note))
        with pytest.raises(InputError, match=rf"^--expansion: .*{fault}"):
            publish(finished, tmp_path / "set", folder)
    assert not (tmp_path / "set").exists()


def test_what_may_not_be_published_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    part = run / "synthetic" / list_parts(run / "synthetic")[1].file
    whole = part.read_bytes()
    part.write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(InputError, match="is damaged"):
        publish(run, tmp_path / "damaged")
    part.write_bytes(whole)
    shutil.rmtree(run / "populations" / "iter=0000")
    with pytest.raises(InputError, match="not finished"):
        publish(run, tmp_path / "set")
    monkeypatch.setattr(Ledger, "spent", lambda *_, **__: float("inf"))
    with pytest.raises(InputError, match="no noise"):
        publish(finished, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_of_something_else_is_left_as_it_is(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match=r"^--output: .* is not empty"):
        publish(finished, folder)
    assert read_all(folder) == {"notes.txt": b"kept"}


KILLED = """
import os, pathlib, signal, sys
from pe_ray.publishing.bundle import publish

replace, left = pathlib.Path.replace, int(sys.argv[3])

def kill(*paths):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*paths)

pathlib.Path.replace = kill
publish(sys.argv[1], sys.argv[2])
"""


def test_a_killed_start_is_repeated_with_the_same_bytes(
    finished: Path, published: Path, tmp_path: Path
) -> None:
    output = tmp_path / "set"
    command = [sys.executable, "-c", KILLED, str(finished), str(output), "6"]  # of about 20 files
    assert subprocess.run(command).returncode == -signal.SIGKILL
    left = read_all(output)
    assert any(name_left_aside(Path(name).name) for name in left)
    assert "checksums.sha256" not in left
    publish(finished, output)
    assert read_all(output) == read_all(published)
    publish(finished, output)
    assert read_all(output) == read_all(published)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH's client")
def test_the_checksums_are_signed(finished: Path, published: Path, tmp_path: Path) -> None:
    key, allowed = tmp_path / "key", tmp_path / "allowed"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True)
    allowed.write_text("me " + key.with_suffix(".pub").read_text())
    output = publish(finished, tmp_path / "set", key=key)
    signature = output / "checksums.sha256.sig"
    check = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        allowed,
        "-I",
        "me",
        "-n",
        "pe_ray",
        "-s",
        signature,
    ]
    content = (output / "checksums.sha256").read_bytes()
    assert subprocess.run(check, input=content, capture_output=True).returncode == 0
    assert subprocess.run(check, input=content + b"\n", capture_output=True).returncode != 0
    assert read_all(output).keys() == {*read_all(published), signature.name}
    with pytest.raises(InputError, match=r"^--sign: "):
        publish(finished, tmp_path / "other", key=tmp_path / "no_key")
    assert not (tmp_path / "other").exists()


PUSHED = """
import sys
from pe_ray.cli import main

run, refused, output = sys.argv[1:]
assert main(["publish", run, "--push", "a//b", "--output", refused]) == 2
assert main(["publish", run, "--push", "me/set", "--output", output]) == 0
"""


def test_it_is_uploaded_as_it_is(finished: Path, published: Path, tmp_path: Path) -> None:
    """What the repository held besides is kept, but for an earlier set."""
    pytest.importorskip("huggingface_hub")
    refused, output = tmp_path / "refused", tmp_path / "set"
    with serve_hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "none"}
        command = [sys.executable, "-c", PUSHED, str(finished), str(refused), str(output)]
        subprocess.run(command, env=environment, check=True)
    assert not refused.exists()
    assert hub.files == read_all(published) | {"NOTES.md": b"kept"}
