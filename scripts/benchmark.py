"""Measure minitrain against its peers: python scripts/benchmark.py [SECTION ...]

The sides of a row take turns on the same machine, so that what slows one slows all. A
row shows the median seconds of minitrain and of its peer, and of the rounds' ratios the
median, the smallest and the largest. Wait until the machine does nothing else.
"""

import json
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from benchmarks import loop, optimizer, peers, processes, shared, time_to_99
from benchmarks.compare import Row

Section = Literal[
    "sgd", "loop", "panel", "time-to-99", "start", "memory", "processes", "peers"
]
SECTIONS: dict[Section, Callable[[int], Iterator[Row]]] = {
    "sgd": optimizer.rows,
    "loop": loop.rows,
    "panel": loop.panel_rows,
    "time-to-99": time_to_99.rows,
    "start": processes.start_rows,
    "memory": processes.memory_rows,
    "processes": shared.rows,
    "peers": peers.rows,
}


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    versions = {}
    for name in ("torch", "tensorboard", "lightning", "keras"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def main(
    sections: tyro.conf.Positional[tuple[Section, ...]] = tuple(SECTIONS),
    rounds: int = 7,
    threads: int = 0,
    as_json: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(name="json")
    ] = False,
) -> int:
    """Measure, and print a table.

    Args:
        sections: What to measure.
        rounds: How often each side runs.
        threads: Threads of torch; 0 leaves it to torch.
        as_json: Print JSON in place of the table.
    """
    if threads:
        torch.set_num_threads(threads)
    measured: dict[str, list[Row]] = {section: [] for section in sections}
    if not as_json:
        print("  ".join(f"{key} {value}" for key, value in machine().items()))
        print(f"{'measured':42}  {'against':26}  {'ours':>10}  {'theirs':>10}  ratio")
    for section in sections:
        for row in SECTIONS[section](rounds):
            measured[section].append(row)
            if not as_json:
                print(row, flush=True)
    if as_json:
        rows = {name: [r._asdict() for r in found] for name, found in measured.items()}
        print(json.dumps({"machine": machine(), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
