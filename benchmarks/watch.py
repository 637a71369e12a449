"""Watch the peak memory and CPU seconds of a program and the processes that it starts."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from pathlib import Path


class Watch(threading.Thread):
    """Watches peak memory and CPU seconds of this process's descendants, by command (Linux)."""

    def __init__(self, interval: float = 0.5) -> None:
        super().__init__(daemon=True)
        self._interval = interval
        self.peak: dict[str, int] = defaultdict(int)
        self.cpu: dict[int, float] = {}
        self._earlier = time.process_time()
        self._own_cpu = 0.0
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.look()
            self._own_cpu = time.thread_time()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all processes since the start, without the watching itself."""
        return sum(self.cpu.values()) - self._earlier - self._own_cpu

    def print_peaks(self) -> None:
        print("\npeak resident memory of one process")
        for name, value in sorted(self.peak.items()):
            print(f"  {name:<40}{value / 2**20:8.0f} MiB")

    def look(self) -> None:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
                high = [x for x in (folder / "status").read_text().splitlines() if "VmHWM" in x]
            except OSError:
                continue
            found[int(folder.name)] = (int(stat[1]), name, high, int(stat[11]) + int(stat[12]))
        for pid, (_, name, high, ticks) in found.items():
            ancestor = pid
            while ancestor in found and ancestor != os.getpid():
                ancestor = found[ancestor][0]
            if ancestor == os.getpid() and high:
                short = "driver" if pid == os.getpid() else Path(name).name.split(".")[0][:40]
                self.peak[short] = max(self.peak[short], int(high[0].split()[1]) * 1024)
                self.cpu[pid] = ticks / os.sysconf("SC_CLK_TCK")
