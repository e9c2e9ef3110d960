"""The history of a run: what was logged, by tag, from disk and from the run itself."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.runs import points

import minitrain
from minitrain.experiment import Config, runner
from minitrain.runs.board import Board
from minitrain.runs.history import History
from minitrain.system.errors import SettingsError


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with Board(folder) as board:
        for step in (1, 10, 20):
            board.log(step, {"loss/train": 1 / step, "lr": 0.5})
        board.log(20, {"accuracy/test": 0.25})
    return folder


def test_every_tag_has_its_steps_and_values(logged: Path) -> None:
    history = minitrain.History.read(str(logged))
    assert [*history] == ["loss/train", "lr", "accuracy/test"] and len(history) == 3
    steps, values = history["loss/train"]
    assert steps.dtype == np.int64 and values.dtype == np.float64
    assert steps.tolist() == [1, 10, 20]
    assert values.tolist() == np.array([1, 0.1, 0.05], np.float32).tolist()
    assert history["accuracy/test"].steps.tolist() == [20]
    assert history["accuracy/test"].values.tolist() == [0.25]
    assert "loss/test" not in history and history.get("loss/test") is None
    assert repr(history) == "<History of run: 3 tags, 20 steps>"


def test_it_is_drawn_as_its_folder_is(logged: Path) -> None:
    history = History.read(logged)
    (of_history, *_), (of_folder, *_) = (
        minitrain.plot(each).axes for each in (history, logged)
    )
    for one, other in zip(of_history.lines, of_folder.lines, strict=True):
        assert one.get_label() == other.get_label() == "run"
        data = np.asarray(one.get_xydata())
        assert np.array_equal(data, np.asarray(other.get_xydata()))
        assert data[:, 0].tolist() == [1, 10, 20]


def test_a_tag_that_is_not_there_is_told_with_one_that_is(logged: Path) -> None:
    with pytest.raises(KeyError, match=r"no tag 'loss/trian'; did you mean loss/train"):
        History.read(logged)["loss/trian"]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_without_curves_there_is_no_history(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="holds no TensorBoard scalars"):
        History.read(tmp_path / name)


def test_as_a_table_it_has_a_row_for_each_step(logged: Path) -> None:
    reason = "pandas is not installed: it comes with pip install -e '.[notebook]'"
    pandas = pytest.importorskip("pandas", reason=reason)
    history = History.read(logged)
    table = history.to_pandas()
    assert table.index.name == "step" and table.index.tolist() == [1, 10, 20]
    assert list(table.columns) == list(history)
    for tag, (steps, values) in history.items():
        column = table[tag].dropna()
        assert column.index.tolist() == steps.tolist()
        assert column.tolist() == values.tolist()
    assert pandas.isna(table["accuracy/test"][1])


def test_without_pandas_a_sentence_says_so(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def without_pandas(name: str, *others: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return load(name, *others)

    history = History.read(logged)
    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(
        ImportError, match=r"a table needs pandas, .* pip install pandas"
    ):
        history.to_pandas()


@pytest.mark.usefixtures("few_digits")
def test_a_run_returns_its_history_and_so_does_a_finished_one(tmp_path: Path) -> None:
    """It is no part of what is saved, and TensorBoard's own reader sees the same."""
    few = {"epochs": 1, "data": {"name": "digits"}, "run_dir": tmp_path / "run"}
    config = Config(**few)
    run = runner.run(config)
    again = runner.run(config.model_copy(update={"resume": True}))
    expected = points(tmp_path / "run")
    for history in (run.history, again.history):
        assert history.folder == tmp_path / "run"
        found = {
            (tag, int(step)): 0.0 if tag.startswith(("throughput/", "cost/")) else value
            for tag, (steps, values) in history.items()
            for step, value in zip(steps, values, strict=True)
        }
        assert found == expected
    assert "folder" not in run.to_json() and "history" not in run.to_json()
    assert again == run
