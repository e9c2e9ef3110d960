"""Prove what is said of runs that survive: python scripts/prove.py [--mutants]

Runs the tests of each claim with as many repetitions as the claim speaks of, two claims
at a time, about twenty minutes on two cores, and prints a table. With `--mutants` it
plants one fault after the other into a copy of the program instead, and shows that the
tests see each.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]


class Claim(NamedTuple):
    """What is proven, by which tests, and how often they repeat what they try."""

    text: str
    tests: str
    names: str = ""
    repetitions: tuple[str, int] | None = None


CLAIMS = [
    Claim(
        "2 000 SIGKILLs at random instants of a save: no promised checkpoint is lost",
        "tests/test_checkpoint.py",
        "kills_at_any_instant",
        ("MINITRAIN_NUM_KILLS", 2000),
    ),
    Claim(
        "KILL, ENOSPC and EIO at every system call of a save: no false promise",
        "tests/test_checkpoint.py",
        "every_system_call or failed_save",
    ),
    Claim(
        "1 000 of 1 000 flipped bits and 100 of 100 truncations are seen before use",
        "tests/test_checkpoint.py",
        "damage_is_refused",
    ),
    Claim(
        "17 hostile checkpoints are refused, and none of them runs",
        "tests/test_checkpoint.py",
        "attacks",
    ),
    Claim(
        "200 SIGKILLs of the program, resumed each time: the undisturbed fingerprint",
        "tests/test_command.py",
        "kills_of_the_program",
        ("MINITRAIN_NUM_COMMAND_KILLS", 200),
    ),
    Claim(
        "20 kills and resumes, others with the clock set back: each point exactly once",
        "tests/test_resume.py",
        "kills_at_random or what_came_after",
        ("MINITRAIN_NUM_KILLS", 20),
    ),
    Claim(
        "100 signals over the whole life of the program: no step is lost",
        "tests/test_command.py",
        "signals or storm or hangs_up",
        ("MINITRAIN_NUM_SIGNALS", 100),
    ),
    Claim(
        "NaN in loss, gradient or input of 5 steps: 15 of 15 stopped before the update",
        "tests/test_resume.py",
        "not_finite",
    ),
    Claim(
        "interrupted at 6 places, by a crash or a signal, twice over: the same bits",
        "tests/test_resume.py",
        "interrupted",
    ),
    Claim(
        "10 doctored data sets are refused, and left as they were",
        "tests/test_data.py",
        "doctored",
    ),
    Claim(
        "50 kills during a download and 8 at once: no poisoned cache, one request",
        "tests/test_download.py",
        "kills or simultaneous",
        ("MINITRAIN_NUM_DOWNLOAD_KILLS", 50),
    ),
    Claim(
        "full and read-only disks, lost outputs, odd surroundings, links, 25 names",
        "tests/test_command.py",
        "disk or machine or output or surroundings or names or link",
    ),
    Claim(
        "more than 80 bad settings: refused, and nothing is created",
        "tests/test_config.py",
        "bad or settings_file",
    ),
]


class Mutant(NamedTuple):
    """A fault to plant: in a file, what stands there and what takes its place."""

    fault: str
    file: str
    changes: list[tuple[str, str]]
    tests: str


DURABLE, RUNS = "tests/test_storage.py tests/test_checkpoint.py", "tests/test_resume.py"
MUTANTS = [
    Mutant("no fault", "storage", [], f"{DURABLE} {RUNS}"),
    Mutant(
        "no fsync of the file",
        "storage",
        [("            os.fsync(file.fileno())\n", "")],
        DURABLE,
    ),
    Mutant(
        "written in place",
        "storage",
        [
            ("    temporary = path.with_name(", "    temporary = path or Path("),
            ('open(temporary, "xb")', 'open(temporary, "wb")'),
        ],
        DURABLE,
    ),
    Mutant(
        "fsync after the rename",
        "storage",
        [
            (
                "            os.fsync(file.fileno())\n"
                "        os.replace(temporary, path)\n",
                "            os.replace(temporary, path)\n"
                "            os.fsync(file.fileno())\n",
            )
        ],
        DURABLE,
    ),
    Mutant(
        "no fsync of the folder",
        "storage",
        [("    _sync_folder(path.parent)\n", "")],
        DURABLE,
    ),
    Mutant(
        "old checkpoints removed before the new one is durable",
        "saving",
        [
            (
                "        try:\n            path = checkpoint.save(",
                "        checkpoint.rotate(folder, 1, self.summary.best_step)\n"
                "        try:\n            path = checkpoint.save(",
            )
        ],
        RUNS,
    ),
    Mutant(
        "newest by time, not by step",
        "checkpoint",
        [("(int(match[1]), path)", "(path.stat().st_mtime_ns, path)")],
        DURABLE,
    ),
    Mutant(
        "hash not compared",
        "checkpoint",
        [("    if actual != match[2]:", "    if not actual:")],
        DURABLE,
    ),
    Mutant(
        "random state not restored",
        "randomness",
        [('        torch.set_rng_state(state_dict["cpu"])\n', "")],
        RUNS,
    ),
    Mutant(
        "place in the data not restored",
        "experiment",
        [("parts.train(start or 0)", "parts.train(0)")],
        RUNS,
    ),
    Mutant(
        "momentum not restored",
        "experiment",
        [("if name in state:", 'if name in ("model", "panel", "random"):')],
        RUNS,
    ),
    Mutant(
        "points after the checkpoint kept",
        "tensorboard",
        [("event.summary.value and event.step <= step and", "event.summary.value and")],
        RUNS,
    ),
    Mutant(
        "check for NaN after the update",
        "training",
        [
            ("                # The step's", "                optimizer.step()\n"
             "                # The step's"),
            ("optimizer.step()\n            if panel", "pass\n            if panel"),
        ],
        RUNS,
    ),
    Mutant(
        "checkpoints unpickled without restriction",
        "checkpoint",
        [("weights_only=True)\n    except", "weights_only=False)\n    except")],
        DURABLE,
    ),
    Mutant(
        "no lock on the run directory",
        "storage",
        [("fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")],
        RUNS,
    ),
    Mutant(
        "back to step 0 where all checkpoints are damaged",
        "checkpoint",
        [("    if faults or damaged:\n", "    if faults and not faults:\n")],
        RUNS,
    ),
]  # fmt: skip


def tested(
    folder: Path, tests: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run tests of the repository in a folder, and what it holds."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests.split(), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
    )


def prove(claim: Claim) -> bool:
    variables = {}
    if claim.repetitions:
        variables = {claim.repetitions[0]: str(claim.repetitions[1])}
    started = time.monotonic()
    done = tested(REPOSITORY, claim.tests, "-k", claim.names, "-rsP", **variables)
    seconds = time.monotonic() - started
    lines = done.stdout.strip().splitlines()
    verdict = "proven" if done.returncode == 0 else "NOT PROVEN"
    told = [f"{verdict:10}  {seconds:4.0f} s  {claim.text}"]
    told += [line for line in lines if re.match(r"\d+ (kills|signals)|SKIPPED", line)]
    told += lines[-1:] if done.returncode == 0 else lines
    print(f"\n{'':20}".join(told), flush=True)
    return done.returncode == 0


def plant(mutant: Mutant) -> bool:
    """Whether the tests fail with the fault, and pass without one, as they should."""
    with tempfile.TemporaryDirectory() as copy:
        for part in ("minitrain", "scripts", "tests", "experiments", "pyproject.toml"):
            source, target = REPOSITORY / part, Path(copy) / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        path = Path(copy) / "minitrain" / f"{mutant.file}.py"
        text = path.read_text()
        for old, new in mutant.changes:
            if text.count(old) != 1:
                raise ValueError(f"{mutant.fault}: not once in the text: {old!r}")
            text = text.replace(old, new)
        path.write_text(text)
        done = tested(Path(copy), mutant.tests, "-x", MINITRAIN_NUM_KILLS="4")
    found = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    is_as_it_should = done.returncode == bool(mutant.changes)
    verdict = ("caught" if mutant.changes else "passed") if is_as_it_should else "WRONG"
    where = found[0].split(" ")[1] if found else done.stdout.splitlines()[-1]
    print(f"{verdict:10}  {mutant.fault}\n{'':12}{where}", flush=True)
    return is_as_it_should


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove what the README says")
    parser.add_argument("--mutants", action="store_true", help="plant faults instead")
    if parser.parse_args().mutants:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(plant, MUTANTS))
        print(f"{sum(results[1:])} of {len(results) - 1} planted faults caught")
    else:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(prove, CLAIMS))
        print(f"{sum(results)} of {len(results)} claims proven")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
