"""A published folder holds; what is changed in it is named, also where its checksums follow."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from verified import differing

from pe_ray import InputError, cli
from pe_ray.expansion import expand
from pe_ray.publishing.bundle import publish
from pe_ray.verifying import verify

SUMS, SIGNATURE = "checksums.sha256", "checksums.sha256.sig"
DATA = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a key, one of somebody else, and the file of allowed signers."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "signers").write_text(f"lab@example.org {(folder / 'own.pub').read_text()}")
    return folder


@pytest.fixture(scope="module")
def signed(finished: Path, keys: Path) -> Path:
    """The finished run, published; not to be changed."""
    return publish(finished, keys / "published", key=keys / "own")


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(signed, tmp_path / "copy"))


def sum_again(folder: Path) -> None:
    """Write the checksums of what is there, as `publish` does."""
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    own = [name for name in files if name not in (SUMS, SIGNATURE)]
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in own]
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, own, strict=True)]
    (folder / SUMS).write_text("".join(lines))


def test_a_published_folder_holds(signed: Path, keys: Path) -> None:
    checks = verify(signed, keys / "signers")
    assert {check.result for check in checks} == {"holds", "not checked"}
    assert sum(check.result == "holds" for check in checks) == 12
    (signature,) = [check for check in checks if "signature" in check.what]
    assert signature.result == "holds"
    assert "lab@example.org" in signature.why
    assert not [check for check in checks if check.file.startswith("evidence")]  # all is checked


@pytest.mark.parametrize("number", [35, 95])
def test_a_published_expansion_holds(finished: Path, tmp_path: Path, number: int) -> None:
    """Of fewer images than the last population has, and of more."""
    more = expand(finished, number, tmp_path / "more")
    checks = verify(publish(finished, tmp_path / "published", more, mark=False))
    assert {check.result for check in checks} == {"holds", "not checked"}


@pytest.mark.parametrize("signers", [None, "signers"])
def test_who_signed_is_told_if_it_is_known(
    folder: Path, keys: Path, signers: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["--allowed-signers", str(keys / signers)] if signers else []
    assert cli.main(["verify", str(folder), *allowed, "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    (found,) = [check["result"] for check in checks if "signature" in check["what"]]
    assert found == ("holds" if signers else "not checked")


def test_another_key_or_none_is_no_signature(folder: Path, keys: Path) -> None:
    (folder / SIGNATURE).unlink()
    assert differing(folder) == set()
    assert differing(folder, keys / "signers") == {SIGNATURE}
    sign = ["ssh-keygen", "-Y", "sign", "-n", "pe_ray", "-f", str(keys / "other")]
    subprocess.run([*sign, str(folder / SUMS)], check=True, capture_output=True)
    assert differing(folder) == set()
    assert differing(folder, keys / "signers") == {SIGNATURE}


def test_signers_that_are_not_there_are_refused(folder: Path, keys: Path) -> None:
    with pytest.raises(InputError, match=r"^--allowed-signers: "):
        verify(folder, keys / "no_such_file")


def replace_text(file: str, old: str, new: str) -> Callable[[Path], str]:
    def act(folder: Path) -> str:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        return file

    return act


def state(file: str, *keys: str, value: object) -> Callable[[Path], str]:
    """Set a key of a card."""

    def act(folder: Path) -> str:
        tree = block = json.loads((folder / file).read_bytes())
        for key in keys[:-1]:
            block = block[int(key) if key.isdigit() else key]
        assert block[keys[-1]] != value
        block[keys[-1]] = value
        (folder / file).write_text(json.dumps(tree))
        return file

    return act


def rewrite_data(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], str]:
    """Change the images' table, and its digest in croissant.json."""

    def act(folder: Path) -> str:
        pq.write_table(change(pq.read_table(folder / DATA, partitioning=None)), folder / DATA)
        digest = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
        state("croissant.json", "distribution", "0", "sha256", value=digest)(folder)
        return DATA

    return act


def turn_labels(table: pa.Table) -> pa.Table:
    return table.set_column(1, table.schema.field("label"), table["label"].combine_chunks()[::-1])


def add_text(table: pa.Table) -> pa.Table:
    """Hide something in the first image."""
    from PIL.PngImagePlugin import PngInfo

    cells, sink, hidden = table["image"].to_pylist(), io.BytesIO(), PngInfo()
    hidden.add_text("note", "x")
    Image.open(io.BytesIO(cells[0]["bytes"])).save(sink, format="PNG", pnginfo=hidden)
    cells[0]["bytes"] = sink.getvalue()
    return table.set_column(0, table.schema.field("image"), pa.array(cells, table["image"].type))


def remove_a_mark(table: pa.Table) -> pa.Table:
    cells, sink = table["image"].to_pylist(), io.BytesIO()
    Image.open(io.BytesIO(cells[-1]["bytes"])).save(sink, format="PNG")
    cells[-1]["bytes"] = sink.getvalue()
    return table.set_column(0, table.schema.field("image"), pa.array(cells, table["image"].type))


def add(file: str) -> Callable[[Path], str]:
    def act(folder: Path) -> str:
        (folder / file).write_text("x")
        return file

    return act


CARD = "privacy_card.json"
CHANGES: dict[str, Callable[[Path], str]] = {
    "epsilon of the card": state(CARD, "epsilon", value=0.1),
    "delta of the card": state(CARD, "delta", value=1e-9),
    "unit of the card": state(CARD, "unit", value="user"),
    "noise of a release": state(CARD, "releases", "1", "sigma", value=100.0),
    "epsilon in the card's text": replace_text(CARD, "epsilon 1.99", "epsilon 0.19"),
    "epsilon of the README": replace_text("README.md", "epsilon = 1.99", "epsilon = 0.19"),
    "number of images": replace_text("README.md", "40 synthetic", "41 synthetic"),
    "epsilon of croissant.json": replace_text("croissant.json", "epsilon = 1.99", "epsilon = 1.09"),
    "a digest of croissant.json": state(
        "croissant.json", "distribution", "0", "sha256", value="0" * 64
    ),
    "labels of the images": rewrite_data(turn_labels),
    "a column beside the images": rewrite_data(
        lambda table: table.append_column("note", pa.array(["x"] * len(table)))
    ),
    "text in an image": rewrite_data(add_text),
    "a mark removed": rewrite_data(remove_a_mark),
    "a file": add("notes.txt"),
    "an image in the evidence": add("evidence/histograms/iter=0001.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_checksums_follow_is_named(folder: Path, keys: Path, change: str) -> None:
    file = CHANGES[change](folder)
    sum_again(folder)
    assert differing(folder) == {file, SIGNATURE}
    assert differing(folder, keys / "signers") == {file, SIGNATURE}


def test_what_the_checksums_do_not_follow_is_named(folder: Path) -> None:
    (folder / "evidence" / "config.yaml").unlink()
    with (folder / CARD).open("a") as card:
        card.write("\n")
    add("data/notes.txt")(folder)
    assert differing(folder) >= {"evidence/config.yaml", CARD, "data/notes.txt"}


def test_without_its_checksums_a_folder_does_not_hold(folder: Path) -> None:
    (folder / SUMS).unlink()
    assert SUMS in differing(folder)
