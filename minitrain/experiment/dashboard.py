"""What TensorBoard shows of a run besides its curves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitrain import tags
from minitrain.experiment.parts import Run
from minitrain.experiment.reading import flatten, to_toml
from minitrain.experiment.report import tell
from minitrain.experiment.settings import Config
from minitrain.rule import Rule, equation
from minitrain.runs.board import Board
from minitrain.runs.charts import OF_PANEL, Category, at_a_glance, in_depth, without
from minitrain.runs.summary import Summary
from minitrain.training import NotFiniteError


@contextmanager
def dashboard(
    run: Run, folder: Path, start: int | None, summary: Summary
) -> Iterator[Board]:
    """Open the board of a run, with what is known at the start and at the end.

    Args:
        run: Its settings, and its findings, which take in a step that is not finite.
        folder: The run directory.
        start: The step after which the run is continued; None where it begins.
        summary: The summary of the run, for the findings at the end.

    Yields:
        The board, to log to.
    """
    # An event file begins after the first checkpoint: what it begins with is on disk at
    # the second one.
    owner = f".{summary.run_id}"
    with Board(folder, resume_after=start or -1, owner=owner) as board:
        if not start:
            _begin(board, run, folder.name)
        board.flush()
        succeeded = False
        try:
            yield board
            succeeded = True
        except NotFiniteError as error:
            bad = error.batches, run.data.train
            tell(summary, run.findings.note_failure(error.step, f"{error}.", *bad))
            raise
        finally:
            board.text(tags.FINDINGS, as_markdown(summary))
            board.end_hparams(succeeded)


def _begin(board: Board, run: Run, name: str) -> None:
    """Show what is known at the start."""
    config = run.config
    board.layout(_charts(run))
    board.text(tags.SETTINGS, _settings(run))
    parts = ["test"] if run.valid_batches is None else ["test", "validation"]
    measures = [*run.metric_names[:1], tags.LOSS]
    metrics = [tags.tag(each, part) for part in parts for each in measures]
    board.start_hparams(name, _hparams(config), metrics)


def _charts(run: Run) -> list[Category]:
    """Return the charts of the curves that the run will have."""
    config, measures = run.config, run.metric_names[:1]
    matrices = [name for name, p in run.model.named_parameters() if p.dim() > 1]
    averaged = [tags.LOSS, *measures] if config.ema else []
    charts = [at_a_glance(next(iter(measures), None)), in_depth(matrices, averaged)]
    return without(charts, _absent(run))


def _absent(run: Run) -> set[str]:
    """Return tags, and quantities, that the run will not log."""
    has_decay = any(group.get("weight_decay") for group in run.optimizer.param_groups)
    is_there = {
        tags.LARGEST_EIGENVALUE: run.config.instruments.sharpness,
        tags.CLIP_FRACTION: run.config.clip_norm is not None,
        tags.DECAY_SHARE: has_decay,
        tags.WAITING: run.group.world_size > 1,
    }
    never = {tag for tag, is_logged in is_there.items() if not is_logged}
    return never | (OF_PANEL if run.panel is None else run.panel.withheld.keys())


def _settings(run: Run) -> str:
    """Return what the run is made of, what departs from the defaults first."""
    defaults = _hparams(run.definition.config())
    own = [
        f"`{key} = {value}`"
        for key, value in _hparams(run.config).items()
        if value not in (defaults.get(key), run.dataset)
    ]
    departing = f", with {', '.join(own)}" if own else ""
    return (
        f"Trained on **{run.dataset}**{departing}; all else by default.\n\n"
        f"```\n{_equation(run)}\n```\n\n```\n{to_toml(run.config)}```"
    )


def _equation(run: Run) -> str:
    """Return the update rule with its numbers, where it is SGD's."""
    if run.definition.optimizer is not None:
        return f"The experiment's own optimizer: {type(run.optimizer).__name__}"
    options = run.config.optimizer.model_dump(exclude={"decay"})
    rule = Rule(clip_norm=run.config.clip_norm, **options)
    return equation(rule, is_largest_lr=run.config.schedule.name != "constant")


def as_markdown(summary: Summary) -> str:
    """Return the findings as a list, and what no instrument could read."""
    found = [
        f"- **{found['kind']}** at step {found['step']}: {found['text']} "
        f"*{found['advice']}*"
        for found in summary.findings
    ]
    by_reason: dict[str, list[str]] = {}
    for instrument, reason in summary.withheld.items():
        by_reason.setdefault(reason, []).append(f"**{instrument}**")
    withheld = [
        f"- no readings of {', '.join(instruments)}: {reason}"
        for reason, instruments in by_reason.items()
    ]
    return "\n".join([*(found or ["Nothing found.\n"]), *withheld])


def _hparams(config: Config) -> dict[str, bool | float | str]:
    """Return the settings that change the result, as TensorBoard takes them."""
    machine = ("device", "threads", "data.root", "log.", "checkpoint.", "instruments.")
    return {
        key.replace("-", "_"): value if isinstance(value, int | float) else str(value)
        for key, value in flatten(config).items()
        if value is not None and not key.startswith(machine)
    }
