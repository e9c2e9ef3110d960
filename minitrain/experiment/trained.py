"""The model that a run has trained."""

from pathlib import Path

from torch import nn

from minitrain.experiment.build import build_model
from minitrain.experiment.reading import definition_in, from_toml
from minitrain.experiment.state import check_state, load_weights
from minitrain.runs import checkpoint
from minitrain.system.errors import CheckpointError


def load(run_dir: Path | str, *, trust_code: bool = False) -> nn.Module:
    """Return the trained model of a run: the best one, or else the newest.

    The best one has the lowest validation loss; a run without a validation set has
    none. With `--ema` the weights are the averaged ones. The model is ready to predict,
    and takes inputs as in training.

    Args:
        run_dir: The run directory.
        trust_code: Whether the source of the experiment that is kept there may be
            executed, as it must be where it is not the built-in one.

    Raises:
        CheckpointError: The run has no intact checkpoint.
        SettingsError: The run has a source, and it is not trusted.
    """
    if not Path(run_dir).is_dir():
        raise CheckpointError(f"there is no folder {run_dir}, so no run to load")
    folder = Path(run_dir) / "checkpoints"
    found, _ = checkpoint.find_newest(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    summary, text = found.state.get("summary"), found.state.get("settings")
    best = summary.get("best_step") if isinstance(summary, dict) else None
    if best and best != found.step:
        found = checkpoint.find(folder, best) or found
    definition = definition_in(Path(run_dir), str(text), trust_code)
    check_state(found, definition)
    config = from_toml(found.state["settings"], definition)
    model = build_model(config, definition)
    try:
        load_weights(model, found.state.get("average") or found.state["model"])
    except ValueError as error:
        raise CheckpointError(f"{found.path} cannot be loaded: {error}") from None
    return model.eval()
