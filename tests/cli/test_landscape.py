"""The command that draws the loss around the weights of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from harness.commands import exit_code_of
from harness.files import contents
from harness.pictures import assert_is_a_picture
from torch.nn.functional import cross_entropy

import minitrain
from minitrain.experiment import Config, builtin, runner
from minitrain.experiment.landscape import explore
from minitrain.pictures.png import png
from minitrain.runs import checkpoint

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def run_dir(few_digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a model that normalizes, and five checkpoints of it."""
    return train(tmp_path_factory.mktemp("runs") / "few", model={"name": "fast-cnn"})


def train(folder: Path, **others: Any) -> Path:
    few = {
        "epochs": 2,
        "data": {"name": "digits"},
        "checkpoint": {"every": 5, "keep": 9},
        "instruments": {"budget": 0.0},
    }
    runner.run(Config(run_dir=folder, threads=1, **{**few, **others}))
    return folder


def sample(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The training samples as the command draws them, from the data set itself."""
    dataset = builtin.load_data("digits", None)
    order = torch.randperm(640, generator=torch.Generator().manual_seed(0))[:num]
    inputs = dataset.inputs(dataset.train)
    return inputs[order], dataset.train.labels[order]


def loss_of(state: dict[str, Any], model: torch.nn.Module, num: int) -> float:
    model.load_state_dict(state)
    x, y = sample(num)
    with torch.no_grad():
        return cross_entropy(model.eval()(x), y).item()


def test_middle_ends_and_checkpoints_are_the_runs_own_losses(run_dir: Path) -> None:
    found = explore(run_dir, num_samples=300, num_points=3)
    assert (found.name, found.num_samples) == ("few", 300)
    kept = [
        checkpoint.load(path) for path in checkpoint.find_all(run_dir / "checkpoints")
    ]
    assert [each.step for each in kept] == [0, 5, 10, 15, 20]
    model = minitrain.load(run_dir)
    losses = [loss_of(each.state["model"], model, 300) for each in kept]
    assert found.line is not None and found.path is not None
    alphas, values = found.line
    assert found.plane.losses[1, 1].item() == pytest.approx(losses[-1], rel=1e-5)
    assert values[alphas == 0].item() == pytest.approx(losses[0], rel=1e-5)
    assert values[alphas == 1].item() == pytest.approx(losses[-1], rel=1e-5)
    # The initial weights stand there once for the seed, and once for the checkpoint.
    nearest, values = found.path
    assert values.tolist() == pytest.approx([losses[0], *losses], rel=1e-5)
    assert nearest[[0, 1, -1]].tolist() == [0, 0, 1]
    assert nearest[1:].tolist() == sorted(nearest[1:].tolist())


def test_it_writes_the_picture_and_touches_nothing_else(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before, rng = contents(run_dir), torch.get_rng_state()
    words = ["--points", 3, "--samples", 50]
    assert exit_code_of("landscape", run_dir, *words) == 0
    first, second, last = capfd.readouterr().out.splitlines()
    found = explore(run_dir, num_samples=50, num_points=3)
    middle, highest = found.plane.losses[1, 1], found.plane.losses.max()
    assert first.startswith(f"loss of 50 training samples: {middle:.4g} at the trained")
    assert f"to {highest:.4g} over the plane" in first
    assert found.line is not None
    assert f"{found.line[1][10]:.4g} at the initial weights" in second
    assert last == "wrote landscape.png"
    picture = Path("landscape.png").read_bytes()
    assert_is_a_picture(picture)
    options = {"num_samples": 50, "num_points": 3}
    assert png(minitrain.plot_landscape(run_dir, **options)) == picture
    assert [path.name for path in tmp_path.iterdir()] == ["landscape.png"]
    assert contents(run_dir) == before and torch.equal(torch.get_rng_state(), rng)


def test_initial_weights_that_the_seed_does_not_give_are_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path / "run", epochs=1)
    draw = builtin.model

    def other(**options: Any) -> torch.nn.Module:
        torch.rand(1)
        return draw(**options)

    assert explore(folder, num_samples=50, num_points=3).line is not None
    monkeypatch.setattr("minitrain.experiment.build._call", replaced(draw, other))
    capfd.readouterr()
    found = explore(folder, num_samples=50, num_points=3)
    assert found.line is found.path is None
    assert "does not give the weights that the run began with" in capfd.readouterr().err
    (axes,) = found.plot().axes
    assert axes.collections


def replaced(old: Any, new: Any) -> Any:
    """What calls the functions of an experiment, but one in the place of another."""

    def call(function: Any, kind: Any, *given: Any, **options: Any) -> Any:
        return (new if function is old else function)(*given, **options)

    return call


def test_a_run_whose_settings_changed_begins_where_it_began(tmp_path: Path) -> None:
    """Its seed as well: the weights are those of the first one."""
    folder = train(tmp_path / "run", epochs=1, schedule={"name": "constant"})
    changed = {"resume": True, "allow_changes": True, "seed": 5, "epochs": 2}
    train(folder, schedule={"name": "constant"}, **changed)
    found = explore(folder, num_samples=50, num_points=3)
    first, *_ = checkpoint.find_all(folder / "checkpoints")
    expected = loss_of(
        checkpoint.load(first).state["model"], minitrain.load(folder), 50
    )
    assert found.line is not None
    assert found.line[1][10].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["nowhere", "--points", "4"], "points: 4 is even"),
        (["nowhere", "--radius", "0"], "radius = 0.0: must be greater than 0"),
    ],
)
def test_bad_words_are_refused(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code_of("landscape", *words) == 2
    assert capfd.readouterr().err.startswith(f"error: {told}")
    assert [*tmp_path.iterdir()] == []
