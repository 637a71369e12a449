"""Run one section and append its rows to a file, one JSON object a line."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu.checks import draw_families, families, memory, sharing
from benchmarks.gpu.speed import card, compiled, network, pipeline, votes
from benchmarks.gpu.tasks import Row, Task

SECTIONS: dict[str, Callable[[Task], Iterator[Row]]] = {
    made.__name__: made
    for made in (card, votes, network, compiled, pipeline, families, memory, sharing)
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("section", choices=[*SECTIONS, "draw"])
    parser.add_argument("file", type=Path)
    parser.add_argument("limit", type=float, help="seconds; for draw, the deadline itself")
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    if given.section == "draw":
        draw_families(given.file, given.limit)
        return
    if not (given.rehearse or torch.cuda.is_available()):
        raise SystemExit("torch finds no GPU; --rehearse runs without one")
    task = Task(deadline=time.monotonic() + given.limit, rehearse=given.rehearse)
    with given.file.open("a") as output:
        for row in SECTIONS[given.section](task):
            print(json.dumps(row), file=output, flush=True)


if __name__ == "__main__":
    main()
