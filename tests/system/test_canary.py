"""An unmistakable record: nothing of it is in any file, log or message of a run. Nobody else can
change the run's files or read the cache, though the run's umask would let everybody."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, PngImagePlugin

from pe_ray.release.ledger import Ledger

CANARY = "CANARY-9d2c77"


def canary_data(folder: Path, spoil: bool) -> Path:
    """Records, one of them unmistakable: pixels, PNG text and user are the canary."""
    rng = np.random.default_rng(3)
    images = []
    for number in range(60):
        pixels = rng.integers(0, 256, size=(12, 12), dtype=np.uint8)
        note = PngImagePlugin.PngInfo()
        note.add_text("comment", CANARY if number == 41 else "none")
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, format="PNG", pnginfo=note)
        content = sink.getvalue()
        images.append(content[:50] + CANARY.encode() if spoil and number == 41 else content)
    users = [CANARY if number == 41 else f"user {number % 7}" for number in range(60)]
    labels = [str(number % 2) for number in range(60)]
    file = folder / "records.parquet"
    pq.write_table(pa.table({"image": images, "label": labels, "who": users}), file)
    return file


@pytest.mark.parametrize("spoil", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_canary_record_leaves_no_trace(
    short: dict[str, Any], tmp_path: Path, spoil: bool
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    file = canary_data(data, spoil)
    short["private"] = {
        "data": str(file),
        "labels": ["0", "1"],
        "user_column": "who",
        "cache": str(tmp_path / "cache"),
    }
    short["privacy"]["unit"] = "user"
    short["teacher"] = {"features": 4, "epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(short))
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as home:  # sockets need a short path
        command = f"umask 0; exec {sys.executable} -m pe_ray run {tmp_path / 'config.yaml'}"
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            env={**os.environ, "RAY_TMPDIR": home},
        )
        logs = [file.read_bytes() for file in Path(home).rglob("logs/*") if file.is_file()]
    assert len(logs) > 5
    assert done.returncode == (2 if spoil else 0), done.stderr.decode()[-2000:]
    if spoil:
        assert b"shard 0, row 41: image can't be decoded" in done.stderr
    record = pq.read_table(file).column("image")[41].as_py()
    pixels = b"" if spoil else Image.open(io.BytesIO(record)).tobytes()
    run = Path(short["output"]["path"])
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    digest = hashlib.blake2b(CANARY.encode(), digest_size=16).hexdigest().encode()
    assert written
    for text in (*written, *logs, done.stdout, done.stderr):
        assert CANARY.encode() not in text
        assert digest not in text
        assert spoil or pixels not in text
    if spoil:
        assert Ledger.open(run / "ledger.sqlite").entries() == ()
    else:
        assert len(list((run / "populations" / "iter=0001").glob("part-*"))) > 0
        assert {path.name: oct(mode(path)) for path in run.rglob("*") if mode(path) & 0o022} == {}
        assert mode(run) == 0o755
        assert mode(tmp_path / "cache") == 0o700
        assert {mode(file) for file in (tmp_path / "cache").iterdir()} == {0o600}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
