"""A file with a digest is what was written, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pe_ray.errors import DamagedFileError
from pe_ray.files.digests import locate_digest, read_with_digest, write_with_digest

CONTENT = bytes(range(200))


@pytest.mark.parametrize("damaged", ["file", "digest"])
def test_no_flip_is_silent(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "votes.parquet"
    write_with_digest(file, CONTENT)
    assert read_with_digest(file) == CONTENT
    place = file if damaged == "file" else locate_digest(file)
    whole = place.read_bytes()
    for position in range(len(whole)):
        held = bytearray(whole)
        held[position] ^= 1
        place.write_bytes(held)
        with pytest.raises(DamagedFileError) as error:
            read_with_digest(file)
        assert error.value.file == str(file)
    place.write_bytes(whole)
    assert read_with_digest(file) == CONTENT


def test_a_file_without_a_digest_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(CONTENT)
    assert read_with_digest(tmp_path / "old") == CONTENT
