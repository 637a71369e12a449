"""Blocks of an embedding hold each sample asked for once, whatever parts it lies in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pe_ray.synthetic import embedding_files
from pe_ray.synthetic.embedding_files import read_blocks


@pytest.mark.parametrize("block_bytes", [1, 100, 10**6])
def test_blocks_cover_a_labels_ids_once(
    tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "_BLOCK_BYTES", block_bytes)
    samples = np.arange(42 * 3, dtype=np.float32).reshape(42, 3)
    parts = []
    for start in range(0, len(samples), 5):
        file = tmp_path / f"{start}.npy"
        np.save(file, samples[start : start + 5])
        parts.append((file, start, min(start + 5, len(samples))))
    blocks = list(read_blocks(parts, 7, 33))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), samples[7:33])
    assert all(np.array_equal(block[0], samples[first]) for first, block in blocks)
