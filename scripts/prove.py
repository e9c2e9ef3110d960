"""Prove what is said of runs that survive: python scripts/prove.py [--mutants]

Runs the tests of each claim with as many repetitions as the claim speaks of, two claims
at a time, about forty minutes on two cores, and prints a table. With `--mutants` it
plants one fault after the other instead, those of `proof/faults.py`, and shows that the
tests catch each.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from proof.faults import FAULTS, VARIABLE

REPOSITORY = Path(__file__).parents[1]
PROOF = Path(__file__).parent / "proof"
NO_FAULT = "no fault"


class Claim(NamedTuple):
    """What is proven, by which tests, and how often they repeat what they try."""

    text: str
    tests: str
    names: str = ""
    repetitions: tuple[str, int] | None = None


CLAIMS = [
    Claim(
        "2 000 SIGKILLs at random instants of a save: no promised checkpoint is lost",
        "tests/runs/test_checkpoint.py",
        "kills_at_any_instant",
        ("MINITRAIN_NUM_KILLS", 2000),
    ),
    Claim(
        "KILL, ENOSPC and EIO at every system call of a save: no false promise",
        "tests/runs/test_checkpoint.py",
        "every_system_call or failed_save",
    ),
    Claim(
        "1 000 of 1 000 flipped bits and 100 of 100 truncations are seen before use",
        "tests/runs/test_checkpoint.py",
        "damage_is_refused",
    ),
    Claim(
        "17 hostile checkpoints are refused, and none of them runs",
        "tests/runs/test_checkpoint.py",
        "attacks",
    ),
    Claim(
        "200 SIGKILLs of the program, resumed each time: the undisturbed fingerprint",
        "tests/cli/test_train.py",
        "kills_of_the_program",
        ("MINITRAIN_NUM_COMMAND_KILLS", 200),
    ),
    Claim(
        "20 kills and resumes, others with the clock set back: each point exactly once",
        "tests/experiment/test_resume.py",
        "kills_at_random or what_came_after",
        ("MINITRAIN_NUM_KILLS", 20),
    ),
    Claim(
        "100 signals over the whole life of the program: no step is lost",
        "tests/cli/test_train.py",
        "signals or storm or hangs_up",
        ("MINITRAIN_NUM_SIGNALS", 100),
    ),
    Claim(
        "NaN in loss, gradient or input of 5 steps: 15 of 15 stopped before the update",
        "tests/experiment/test_resume.py",
        "not_finite",
    ),
    Claim(
        "interrupted at 6 places, by a crash or a signal, twice over: the same bits",
        "tests/experiment/test_resume.py",
        "interrupted",
    ),
    Claim(
        "10 doctored data sets are refused, and left as they were",
        "tests/datasets/test_mnist.py",
        "doctored",
    ),
    Claim(
        "50 kills during a download and 8 at once: no poisoned cache, one request",
        "tests/datasets/test_download.py",
        "kills or simultaneous",
        ("MINITRAIN_NUM_DOWNLOAD_KILLS", 50),
    ),
    Claim(
        "full and read-only disks, lost outputs, odd surroundings, links, 25 names",
        "tests/cli/test_train.py",
        "disk or machine or output or surroundings or names or link",
    ),
    Claim(
        "300 lives of kills, full disks, damage and strangers: nothing foreign touched",
        "tests/cli/test_lives.py",
        "",
        ("MINITRAIN_NUM_LIVES", 300),
    ),
    Claim(
        "anything else in the folder: refused or left alone, never lost",
        "tests/experiment/test_directory.py tests/experiment/test_strangers.py",
    ),
    Claim(
        "66 checkpoints with the right hash and wrong content: refused in a sentence",
        "tests/experiment/test_state.py",
    ),
    Claim(
        "100 SIGKILLs of random ranks: the others end in 5 s and name it, same bits",
        "tests/experiment/test_processes.py",
        "random and killed",
        ("MINITRAIN_NUM_RANK_KILLS", 100),
    ),
    Claim(
        "20 SIGSTOPs of random ranks: the others end in 15 s and name it, same bits",
        "tests/experiment/test_processes.py",
        "random and stopped",
        ("MINITRAIN_NUM_RANK_STOPS", 20),
    ),
    Claim(
        "20 signals to torchrun: one last step, one checkpoint, nobody left behind",
        "tests/cli/test_torchrun.py",
        "signal",
        ("MINITRAIN_NUM_TORCHRUN_SIGNALS", 20),
    ),
    Claim(
        "10 kills of ranks under torchrun --max-restarts: it goes on by itself",
        "tests/cli/test_torchrun.py",
        "killed",
        ("MINITRAIN_NUM_TORCHRUN_KILLS", 10),
    ),
    Claim(
        "1, 2 and 4 processes, and two machines: every bit and every point the same",
        "tests/test_shards.py tests/experiment/test_processes.py "
        "tests/cli/test_torchrun.py",
        "not random",
    ),
    Claim(
        "damaged event files, and disks that are full for a while: no other point lost",
        "tests/runs/test_events.py",
    ),
    Claim(
        "numbers too large to compute with, and too little memory: refused, untouched",
        "tests/experiment/test_limits.py",
    ),
    Claim(
        "more than 80 bad settings: refused, and nothing is created",
        "tests/experiment/test_settings.py",
        "bad or settings_file",
    ),
]


def run_tests(
    tests: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run tests of the repository."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests.split(), *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
    )


def prove(claim: Claim) -> bool:
    """Run the tests of a claim, and tell how they went; whether all passed."""
    variables = {}
    if claim.repetitions:
        variables = {claim.repetitions[0]: str(claim.repetitions[1])}
    started = time.monotonic()
    done = run_tests(claim.tests, "-k", claim.names, "-rsP", **variables)
    seconds = time.monotonic() - started
    lines = done.stdout.strip().splitlines()
    verdict = "proven" if done.returncode == 0 else "NOT PROVEN"
    told = [f"{verdict:10}  {seconds:4.0f} s  {claim.text}"]
    told += [line for line in lines if re.match(r"\d+ (kills|signals)|SKIPPED", line)]
    told += lines[-1:] if done.returncode == 0 else lines
    print(f"\n{'':20}".join(told), flush=True)
    return done.returncode == 0


def catch(name: str) -> bool:
    """Run the tests of a fault with it, and tell how they went; whether one failed.

    Args:
        name: That of the fault; `NO_FAULT` runs the tests of all without any, which
            must pass.
    """
    if name == NO_FAULT:
        planted, tests = "", " ".join({fault.tests for fault in FAULTS.values()})
    else:
        planted, tests = name, FAULTS[name].tests
    done = run_tests(
        tests,
        "-x",
        PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(PROOF)]),
        MINITRAIN_NUM_KILLS="4",
        **{VARIABLE: planted},
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    is_as_it_should = done.returncode == bool(planted)
    verdict = ("caught" if planted else "passed") if is_as_it_should else "WRONG"
    where = found[0].split(" ")[1] if found else done.stdout.splitlines()[-1]
    print(f"{verdict:10}  {name}\n{'':12}{where}", flush=True)
    return is_as_it_should


def main() -> int:
    """Prove all claims, or catch faults; the exit code is 1 where one is not."""
    parser = argparse.ArgumentParser(
        description="Prove what is said of runs that survive"
    )
    parser.add_argument(
        "--mutants",
        nargs="*",
        metavar="FAULT",
        choices=[NO_FAULT, *FAULTS],
        help="plant faults instead, all of them or those named",
    )
    parser.add_argument("--jobs", type=int, default=2, help="pytests at a time")
    asked = parser.parse_args()
    with ThreadPoolExecutor(asked.jobs) as pool:
        if asked.mutants is None:
            results = list(pool.map(prove, CLAIMS))
            print(f"{sum(results)} of {len(results)} claims proven")
        else:
            results = list(pool.map(catch, asked.mutants or [NO_FAULT, *FAULTS]))
            print(f"{sum(results)} of {len(results)} ended as they should")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
