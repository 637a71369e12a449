"""Which sample each row of an expansion varies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_ray.synthetic.shuffling import RowOrder
from pe_ray.values import LabelLayout

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def order_of(
    counts: list[int],
    rows: tuple[int, ...] = (),
    *,
    seed: int = 0,
    block_rows: int = 4096,
    num_groups: int = 1,
) -> RowOrder:
    return RowOrder(
        layout=LabelLayout(counts=tuple(counts)),
        seed=seed,
        iteration=1,
        rows=rows or tuple(counts),
        num_passes=-(-sum(rows) // sum(counts)) if rows else 1,
        block_rows=block_rows,
        num_groups=num_groups,
    )


def labels_of(order: RowOrder, samples: np.ndarray) -> np.ndarray:
    return order.layout.labels(0, order.layout.num_samples)[samples]


@given(COUNTS, st.integers(1, 200))
def test_any_number_of_rows_has_the_labels_shares(counts: list[int], num_rows: int) -> None:
    order = order_of(counts)
    samples, copies = order.find_samples(0, num_rows)
    found = np.bincount(labels_of(order, samples), minlength=len(counts))
    shares = np.array(counts) / sum(counts)
    assert np.all(np.abs(found - num_rows * shares) <= 1 + len(counts) * shares)
    times = np.bincount(samples, minlength=sum(counts))
    assert times.max() - times.min() <= 1
    assert len(set(zip(samples.tolist(), copies.tolist(), strict=True))) == num_rows
    assert copies.max() == (num_rows - 1) // sum(counts)


@given(COUNTS, st.data())
def test_counts_by_label_are_kept_and_spread(counts: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.integers(0, 99), min_size=len(counts), max_size=len(counts)))
    wanted[0] += 1
    order = order_of(counts, tuple(wanted))
    num_rows = sum(wanted)
    samples, copies = order.find_samples(0, num_rows)
    assert len(set(zip(samples.tolist(), copies.tolist(), strict=True))) == num_rows
    labels = labels_of(order, samples)
    assert np.bincount(labels, minlength=len(counts)).tolist() == wanted
    half = np.bincount(labels[: num_rows // 2], minlength=len(counts))
    assert np.all(np.abs(half - np.array(wanted) / 2) <= 3 + len(counts))
    for label, (first, last) in enumerate(map(order.layout.label_range, range(len(counts)))):
        times = np.bincount(samples[labels == label] - first, minlength=last - first)
        assert times.max() - times.min() <= 1


@given(COUNTS, st.integers(0, 150), st.integers(1, 50), st.booleans())
def test_a_row_depends_on_no_other(counts: list[int], start: int, num: int, by: bool) -> None:
    order = order_of(counts, tuple(9 * count for count in counts) if by else ())
    num_rows = sum(order.rows) if by else start + num
    start, stop = min(start, num_rows - 1), min(start + num, num_rows)
    whole, part = order.find_samples(0, num_rows), order.find_samples(start, stop)
    for all_rows, rows in zip(whole, part, strict=True):
        assert np.array_equal(all_rows[start:stop], rows)


def test_neighbours_are_of_other_labels_and_seeds_differ() -> None:
    samples, _ = order_of([50, 50]).find_samples(0, 100)
    labels = labels_of(order_of([50, 50]), samples)
    assert 30 < np.count_nonzero(np.diff(labels)) < 90  # neither sorted nor in turns
    assert np.abs(np.diff(samples)).min() > 1
    assert not np.array_equal(samples, order_of([50, 50], seed=1).find_samples(0, 100)[0])


def test_rows_of_a_large_population_come_from_few_blocks_at_once() -> None:
    """40 blocks of 25 samples; a group reads 8 of them, which are of all labels."""
    order = order_of([500, 300, 200], block_rows=25, num_groups=5)
    samples, _ = order.find_samples(0, 1000)
    assert sorted(samples) == list(range(1000))
    for group in np.split(samples, 5):
        assert len(set(group // 25)) == 8
        assert np.bincount(labels_of(order, group)) == pytest.approx([100, 60, 40], abs=25)
