"""The command that draws runs side by side."""

from pathlib import Path

import numpy as np
import pytest
from harness.commands import exit_code_of
from harness.pictures import assert_is_a_picture

import minitrain
from minitrain.pictures import runs as pictures_runs
from minitrain.pictures.png import Picture, png
from minitrain.runs.board import Board
from minitrain.runs.points import read_curves

STEPS = [0, 1, 10]


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """Folders of one name, with other numbers in each."""
    folders = [tmp_path / side / "run" for side in ("a", "b")]
    for number, folder in enumerate(folders, 1):
        with Board(folder) as board:
            for step in STEPS:
                values = {"loss/train": number / (1 + step), "grad_norm/global": 2.0}
                board.log(step, values)
            board.log(STEPS[-1], {"accuracy/test": 0.5})
    return folders


def test_curves_are_those_that_were_logged(two_runs: list[Path]) -> None:
    assert read_curves(two_runs[1]) == {
        "loss/train": (STEPS, pytest.approx([2, 1, 2 / 11], rel=1e-7)),
        "grad_norm/global": (STEPS, [2, 2, 2]),
        "accuracy/test": ([10], [0.5]),
    }


def test_every_run_is_drawn_under_its_name(
    two_runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its folder's, or its path where two folders have one name."""
    names: list[list[str]] = []
    draw_runs = pictures_runs.draw_runs

    def draw(curves: dict) -> Picture:
        names.append(list(curves))
        return draw_runs(curves)

    monkeypatch.setattr(pictures_runs, "draw_runs", draw)
    output = tmp_path / "new" / "curves.png"
    assert exit_code_of("plot", *two_runs, "--output", output) == 0
    assert exit_code_of("plot", two_runs[0], "--output", output) == 0
    assert names == [[str(run) for run in two_runs], ["run"]]
    assert capfd.readouterr().out == f"wrote {output}\n" * 2
    assert_is_a_picture(output.read_bytes())


def test_from_python_it_is_a_figure(two_runs: list[Path], tmp_path: Path) -> None:
    figure = minitrain.plot(*two_runs)
    loss, *_ = figure.axes
    assert [np.asarray(line.get_xdata()).tolist() for line in loss.lines] == [STEPS] * 2
    values = np.asarray(loss.lines[1].get_ydata())
    assert values == pytest.approx([2, 1, 2 / 11], rel=1e-7)
    assert exit_code_of("plot", *two_runs, "--output", tmp_path / "a.png") == 0
    assert (tmp_path / "a.png").read_bytes() == png(figure)
    (loss, *_) = minitrain.plot(str(two_runs[0])).axes
    assert [line.get_label() for line in loss.lines] == ["run"]


@pytest.mark.parametrize("words", [["empty"], []])
def test_without_curves_nothing_is_written(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert exit_code_of("plot", *words, "--output", "curves.png") == 2
    told = "empty holds no TensorBoard scalars" if words else "no run is named"
    assert capfd.readouterr().err.startswith(f"error: {told}")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
