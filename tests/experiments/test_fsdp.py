"""The program that shares out a model among processes, in its first steps."""

import runpy
from pathlib import Path
from typing import Any

from harness.processes import in_process_group

FILE = Path(__file__).parents[2] / "experiments" / "fsdp.py"
NUM_SAMPLES = 640


def run(folder: Path, epochs: int, world_size: int = 2) -> list[tuple[int, str]]:
    """Run the program, and return what it prints."""
    program = runpy.run_path(str(FILE))

    def work(rank: int) -> list[Any]:
        return [*program["run"](folder, epochs, NUM_SAMPLES)]

    told, *others = in_process_group(world_size, work)
    assert all(each == told for each in others)
    return told


def test_it_learns_and_goes_on_with_the_bits_that_it_would_have_had(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path / "whole", 3)
    losses = [float(text.split()[1]) for _, text in whole[:3]]
    assert [number for number, _ in whole] == [5, 10, 15, 15]
    assert losses[2] < losses[0] < 2.5  # that of guessing is 2.3

    run(tmp_path / "parts", 2)
    (tmp_path / "parts" / "000012").mkdir()  # as a save leaves that was cut off
    continued = run(tmp_path / "parts", 3)
    assert continued == [(10, "continued"), *whole[2:]]


def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    run(tmp_path, 1)
    continued = run(tmp_path, 2, world_size=1)
    assert [number for number, _ in continued] == [5, 10, 10]
