"""Measure and check everything that needs a GPU, in less than ten minutes and without a download.

    make gpu                                   # writes benchmarks/gpu.json and benchmarks/gpu.md
    python -m benchmarks.gpu --only votes      # prints one section, writes nothing
    python -m benchmarks.gpu --rehearse        # tiny sizes on the CPU: does it run at all?

Each section is a process of its own with a time limit. What fails or is killed is recorded as
failed, with the rows that it had finished, and the others go on. The exit status is 1 then.
speed.py and checks.py have the sections.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
PATIENCE = 10  # of a rehearsal: times the limit, as a CPU may be busy
SECTIONS = {
    "card": (30, "The card and its matrix products"),
    "votes": (80, "Votes: the same bits as on the CPU, and faiss's share of the peak"),
    "network": (120, "The 270M ImageNet-64 network, eager"),
    "compiled": (140, "The same network, compiled"),
    "pipeline": (50, "A population's worker against the bare sampling loop"),
    "families": (60, "Each family on the card against the CPU"),
    "memory": (20, "Out of memory: batches are halved"),
    "sharing": (90, "Two workers share the card"),
}
"""Section -> the seconds that it may take, and its heading; 590 s in all."""


def run_section(name: str, folder: Path, rehearse: bool) -> dict[str, Any]:
    """Run a section in its own process; return its rows, its seconds, and why it failed if it did.

    The process appends its rows to a file, one JSON object a line.
    """
    limit, file = SECTIONS[name][0], folder / f"{name}.jsonl"
    limit *= PATIENCE if rehearse else 1
    file.touch()
    # Ends itself before it is killed: a row that is not begun is better than one that is lost.
    command = [sys.executable, "-m", "benchmarks.gpu.section", name, str(file), f"{0.85 * limit}"]
    command += ["--rehearse"] if rehearse else []
    started, log = time.monotonic(), folder / f"{name}.log"
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, start_new_session=True, **given) as process,
    ):
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        with suppress(ProcessLookupError):  # with what it started
            os.killpg(process.pid, signal.SIGKILL)
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    failed = None
    if code:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit status {code}"]
        failed = lines[-1][:300]
    elif code is None:
        failed = f"killed after {limit} s"
    elif wrong := [row for row in rows if row.get("ok") is False]:
        failed = f"{len(wrong)} of {len(rows)} rows are not as they should be"
    return {"rows": rows, "seconds": round(time.monotonic() - started, 1), "failed": failed}


def render(result: Mapping[str, Any] | None) -> str:
    """Return the page: tables of a result, or that there is none yet."""
    lines = ["# On a GPU", ""]
    if result is None:
        lines += [
            "**Nothing was measured: no GPU was at hand.** `make gpu` measures all that is listed",
            "here, in less than ten minutes on a card with 80 GB or more. It downloads nothing and",
            "puts its tables in the place of this page. Without a card,",
            "`python -m benchmarks.gpu --rehearse` shows that every section runs.",
            "",
        ]
        lines += [f"- {heading} (at most {limit} s)" for limit, heading in SECTIONS.values()]
        lines += [
            "",
            "For the section on votes, install `faiss-gpu` in place of `faiss-cpu` first",
            "([docs/cluster.md](../docs/cluster.md)).",
        ]
        return "\n".join(lines) + "\n"
    lines += [f"`make gpu` on {result['machine']}, {result['time']}. Single runs."]
    for name, section in result["sections"].items():
        lines += ["", f"## {SECTIONS[name][1]}", ""]
        if section["failed"]:
            lines += [f"**Failed**: {section['failed']}", ""]
        lines += tabulate(section["rows"])
    return "\n".join(lines) + "\n"


def tabulate(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows as a Markdown table with a column for each key."""
    if not rows:
        return ["No rows."]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys)]
    lines += [[show(row.get(key, "")) for key in keys] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def show(value: Any) -> str:
    """Return a value as a table has it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main() -> int:
    """Run the sections; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be repeated")
    given = parser.parse_args()
    sections: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for section in given.only or SECTIONS:
            print(f"{section} ...", file=sys.stderr, flush=True)
            sections[section] = run_section(section, Path(name), given.rehearse)
    machine = next((row for row in sections.get("card", {}).get("rows", ())), {})
    result = {
        "machine": f"{machine.get('card', 'an unknown card')}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, torch {machine.get('torch', '?')}",
        "time": time.strftime("%Y-%m-%d"),
        "sections": sections,
    }
    print(render(result))
    if not given.rehearse and not given.only:
        (HERE / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "gpu.md").write_text(render(result))
    return int(any(section["failed"] for section in sections.values()))


if __name__ == "__main__":
    sys.exit(main())
