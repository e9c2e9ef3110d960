"""Plant faults, and see what is found: python scripts/evaluate_findings.py [--seeds N]

Every fault is planted into runs of a multilayer perceptron and of a small convolutional
network on MNIST, and of three small problems, as far as it has a meaning there, each
from several seeds. It counts as found where a finding that names it is among those of
the run. Healthy runs of many settings should give none.
"""

import math
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import tyro
from findings.faults import FAULTS, Fault, healthy_trials
from findings.problems import PROBLEMS
from findings.trial import Trial, find

from minitrain.system.terminal import exit_code


def main(
    seeds: int = 5,
    first_seed: int = 0,
    only: str = "",
    problem: str = "",
    table: Path | None = None,
) -> int:
    """Run all, and print a table: what was planted, found, missed, and found besides.

    Args:
        seeds: Runs of each kind and problem.
        first_seed: The seed of the first of them.
        only: Part of the name of what to plant; by default everything.
        problem: The only problem to plant into; by default all.
        table: A file for the table, in Markdown.
    """
    torch.set_num_threads(1)
    numbers = range(first_seed, first_seed + seeds)
    start, rows, sums = time.perf_counter(), [], Counter[str]()
    print(f"{'planted':31} {'should be found':32} found  besides")
    for name, fault in FAULTS.items():
        if only not in name:
            continue
        found, num, besides = _plant(fault, numbers, problem)
        sums += Counter(found=found, planted=num, besides=besides.total())
        others = ", ".join(f"{n} x {kind}" for kind, n in besides.items()) or "-"
        kinds = " or ".join(fault.kinds)
        rows.append(f"| {name} | {kinds} | {found} of {num} |")
        print(f"{name:31} {kinds:32.32} {found:3}/{num:<3} {others}", flush=True)
    alarms, num_healthy = _count_alarms(numbers, only, problem)
    share = sums["found"] / sums["planted"] if sums["planted"] else math.nan
    result = [
        f"{sums['found']} of {sums['planted']} planted faults found ({share:.1%}),",
        f"{sums['besides']} findings besides in the same runs;",
        f"{alarms} of {num_healthy} healthy runs gave a false alarm "
        f"({alarms / max(1, num_healthy):.1%})",
    ]
    print("\n".join(result), f"\nin {time.perf_counter() - start:.0f} s")
    if table is not None:
        head = ["| planted | should be found | found |", "| --- | --- | --- |"]
        table.write_text("\n".join([*head, *rows, "", *result, ""]))
    return 0


def _plant(fault: Fault, seeds: range, only: str) -> tuple[int, int, Counter[str]]:
    """Return how many runs found the fault, how many there were, and what else."""
    names = [name for name in fault.problems if only in name]
    runs = []
    for name in names:
        trial = Trial(PROBLEMS[name], **fault.change)
        of_problem = [find(trial, seed) for seed in seeds]
        missed = [kinds for kinds in of_problem if not {*kinds} & {*fault.kinds}]
        for kinds in missed:
            print(f"  missed in {name}: found {', '.join(kinds) or 'nothing'}")
        runs += of_problem
    found = sum(bool({*kinds} & {*fault.kinds}) for kinds in runs)
    return found, len(runs), Counter(k for r in runs for k in r if k not in fault.kinds)


def _count_alarms(seeds: range, only: str, problem: str) -> tuple[int, int]:
    """Return how many healthy runs found anything, and how many there were."""
    alarms = num = 0
    for name, trial in healthy_trials().items():
        if only not in f"healthy {name}" or problem not in name:
            continue
        for seed in seeds:
            kinds = find(trial, seed)
            num, alarms = num + 1, alarms + bool(kinds)
            if kinds:
                print(f"healthy: {name}, seed {seed}: {', '.join(kinds)}", flush=True)
    return alarms, num


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
