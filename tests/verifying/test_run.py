"""A run that nothing was done to holds; what is changed in it is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from verified import differing

from pe_ray import InputError, cli
from pe_ray.config.yaml_tree import digest_tree, dump_tree
from pe_ray.files.digests import write_with_digest
from pe_ray.files.parts import commit, list_parts, read_manifest, write_part
from pe_ray.release import ledger_sql
from pe_ray.release.ledger import Ledger
from pe_ray.verifying import verify

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_run_holds_and_says_what_is_not_checked(finished: Path) -> None:
    checks = verify(finished)
    assert {check.result for check in checks} == {"holds", "not checked"}
    assert sum(check.result == "holds" for check in checks) == 9
    assert all(check.why for check in checks if check.result == "not checked")
    (epsilon,) = [check.why for check in checks if check.what.startswith("epsilon")]
    spent = Ledger.open(finished / "ledger.sqlite").spent()
    assert f"{spent:.6g} at delta 0.0001 by dp_accounting" in epsilon


SCRIPT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "torch", "faiss", "sklearn"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from pe_ray.cli import main
sys.exit(main(["verify", sys.argv[1], "--json"]))
"""


def test_it_needs_neither_ray_nor_torch_nor_private_data(finished: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(finished)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["well"]
    assert {check["result"] for check in printed["checks"]} == {"holds", "not checked"}


def shift(column: str) -> Change:
    """Exchange the first two different values of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = np.asarray(table[column].combine_chunks().fill_null(0))
        other = int(np.flatnonzero(values != values[0])[0])
        values = values.copy()
        values[[0, other]] = values[[other, 0]]
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array(values, table.schema.field(column).type))

    return change


def add_to_a_vote(table: pa.Table) -> pa.Table:
    votes = table["votes"].to_numpy().copy()
    votes[0] += 0.3
    return table.set_column(table.schema.get_field_index("votes"), "votes", pa.array(votes))


def add_column(table: pa.Table) -> pa.Table:
    return table.append_column("note", pa.array(["x"] * len(table)))


def add_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), "note": "x"})


def encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def rewrite_file(file: str, change: Change) -> Callable[[Path], str]:
    """Change a table, its digest with it."""

    def act(run: Path) -> str:
        write_with_digest(run / file, encode(change(pq.read_table(run / file, partitioning=None))))
        return file

    return act


def rewrite_part(folder: str, change: Change, which: int = 0) -> Callable[[Path], str]:
    """Change a part, its digest and the manifest with it."""

    def act(run: Path) -> str:
        directory, parts = run / folder, list_parts(run / folder)
        stated = read_manifest(directory)
        assert stated is not None
        part = parts[which]
        content = encode(change(pq.read_table(directory / part.file, partitioning=None)))
        parts[which] = write_part(directory, part.start, part.stop, "parquet", content)
        own = ("num_rows", "parts", "digest")
        commit(directory, parts, {key: stated[key] for key in stated if key not in own})
        return f"{folder}/{part.file}"

    return act


def state_more(folder: str, **more: Any) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        stated = read_manifest(run / folder)
        assert stated is not None
        own = ("num_rows", "parts", "digest")
        kept = {key: stated[key] for key in stated if key not in own}
        commit(run / folder, list_parts(run / folder), kept | more)
        return f"{folder}/.manifest.json"

    return act


def exchange_images(table: pa.Table) -> pa.Table:
    """Exchange two images that differ."""
    order, images = np.arange(len(table)), table["image"].to_pylist()
    other = next(row for row, image in enumerate(images) if image != images[0])
    order[[0, other]] = other, 0
    place = table.schema.get_field_index("image")
    return table.set_column(place, "image", table["image"].take(order))


def other_image_of_a_kept_sample(table: pa.Table) -> pa.Table:
    kept = table["degree"].is_null().to_pylist().index(True)
    images = table["image"].to_pylist()
    images[kept] = bytes(len(images[kept]))
    place = table.schema.get_field_index("image")
    return table.set_column(place, "image", pa.array(images, table.schema.field("image").type))


def flip(file: str) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        held = bytearray((run / file).read_bytes())
        held[len(held) // 2] ^= 1
        (run / file).write_bytes(held)
        return file

    return act


def remove(file: str) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        (run / file).unlink()
        return file

    return act


def add(file: str) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("x")
        return file

    return act


def link(file: str) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        shutil.move(run / file, run.parent / "elsewhere")
        (run / file).symlink_to(run.parent / "elsewhere")
        return file

    return act


def execute(statement: str, *, chained: bool = False) -> Callable[[Path], str]:
    """Change the ledger; chained: and its chain with it."""

    def act(run: Path) -> str:
        file = run / "ledger.sqlite"
        if chained:
            with ledger_sql.begin(file) as database:
                database.execute(statement)
        else:
            with sqlite3.connect(file) as database:
                database.execute(statement)
            database.close()
        return "ledger.sqlite"

    return act


def configure(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], str]:
    def act(run: Path) -> str:
        file = run / "config.yaml"
        header, _, text = file.read_text().partition("\n")
        tree = yaml.safe_load(text)
        change(tree)
        file.write_text(f"{header}\n{dump_tree(tree)}")
        return "config.yaml"

    return act


def comment(run: Path) -> str:
    file = run / "config.yaml"
    file.write_text(file.read_text() + "# x\n")
    return "config.yaml"


S0, S1, S2 = (f"populations/iter=000{number}" for number in range(3))
HISTOGRAM = "histograms/iter=0001.parquet"

CHANGES: dict[str, Callable[[Path], str]] = {
    "a row of the ledger": execute("UPDATE releases SET sigma = 2 * sigma WHERE iteration = 1"),
    "an answer of the ledger": execute("UPDATE releases SET noisy = zeroblob(9), sha256 = 'x'"),
    "a table in the ledger": execute("CREATE TABLE notes (text TEXT)", chained=True),
    "a column in the ledger": execute("ALTER TABLE budget ADD COLUMN note TEXT", chained=True),
    "a release of another iteration": execute(
        "UPDATE releases SET iteration = 2 WHERE key = 'votes/0001'", chained=True
    ),
    "a release of another sensitivity": execute(
        "UPDATE releases SET votes_per_unit = 4, sensitivity = 2, mu_squared = 4 * mu_squared",
        chained=True,
    ),
    "a smaller budget": execute("UPDATE budget SET epsilon = 0.5", chained=True),
    "the configuration": configure(lambda tree: tree["schedule"].update(seed=1)),
    "a comment in the configuration": comment,
    "the configuration removed": remove("config.yaml"),
    "a vote": rewrite_file(HISTOGRAM, shift("noisy_votes")),
    "a label of votes": rewrite_file(HISTOGRAM, shift("label")),
    "a column of votes": rewrite_file(HISTOGRAM, add_column),
    "metadata of votes": rewrite_file(HISTOGRAM, add_metadata),
    "a histogram removed": remove(HISTOGRAM),
    "a bit of a histogram": flip(HISTOGRAM),
    "a smoothed vote": rewrite_file("smoothed/iter=0001.parquet", add_to_a_vote),
    "a parent": rewrite_part(S2, shift("parent")),
    "a degree": rewrite_part(S2, shift("degree")),
    "a label": rewrite_part(S1, shift("label"), which=1),
    "an id": rewrite_part(S0, shift("id")),
    "a column": rewrite_part(S1, add_column),
    "a generator's column removed": rewrite_part(S0, lambda table: table.drop_columns("genome")),
    "metadata": rewrite_part(S1, add_metadata),
    "an image of a kept sample": rewrite_part(S2, other_image_of_a_kept_sample),
    "a part removed": remove(f"{S1}/part-0000000017-0000000034.parquet"),
    "a bit of a part": flip(f"{S0}/part-0000000017-0000000034.parquet"),
    "a manifest removed": remove(f"{S1}/.manifest.json"),
    "a bit of a manifest": flip(f"{S2}/.manifest.json"),
    "a note in a manifest": state_more(S2, note="x"),
    "label counts of a manifest": state_more(S1, label_counts=[40]),
    "a part too many": add(f"{S2}/part-0000000040-0000000041.parquet"),
    "a final image": rewrite_part("synthetic", exchange_images),
    "a final label": rewrite_part("synthetic", shift("label")),
    "a final column": rewrite_part("synthetic", add_column),
    "a final part removed": remove("synthetic/part-0000000034-0000000040.parquet"),
    "a file": add("notes.txt"),
    "a hidden file": add("populations/.notes"),
    "a file of an iteration too many": add("samples/iter=0003.png"),
    "a digest of nothing": add("scores/.iter=0001.json.sha256"),
    "a link": link(HISTOGRAM),
}


FOLLOWING = {
    "a smaller budget": {"config.yaml"},
    "a histogram removed": {"histograms/.iter=0001.parquet.sha256"},
    "an image of a kept sample": {"synthetic/part-0000000000-0000000017.parquet"},
}
"""Change -> what doesn't fit what was changed."""


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_named(run: Path, change: str) -> None:
    file = CHANGES[change](run)
    assert differing(run) == {file} | FOLLOWING.get(change, set())


def test_all_that_was_changed_is_named(run: Path) -> None:
    names = ("a vote", "a parent", "a label", "a final label", "a file")
    files = {CHANGES[name](run) for name in names}
    assert differing(run) == files


def test_without_its_smoothed_votes_parents_are_not_checked(run: Path) -> None:
    shutil.rmtree(run / "smoothed")
    rewrite_part(S1, shift("parent"))(run)
    checks = verify(run)
    assert "differs" not in {check.result for check in checks}
    assert S1 in {check.file for check in checks if check.result == "not checked"}


def test_nothing_that_a_configuration_names_is_imported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a module that is there; what it decides is not checked."""
    (run.parent / "foreign_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(run.parent))

    def name_foreign(tree: dict[str, Any]) -> None:
        tree["generator"] = {"kind": "foreign_module:Generator", "option": 1}
        tree["embedder"] = {"kind": "foreign_module:Embedder"}
        tree["selection"]["denoise"] = {"kind": "foreign_module:Denoiser"}

    configure(name_foreign)(run)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    Ledger.open(run / "ledger.sqlite").bind_config(digest_tree(tree))
    execute("UPDATE releases SET kind = 'foreign_module:Kind'", chained=True)(run)
    assert differing(run) == {"ledger.sqlite"}
    execute("UPDATE releases SET kind = 'votes'", chained=True)(run)
    execute("UPDATE releases SET kind = 'label_counts' WHERE iteration = 0", chained=True)(run)
    checks = verify(run)
    assert "foreign_module" not in sys.modules
    assert "differs" not in {check.result for check in checks}
    passed = {check.file or check.what for check in checks if check.result == "not checked"}
    assert passed >= {S1, S2, "columns of the generator"}
    assert differing(run) == set()
    file = rewrite_part(S2, shift("degree"))(run)
    assert differing(run) == {file}


def test_the_command_names_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(run)]) == 0
    assert "not checked" in capsys.readouterr().out
    file = CHANGES["a vote"](run)
    assert cli.main(["verify", str(run)]) == 2
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if line.startswith(f"differs      {file}: ")]
    assert printed.err.startswith("pe-ray: verify: 1 ")


@pytest.mark.parametrize("signers", [None, "signers"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, signers: str | None) -> None:
    with pytest.raises(InputError, match=r"^verify .*: has neither"):
        verify(tmp_path, signers)


def test_a_run_has_no_signature(finished: Path) -> None:
    with pytest.raises(InputError, match=r"^--allowed-signers: "):
        verify(finished, finished / "config.yaml")
