"""A checkpoint with the right hash and the wrong content is refused in a sentence."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.files import contents
from harness.runs import PANEL
from torch import Tensor, nn

import minitrain
from minitrain.experiment import Config, runner
from minitrain.experiment.definition import builtin
from minitrain.experiment.state import check_state, load_weights
from minitrain.explain.replay import replay
from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint
from minitrain.system.errors import CheckpointError
from minitrain.system.terminal import exit_code

pytestmark = pytest.mark.usefixtures("few_digits")


def settings(folder: Path, **others: Any) -> Config:
    return Config(
        run_dir=folder,
        epochs=1,
        data={"name": "digits"},  # pyright: ignore[reportArgumentType]
        instruments=PANEL,  # pyright: ignore[reportArgumentType]
        **others,
    )


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint amid a run, with all of its parts."""
    folder = tmp_path_factory.mktemp("honest")
    every = {"every": 5, "keep": 9}
    runner.run(settings(folder, checkpoint=every))
    paths = checkpoint.find_all(folder / "checkpoints")
    (found,) = [each for each in map(checkpoint.load, paths) if each.step == 5]
    return found


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at a place in a nested state."""

    def edit(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return edit


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def edit(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return edit


NAME = "layers.0.weight"
BUFFER = ("optimizer", "state", 0, "momentum_buffer")
GROUP = ("optimizer", "param_groups", 0)
WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {part}": drop(part) for part in ("model", "optimizer", "findings")},
    **{f"no {part}": drop(part) for part in ("random", "settings", "summary")},
    "model: none": put(None, "model"),
    "model: a list": put([torch.zeros(3)], "model"),
    "model: numbers": put({NAME: 1.0}, "model"),
    "model: empty": put({}, "model"),
    "model: a name less": drop("model", NAME),
    "model: a name more": put(torch.zeros(3), "model", "more"),
    "model: another shape": put(torch.zeros(128, 783), "model", NAME),
    "model: another dtype": put(torch.zeros(128, 784).double(), "model", NAME),
    "model: integers": put(torch.zeros(128, 784).int(), "model", NAME),
    "model: sparse": put(torch.zeros(128, 784).to_sparse(), "model", NAME),
    "model: NaN": put(torch.full((128, 784), torch.nan), "model", NAME),
    "model: infinite": put(torch.full((128, 784), torch.inf), "model", NAME),
    "optimizer: text": put("sgd", "optimizer"),
    "optimizer: empty": put({}, "optimizer"),
    "optimizer: no groups": put([], "optimizer", "param_groups"),
    "optimizer: two groups": put([{}, {}], "optimizer", "param_groups"),
    "optimizer: buffer as text": put("buffer", *BUFFER),
    "optimizer: buffer of another shape": put(torch.zeros(3), *BUFFER),
    "optimizer: NaN": put(torch.full((101_770,), torch.nan), *BUFFER),
    "optimizer: foreign buffers": put({"x": {"y": 1}}, "optimizer", "state"),
    "optimizer: foreign state": put([1], "optimizer", "state"),
    "optimizer: foreign key": put(1, "optimizer", "state", 0, "exp_avg"),
    "optimizer: uphill": put(True, *GROUP, "maximize"),
    "optimizer: lr as text": put("0.1", *GROUP, "lr"),
    "optimizer: no parameters": put([], *GROUP, "params"),
    "panel: a number": put(1, "panel"),
    "panel: seconds as text": put("1", "panel", "seconds"),
    "panel: fewer vectors": put([], "panel", "start"),
    "panel: vectors of another shape": put([torch.zeros(3)], "panel", "corner"),
    "panel: NaN": put(torch.tensor(torch.nan), "panel", "path_length"),
    "panel: gradient as text": put("gradient", "panel", "previous"),
    "panel: one count": put([1], "panel", "clipping"),
    "panel: counts as text": put(["1", "2"], "panel", "clipping"),
    "panel: loss as text": put("1.5", "panel", "first_loss"),
    "panel: no noise": drop("panel", "noise"),
    "panel: noise that never decays": put(2.0, "panel", "noise", "decay"),
    "panel: noise as text": put("noise", "panel", "noise"),
    "panel: noise of other keys": put({"x": 1.0}, "panel", "noise"),
    "findings: a list": put([], "findings"),
    "findings: series as text": put({"loss/train": "abc"}, "findings", "series"),
    "findings: points as text": put({"loss/train": ["abc"]}, "findings", "series"),
    "findings: one word": put([["kind"]], "findings", "found"),
    "findings: numbers": put([[1, 2, 3, 4]], "findings", "found"),
    "random: a list": put([], "random"),
    "random: empty": put({}, "random"),
    "random: floats": put({"cpu": torch.zeros(5056)}, "random"),
    "random: too short": put({"cpu": torch.zeros(5, dtype=torch.uint8)}, "random"),
    "settings: no text": put({"epochs": 1}, "settings"),
    "settings: no TOML": put("epochs = = 1", "settings"),
    "settings: unknown": put("epoch = 1", "settings"),
    "settings: out of range": put("epochs = -1", "settings"),
    "summary: a list": put([], "summary"),
    "summary: unknown field": put(1, "summary", "__class__"),
    "summary: steps as text": put("10", "summary", "steps"),
    "summary: other steps": put(9, "summary", "steps"),
    "summary: versions as text": put("1.0", "summary", "versions"),
    "summary: no versions": drop("summary", "versions"),
    "summary: findings as text": put(["found"], "summary", "findings"),
    "summary: a foreign finding": put([{"kind": "x"}], "summary", "findings"),
    "summary: a foreign change": put([{"settings": 1}], "summary", "changes"),
    "a part more": put(1, "more"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_content_is_refused_and_nothing_touched(
    wrong: str,
    honest: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Continued, loaded or replayed: by one sentence, without a traceback."""
    run = honest.path.parents[1]
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    (tmp_path / "summary.json").write_bytes((run / "summary.json").read_bytes())
    (tmp_path / "lock").touch()
    state = copy.deepcopy(honest.state)
    del state["format"], state["step"]
    WRONG[wrong](state)
    path = checkpoint.save(tmp_path / "checkpoints", honest.step, state)
    before = contents(tmp_path)

    def resume() -> int:
        runner.run(settings(tmp_path, resume=True))
        return 0

    assert exit_code(resume) == CheckpointError.exit_code
    error = capsys.readouterr().err
    assert str(path) in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert contents(tmp_path) == before
    if wrong.split(":")[0] in ("model", "no model", "summary", "settings"):
        with pytest.raises(CheckpointError, match=path.name):
            minitrain.load(tmp_path)
    with pytest.raises(CheckpointError, match=path.name):
        replay(tmp_path, honest.step + 1, NAME, (0, 0))


def test_an_honest_one_is_taken(honest: Checkpoint):
    check_state(honest, builtin())
    state = {key: value for key, value in honest.state.items() if key != "panel"}
    check_state(honest._replace(state=state), builtin())  # of a run without instruments


def test_weights_must_fit_in_all_of_their_names_shapes_and_types():
    """torch itself casts what has another dtype, in silence."""
    model = nn.Linear(2, 1)
    kept = model.state_dict()
    wrong: list[dict[str, Tensor]] = [
        kept | {"weight": torch.zeros(1, 2).double()},
        kept | {"weight": torch.zeros(1, 3)},
        kept | {"more": torch.zeros(1)},
        {"weight": kept["weight"]},
    ]
    for weights in wrong:
        with pytest.raises(ValueError, match="another model"):
            load_weights(model, weights)
    load_weights(model, {name: torch.ones_like(t) for name, t in kept.items()})
    assert all((t == 1).all() for t in model.state_dict().values())
