"""The prover: its claims and faults name tests that are there, and faults take hold."""

import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.commands import ROOT, in_a_process

PROOF = ROOT / "scripts" / "proof"


@pytest.fixture(scope="module")
def prover() -> Iterator[Mapping[str, Any]]:
    """What `scripts/prove.py` defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield runpy.run_path(str(ROOT / "scripts" / "prove.py"))
        for name in [name for name in sys.modules if name.split(".")[0] == "proof"]:
            del sys.modules[name]


def test_what_is_run_is_there(prover: Mapping[str, Any]) -> None:
    """The words that select tests are those of tests, and the variables are read."""
    for claim in prover["CLAIMS"]:
        paths = [ROOT / path for path in claim.tests.split()]
        text = "\n".join(path.read_text() for path in paths)
        names = re.findall(r"^def test_(\w+)|\bids=\[(.*)\]", text, re.MULTILINE)
        for word in re.split(r" or | and |^not ", claim.names):
            assert any(word in "".join(name) for name in names), (word, claim.tests)
        assert claim.repetitions is None or f'"{claim.repetitions[0]}"' in text
    for fault in prover["FAULTS"].values():
        assert all((ROOT / path).is_file() for path in fault.tests.split())


def test_every_fault_finds_what_it_spoils(tmp_path: Path) -> None:
    program = (
        "import importlib, faults\n"
        "for name, fault in faults.FAULTS.items():\n"
        "    fault.plant(importlib.import_module(fault.module))\n"
        "print(len(faults.FAULTS))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROOF))
        done = in_a_process("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15


@pytest.mark.parametrize("fault", ["no fsync of the folder", ""])
def test_a_fault_is_planted_in_every_program(fault: str, tmp_path: Path) -> None:
    program = "from minitrain.system import files; print(files.sync_folder.__name__)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROOF))
        patch.setenv("MINITRAIN_FAULT", fault)
        done = in_a_process("-c", program, cwd=tmp_path)
    assert done.stdout == ("<lambda>\n" if fault else "sync_folder\n"), done.stderr
