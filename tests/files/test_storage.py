"""Runs, expansions and records in an object store behave as on a disk, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import shutil
import socket
import tarfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector
from whole_slices import list_slices

from pe_ray import Config, InputError, cli, evolution, save_images
from pe_ray.components.generators.cached_images import CachedImages
from pe_ray.errors import DamagedFileError
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.contents import digest_place
from pe_ray.files.digests import read_with_digest, write_with_digest
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_shards import find_shards, list_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.parts import (
    MANIFEST,
    commit,
    find_parts,
    list_parts,
    remove_damaged,
    require_whole,
    write_part,
)
from pe_ray.files.png import encode_png
from pe_ray.files.storage import (
    Location,
    ObjectPath,
    delete_tree,
    file_version,
    list_names,
    parse_location,
)
from pe_ray.private.duplicates import digest_file
from pe_ray.private.record_embeddings import embed_slice
from pe_ray.release import door, ledger_copy
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import begin
from pe_ray.values import Framing, ImageShape


def names_below(folder: Location) -> list[str]:
    """The paths below `folder` of all its files."""
    if isinstance(folder, Path):
        return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    found = folder.store.get_file_info(FileSelector(folder.key, recursive=True))
    return [info.path.removeprefix(f"{folder.key}/") for info in found if info.is_file]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """host:port of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path) -> ObjectPath:
    """A new, empty bucket."""
    name = f"bucket-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    made = parse_location(f"s3://{name}?endpoint_override={server}&scheme=http&region=us-east-1")
    assert isinstance(made, ObjectPath)
    import boto3

    boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1").create_bucket(
        Bucket=name
    )
    return made


def test_damage_in_a_store_is_noticed(bucket: ObjectPath) -> None:
    folder, file = bucket / "stage", bucket / "run" / "votes"
    made = write_part(folder, 0, 3, "npy", b"values")
    assert find_parts(folder, [(0, 3)], "npy") == [made]
    commit(folder, [made], {})
    assert set(list_names(folder)) == {MANIFEST, made.file}
    assert list_parts(folder) == [made]
    require_whole(folder)
    (folder / made.file).write_bytes(b"Values")
    with pytest.raises(DamagedFileError) as damaged:
        require_whole(folder)
    assert parse_location(damaged.value.file) == folder / made.file
    remove_damaged(folder)
    assert find_parts(folder, [(0, 3)], "npy") == [None]
    write_with_digest(file, b"votes")
    assert read_with_digest(file) == b"votes"
    file.write_bytes(b"Votes")
    with pytest.raises(DamagedFileError):
        read_with_digest(file)


STATES_A_TIME_OR_PLACE = (".lock", "ledger.sqlite", "config.yaml", "report.html", ".expansion.json")


def test_what_a_configuration_names_in_a_store_is_told_apart(bucket: ObjectPath) -> None:
    file, folder = bucket / "set" / "a.parquet", bucket / "set"
    file.write_bytes(b"one")
    before = digest_place(file), digest_place(folder)
    assert None not in before
    assert (digest_place(file), digest_place(folder)) == before
    file.write_bytes(b"other")
    assert digest_place(file) != before[0]
    assert digest_place(folder) != before[1]
    assert digest_place(bucket / "nothing") is None


def content(folder: Location) -> dict[str, str]:
    """Digest of every file below `folder`, but for what states a time or the run's place."""
    start, digests = len(str(folder).partition("?")[0]), {}
    for file in (folder / name for name in names_below(folder)):
        if isinstance(file, Path) and not file.is_file():
            continue
        if file.name in STATES_A_TIME_OR_PLACE or file.name.startswith(("events.", "embedding-")):
            continue
        held = file.read_bytes()
        if file.name == MANIFEST:
            untold = {"fingerprint": None, "seconds": None, "rows_made": None, "digest": None}
            held = json.dumps(json.loads(held) | untold).encode()
        digests[str(file).partition("?")[0][start:]] = hashlib.sha256(held).hexdigest()
    return digests


def in_store(tree: dict[str, Any], bucket: ObjectPath, tmp_path: Path) -> dict[str, Any]:
    output = {**tree["output"], "path": str(bucket / "run"), "ledger": str(tmp_path / "ledger")}
    return {**tree, "output": output}


def rebound(ledger: Path, tree: dict[str, Any]) -> None:
    """Make the releases of one run those of another, which differs in its place only."""
    with begin(ledger) as database:
        database.execute("UPDATE budget SET fingerprint = ?", (Config.from_dict(tree).fingerprint,))


@pytest.mark.slow
def test_a_run_in_a_store_equals_a_local_one(
    ray_session: None,
    tree: dict[str, Any],
    bucket: ObjectPath,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree["votes"] = {"lookahead": 1, "reuse_lookahead": True}
    tree["privacy"]["label_fractions"] = "dp"
    local = Path(tree["output"]["path"])
    assert evolve(Config.from_dict(tree)) == local
    tree = in_store(tree, bucket, tmp_path)
    ledger = tmp_path / "ledger" / "ledger.sqlite"
    ledger.parent.mkdir()
    shutil.copy(local / "ledger.sqlite", ledger)
    rebound(ledger, tree)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert cli.main(["run", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "(from the ledger)" in printed
    run = bucket / "run"
    assert str(run / "synthetic") in printed
    cli.main(["report", str(local)])
    assert content(run) == content(local)
    assert len(names_below(run / "tensorboard")) == 1
    assert "ledger:" not in (run / "config.yaml").read_text("utf-8")

    # A part and a marker lost: found and made again, by the driver and by its workers.
    for stage in (run / "populations" / "iter=0001", run / "synthetic"):
        (stage / list_parts(stage)[1].file).unlink()
    (
        run / "populations" / "iter=0002" / list_parts(run / "populations/iter=0002")[0].file
    ).write_bytes(b"torn")
    delete_tree(run / "populations" / "iter=0000")
    assert evolve(Config.from_dict(tree)) == run
    assert content(run) == content(local)

    spent = []
    capsys.readouterr()
    for place in (str(local), str(run)):
        assert cli.main(["ledger", place, "--json"]) == 0
        spent.append(json.loads(capsys.readouterr().out))
    assert spent[0] == spent[1]
    assert [release["state"] for release in spent[1]["releases"]] == ["committed"] * 3
    assert cli.main(["audit", str(run), "--json"]) == 0

    for form in ("parquet", "webdataset", "folder"):
        (bucket / form / f".probe.{uuid.uuid4().hex}").write_bytes(b"")  # of one that was killed
        there = expand(str(run), 50, str(bucket / form), form=form)
        (there / list_parts(there)[2].file).unlink()
        expand(run, 50, there, form=form)
        ours = content(expand(local, 50, tmp_path / form, form=form))
        assert content(there) == ours
        assert len(ours) >= 4


@pytest.mark.parametrize("private", [False, True])
def test_images_in_a_store_are_read_as_on_a_disk(
    bucket: ObjectPath, tmp_path: Path, private: bool
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"image": [encode_png(i) for i in images], "label": list("abbaab")}), sink
    )
    for folder in (tmp_path, bucket):
        for number, name in enumerate(["b/2.png", "a/sub/1.png", "a/.hidden/0.png", "a/0.png"]):
            place = folder / "classes" / name.rpartition("/")[0]
            place.mkdir(parents=True, exist_ok=True)
            (folder / "classes" / name).write_bytes(encode_png(images[number]))
        (folder / "files").mkdir()
        (folder / "files" / "one.parquet").write_bytes(sink.getvalue())
    shape = ImageShape(height=5, width=4, channels=3)
    for kind, order, expected in (("classes", [3, 1, 0], "aab"), ("files", range(6), "abbaab")):
        for folder in (tmp_path, bucket):
            table = ImageTable(
                block="x", private=private, data=str(folder / kind), labels=("a", "b")
            )
            found, labels = read_images(table, Framing(shape=shape))
            assert np.array_equal(found, images[[*order]])
            assert "".join("ab"[label] for label in labels) == expected
            if not private:
                cached = CachedImages(table, Framing(shape=shape), str(tmp_path / "cache"))
                assert [cached.classes[c] for c in cached.class_of] == list(expected)
    with pytest.raises(InputError, match=r"^x\.data: "):
        list_shards(replace(table, data=str(bucket / "absent")))


def write_tar(file: Path, labels: str, first: int) -> None:
    with tarfile.open(file, "w") as made:
        for row, label in enumerate(labels, start=first):
            image = encode_png(np.full((5, 4, 1), row, np.uint8))
            for ending, held in (("png", image), ("cls", str("ab".index(label)).encode())):
                entry = tarfile.TarInfo(f"{row:03d}.{ending}")
                entry.size = len(held)
                made.addfile(entry, io.BytesIO(held))


def write_layout(folder: Path, form: str) -> None:
    """Write the rows 0..5, whose grey is their number, and whose labels are aaabbb."""
    images = [encode_png(np.full((5, 4, 1), row, np.uint8)) for row in range(6)]
    labels = list("aaabbb")
    folder.mkdir()
    if form == "tars":
        write_tar(folder / "0.tar", "aaab", 0)
        write_tar(folder / "1.tar", "bb", 4)
        (folder / "classes.json").write_text('["a", "b"]')
    elif form in ("list", "classes", "hive", "splits"):
        place = {"list": "é {}", "classes": "{}", "hive": "x=1/label={}", "splits": "train/{}"}
        for row, label in enumerate(labels):
            below = folder / place[form].format(label)
            below.mkdir(parents=True, exist_ok=True)
            (below / f"{row}.png").write_bytes(images[row])
        if form == "list":
            rows = [f"é {label}/{row}.png,{label}" for row, label in enumerate(labels)]
            (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
        (folder / "_old").mkdir()
        (folder / "_old" / "x.png").write_bytes(images[0])
    else:
        pets = pa.table({"image": pa.array(images, pa.binary()), "label": labels})
        if form == "saved":
            saved = datasets.DatasetDict({"train": datasets.Dataset(pets)})
            saved.save_to_disk(folder, num_shards={"train": 2})
        else:
            deltalake = pytest.importorskip("deltalake")
            deltalake.write_deltalake(str(folder), pets, partition_by=["label"])
            deltalake.write_deltalake(str(folder), pets, mode="overwrite")


@pytest.mark.parametrize("form", ["tars", "list", "classes", "hive", "splits", "saved", "delta"])
def test_every_layout_is_read_in_a_store(bucket: ObjectPath, tmp_path: Path, form: str) -> None:
    """The same rows in the same order; private ones, whose duplicates are looked for, too."""
    local = tmp_path / form
    write_layout(local, form)
    for name in names_below(local):
        (bucket / form / name).write_bytes((local / name).read_bytes())
    framing = Framing(shape=ImageShape(height=5, width=4, channels=1))
    results = []
    for folder in (local, bucket / form):
        table = ImageTable(block="x", private=True, data=str(folder), labels=("b", "a"))
        found = find_shards(table)
        images, labels = read_images(table, framing)
        rows = images[:, 0, 0, 0].tolist()
        assert sorted(rows) == list(range(6))
        assert ["ba"[label] for label in labels] == ["aaabbb"[row] for row in rows]
        digests = [digest_file(parse_location(path)) for path, _ in found.files]
        assert len(set(digests)) == len(digests) == found.num_files
        results.append((images.tolist(), digests, found.passed_over))
    assert results[0] == results[1]


def test_images_are_saved_in_a_store(bucket: ObjectPath) -> None:
    images = np.arange(60, dtype=np.uint8).reshape(3, 5, 4)
    place = save_images(images, str(bucket / "x" / "pets.parquet"), labels=["a", "b", "a"])
    framing = Framing(shape=ImageShape(height=5, width=4, channels=1))
    table = ImageTable(block="x", private=True, data=str(place), labels=("a", "b"))
    found, labels = read_images(table, framing)
    assert np.array_equal(found[..., 0], images)
    assert labels.tolist() == [0, 1, 0]


def test_a_new_run_in_a_store_copies_its_ledger(
    ray_session: None, tree: dict[str, Any], bucket: ObjectPath, tmp_path: Path
) -> None:
    private = tmp_path / "records"
    private.mkdir()
    rng = np.random.default_rng(1)
    images = [encode_png(rng.integers(0, 256, (12, 12, 1), dtype=np.uint8)) for _ in range(40)]
    table = pa.table({"image": images, "label": [str(i % 10) for i in range(40)]})
    pq.write_table(table, private / "a.parquet")
    (bucket / "data" / "a.parquet").write_bytes((private / "a.parquet").read_bytes())
    (bucket / "spark" / "set.parquet" / "part-0.parquet").write_bytes(b"a data set's only file")
    assert names_below(bucket / "spark") == ["set.parquet/part-0.parquet"]
    tree = in_store(tree, bucket, tmp_path)
    features = []
    for data in (private, bucket / "data"):
        tree["private"]["data"] = str(data)
        config = Config.from_dict(tree)
        (part,) = list_slices(config.private)
        for _ in range(2):  # read, then from the cache
            made = embed_slice(part, config.private, config.framing, config.embedder)
            features.append(made.features)
    assert all(np.array_equal(features[0], again) for again in features)
    before = file_version(bucket / "data" / "a.parquet")
    (bucket / "data" / "a.parquet").write_bytes((private / "a.parquet").read_bytes()[::-1])
    assert (
        file_version(bucket / "data" / "a.parquet") != before
    )  # so its cached embeddings are stale
    (bucket / "data" / "a.parquet").write_bytes((private / "a.parquet").read_bytes())

    run = evolve(config)
    kept = tmp_path / "ledger" / "ledger.sqlite"
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes((run / "ledger.sqlite").read_bytes())
    assert Ledger.open(copy).entries() == Ledger.open(kept).entries()
    assert len(Ledger.open(copy).entries()) == 2
    assert not list_names(run / "embeddings")

    # The copy behind the ledger, as a crash between the two leaves it: copied at the next start.
    moved = kept.rename(tmp_path / "moved.sqlite")
    with pytest.raises(InputError, match=r"output\.ledger: .* has no ledger\.sqlite"):
        evolve(config)
    budget = config.privacy.budget
    behind = Ledger.create(tmp_path / "behind.sqlite", budget, config.fingerprint)
    (run / "ledger.sqlite").write_bytes(behind.copied())
    moved.rename(kept)
    evolve(config)
    assert (run / "ledger.sqlite").read_bytes() == Ledger.open(kept).copied()

    # The ledger behind the copy, as an old backup is: refused, since those releases are spent.
    shutil.copy(tmp_path / "behind.sqlite", kept)
    with pytest.raises(InputError, match="lacks a release"):
        evolve(config)


def test_nothing_is_written_from_a_release_that_the_copy_lacks(
    ray_session: None,
    tree: dict[str, Any],
    bucket: ObjectPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config.from_dict(in_store(tree, bucket, tmp_path))
    copy, calls = ledger_copy.update_copy, []

    def failing(ledger: Ledger, place: ObjectPath | None) -> None:
        calls.append(place)
        if len(calls) == 2:
            raise OSError("the store is gone")
        copy(ledger, place)

    for module in (evolution, door):
        monkeypatch.setattr(module, "update_copy", failing)
    with pytest.raises(OSError, match="the store is gone"):
        evolve(config)
    (entry,) = Ledger.open(tmp_path / "ledger" / "ledger.sqlite").entries()
    assert entry.state == "committed"
    assert list_names(bucket / "run" / "populations") == {"iter=0000"}
    assert not list_names(bucket / "run" / "histograms")
    run = evolve(config)
    assert len(list_parts(run / "synthetic")) == 3
    assert Ledger.open(tmp_path / "ledger" / "ledger.sqlite").entries()[0] == entry


class _Refusing(BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _refuse

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "fault", ["denied", pytest.param("dead", marks=pytest.mark.slow), "no bucket"]
)
def test_a_store_that_cannot_be_used_is_refused_before_anything_is_spent(
    tree: dict[str, Any], bucket: ObjectPath, tmp_path: Path, fault: str
) -> None:
    if fault == "denied":
        refusing = HTTPServer(("127.0.0.1", 0), _Refusing)
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        place = f"s3://bucket/run?endpoint_override=127.0.0.1:{refusing.server_port}&scheme=http"
    elif fault == "dead":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        place = f"s3://bucket/run?endpoint_override=127.0.0.1:{free}&scheme=http"
    else:
        place = str(ObjectPath("s3", "no-such-bucket/run", bucket.query))
    tree["output"] |= {"path": place, "ledger": str(tmp_path / "ledger")}
    with pytest.raises(InputError, match=r"^output\.path: s3://.*can't be used") as refused:
        evolve(Config.from_dict(tree))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ledger" / "ledger.sqlite").exists()
    if fault != "no bucket":  # which a listing can't tell from an empty folder
        with pytest.raises(InputError, match=r"^run: s3://.*can't be used"):
            expand(place, 1, tmp_path / "out")
    if fault == "denied":
        refusing.shutdown()


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("output.path", "s3://AKIAKEY:hunter2@bucket/run"),
        ("output.path", "s3://bucket/run?access_key=AKIAKEY&secret_key=hunter2"),
        ("private.data", "s3://AKIAKEY:hunter2@bucket/data"),
        ("metrics.audit_data", "s3://bucket/data?session_token=hunter2"),
        ("output.path", "s3://AKIAKEY:hunt/er2@bucket/run"),
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(
    tree: dict[str, Any], tmp_path: Path, field: str, place: str
) -> None:
    tree["output"]["ledger"] = str(tmp_path / "ledger")
    block, key = field.split(".")
    tree[block][key] = place
    with pytest.raises(InputError, match=f"{field}: (a URI|holds cred)") as refused:
        Config.from_dict(tree)
    assert "AKIAKEY" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "ftp://host/run"}, "output.path: ftp:// is no store"),
        ({"path": "s3://bucket/../run"}, "output.path: a URI is written"),
        ({"ledger": "s3://bucket/ledger"}, "output.ledger: must be a local folder"),
        ({"ledger": "ledger"}, "output.ledger: only for an output.path in a store"),
    ],
)
def test_places_that_cannot_be(tree: dict[str, Any], change: dict[str, str], message: str) -> None:
    tree["output"] |= change
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree)


def test_a_place_in_a_store_is_a_value() -> None:
    text = "s3://bucket/run?endpoint_override=localhost:9000&scheme=http"
    run = parse_location(text)
    assert isinstance(run, ObjectPath)
    assert (str(run), run.name) == (text, "run")
    below = run / "populations" / "iter=0001"
    assert str(below) == text.replace("/run", "/run/populations/iter=0001")
    assert parse_location(str(below)) == pickle.loads(pickle.dumps(below)) == below  # noqa: S301
    assert parse_location("file:///data/run") == Path("/data/run")
