"""Paid calls: an answer is paid for once and kept; caps and rates hold for all workers together."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_service import LABELS, SEEDS, VARIED, Service, made, silent, spent

from pe_ray import InputError
from pe_ray.components.generators.paid_calls import PaidCalls
from pe_ray.plugins.seeds import row_seeds

WORKER = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from image_service import LABELS, SEEDS, Service, made
import pe_ray.components.generators.paid_calls as paid_calls
{before}
service = Service(url={url!r})
made(service, Path({store!r})).random(LABELS, SEEDS)
"""


def worker(service: Service, store: Path, before: str = "") -> subprocess.Popen[bytes]:
    script = WORKER.format(path=sys.path, before=before, url=service.url, store=str(store))
    return subprocess.Popen([sys.executable, "-c", script])


def test_a_row_depends_on_its_seed_and_is_paid_once(service: Service, tmp_path: Path) -> None:
    drawn = made(service, tmp_path).random(LABELS, SEEDS) | {"label": LABELS}
    again = made(service, tmp_path).random(LABELS[::-1], SEEDS[::-1])  # a restart, other batches
    assert np.array_equal(again["image"], drawn["image"][::-1])
    assert len(service.calls) == 4
    varied = made(service, tmp_path).vary(drawn, 0.5, VARIED)
    alone = made(service, tmp_path).vary({k: v[2:3] for k, v in drawn.items()}, 0.5, VARIED[2:3])
    assert np.array_equal(alone["image"][0], varied["image"][2])
    assert len(service.calls) == 8
    assert spent(tmp_path) == (8, round(4 * 0.02 + 4 * 0.03, 9))
    other = made(service, tmp_path).random(LABELS, SEEDS + np.uint64(1))
    assert not np.array_equal(other["image"], drawn["image"])
    assert len(service.calls) == 12


def test_a_rate_limit_holds_for_all_workers_together(service: Service, tmp_path: Path) -> None:
    workers = [made(service, tmp_path, requests_per_minute=600, concurrency=3) for _ in range(2)]
    started = time.time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda w: w[1].random(LABELS, SEEDS + np.uint64(w[0])), enumerate(workers)))
    assert len(service.calls) == 8
    store = PaidCalls(tmp_path, max_calls=8, max_cost=8)
    assert (
        time.time() + store.take_turn(0) - started >= 8 * 0.1
    )  # every call took a turn of its own


def test_waiting_for_another_worker_takes_nobodys_turn(service: Service, tmp_path: Path) -> None:
    service.delay = 1.0
    workers = [made(service, tmp_path, requests_per_minute=20) for _ in range(2)]
    started = time.time()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(workers[0].random, LABELS[:1], SEEDS[:1])
        while not service.calls:
            time.sleep(0.01)
        second = workers[1].random(LABELS[:1], SEEDS[:1])
    assert np.array_equal(first.result()["image"], second["image"])
    assert len(service.calls) == 1
    store = PaidCalls(tmp_path, max_calls=1, max_cost=1)
    assert time.time() + store.take_turn(0) - started < 5  # one turn of 3 s was taken, not two


def test_a_held_store_holds_another_worker(tmp_path: Path) -> None:
    first = PaidCalls(tmp_path, max_calls=1, max_cost=1)
    first.hold(30)
    assert PaidCalls(tmp_path, max_calls=1, max_cost=1).take_turn(0) > 29


def test_caps_hold_across_workers_and_restarts(service: Service, tmp_path: Path) -> None:
    service.delay = 0.02
    seeds = row_seeds(1, "random", 0, np.arange(40))
    labels = np.zeros(40, np.int32)

    def attempt(first: int) -> None:
        with pytest.raises(InputError, match=r"generator.max_calls: .* holds 9 calls of at most 9"):
            made(service, tmp_path, max_calls=9, concurrency=5).random(
                labels, seeds + np.uint64(first)
            )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(attempt, range(3)))
    attempt(0)
    assert len(service.calls) == 9
    with pytest.raises(InputError, match=r"max_cost: .* holds cost 0.20 of at most 0.21"):
        made(service, tmp_path, max_cost=0.21, concurrency=1).random(labels, seeds + np.uint64(7))
    assert len(service.calls) == 10


def test_workers_that_ask_for_the_same_pay_once(service: Service, tmp_path: Path) -> None:
    service.delay = 0.3
    running = [worker(service, tmp_path) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(service.calls) == 4
    assert spent(tmp_path)[0] == 4


def test_a_call_cut_by_a_kill_is_counted_and_made_again(service: Service, tmp_path: Path) -> None:
    service.faults = [silent(60)] * 4
    process = worker(service, tmp_path)
    while len(service.calls) < 4:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    service.faults = []
    drawn = made(service, tmp_path).random(LABELS, SEEDS)
    assert len(service.calls) == 8
    assert spent(tmp_path)[0] == 8  # four may have been paid for, four were
    assert np.array_equal(made(service, tmp_path).random(LABELS, SEEDS)["image"], drawn["image"])
    with pytest.raises(InputError, match="max_calls"):
        made(service, tmp_path, max_calls=8).random(LABELS, SEEDS + np.uint64(1))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_storing_of_an_answer(
    service: Service, tmp_path: Path, when: str
) -> None:
    before = f"""
import os, signal
settle, left = paid_calls.PaidCalls.settle, [2]
def deadly(self, *arguments):
    left[0] -= 1
    if left[0] == 0 and {when == "before"}: os.kill(os.getpid(), signal.SIGKILL)
    settle(self, *arguments)
    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
paid_calls.PaidCalls.settle = deadly
options = Service.options
Service.options = lambda self, store, **changes: options(self, store, concurrency=1, **changes)
"""
    assert worker(service, tmp_path, before).wait(60) == -signal.SIGKILL
    assert len(service.calls) == 2
    made(service, tmp_path).random(LABELS, SEEDS)
    lost = 1 if when == "before" else 0
    assert len(service.calls) == 4 + lost
    assert spent(tmp_path)[0] == 4 + lost


def test_an_unusable_answer_that_was_stored_ends_a_run_and_is_asked_again(
    service: Service, tmp_path: Path
) -> None:
    """Its worker died before it decoded the answer."""
    made(service, tmp_path).random(LABELS[:1], SEEDS[:1])
    with sqlite3.connect(tmp_path / "calls.sqlite") as database:
        database.execute("UPDATE calls SET content = ?", (b"<html>",))
    with pytest.raises(InputError, match=r"generator: .*html"):
        made(service, tmp_path).random(LABELS[:1], SEEDS[:1])
    made(service, tmp_path).random(LABELS[:1], SEEDS[:1])
    assert spent(tmp_path)[0] == 2
    assert len(service.calls) == 2
