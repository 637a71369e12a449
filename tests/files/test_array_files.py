"""Arrays in files: read back as written, or known to be damaged, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pe_ray import InputError
from pe_ray.errors import DamagedFileError
from pe_ray.files.array_files import (
    encode_arrays,
    holds_arrays,
    keep_arrays,
    read_arrays,
    write_arrays,
)


def test_what_is_lost_is_written_again_if_it_is_the_same(tmp_path: Path) -> None:
    file, arrays = tmp_path / "some.npz", {"a": np.arange(6.0).reshape(2, 3)}
    assert not holds_arrays(file)
    write_arrays(file, arrays)
    assert np.array_equal(read_arrays(file)["a"], arrays["a"])
    file.write_bytes(file.read_bytes()[:-9])
    assert not holds_arrays(file)
    with pytest.raises(DamagedFileError):
        read_arrays(file)
    with pytest.raises(InputError, match="doesn't make the same again"):
        keep_arrays(file, encode_arrays({"a": arrays["a"] + 1}))
    keep_arrays(file, encode_arrays(arrays))
    assert np.array_equal(read_arrays(file)["a"], arrays["a"])
