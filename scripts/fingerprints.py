"""Print the fingerprints of ten short runs: python scripts/fingerprints.py [--whole]

Run it before and after a change that should not change what is computed, on the same
machine, and compare. A fingerprint is the SHA-256 over all parameters and the
optimizer's state; `--whole` trains as long as the settings say, in place of one epoch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MNIST = ["--data.name", "mnist"]
RUNS: dict[str, list[str]] = {
    "default": MNIST,
    **{
        path.stem: [str(path)]
        for path in sorted((ROOT / "experiments").glob("*.toml"))
        if path.stem != "fashion-cnn"  # the network of mnist-cnn, on rarer data
    },
    "bfloat16": [*MNIST, "--precision", "bfloat16"],
    "dropout": [*MNIST, "--model.dropout", "0.3"],
    "clipped": [*MNIST, "--clip-norm", "0.5"],
    "accumulated": [*MNIST, "--accumulate", "3"],
}


def fingerprint_of(flags: list[str]) -> str:
    """Train by the command, and give the fingerprint that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "scripts" / "train.py"
        command = [sys.executable, str(script), *flags, "--run-dir", folder]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(Path(folder, "summary.json").read_text())["fingerprint"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="train all epochs")
    shorter = [] if parser.parse_args().whole else ["--epochs", "1"]
    for name, flags in RUNS.items():
        print(f"{name:14} {fingerprint_of([*flags, *shorter])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
