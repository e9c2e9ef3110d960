"""One step of a run made once more, for the numbers around one weight."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.experiment.again import read_settings, settings_at
from minitrain.experiment.build import build
from minitrain.experiment.definition import Definition, definition_of
from minitrain.experiment.parts import Run
from minitrain.experiment.state import check_state, check_summary
from minitrain.explain.arithmetic import FLOAT32, FLOAT64, Format
from minitrain.explain.look import look
from minitrain.explain.worked import Held
from minitrain.fingerprint import fingerprint
from minitrain.norms import clip_factor
from minitrain.rule import Rule
from minitrain.runs import checkpoint
from minitrain.runs.checkpoint import Checkpoint, DamagedError, UnreadableError
from minitrain.runs.summary import read_summary
from minitrain.shards import Shards
from minitrain.system.errors import SettingsError, did_you_mean
from minitrain.system.terminal import warn
from minitrain.training import Step

FORMATS = {torch.float32: FLOAT32, torch.float64: FLOAT64}
"""Those in which every operation of the rule is rounded once, as the lines have it."""


class Replay(NamedTuple):
    """A step of a run, made once more."""

    rule: Rule
    held: Held
    form: Format
    """The format of these numbers."""
    num_steps: int
    """Steps of the whole run."""
    start: int | None
    """The step of the checkpoint that it was replayed from; None from the seed."""
    changed: list[str]
    """Settings that changed since that checkpoint, as `key: old -> new`."""
    equal: bool | None
    """Whether the state after the step is that of the run's checkpoint of this step;
    None where the run kept none."""


@dataclass(frozen=True)
class Weight:
    """One weight of a model that trains as a vector, or as a few."""

    group: dict[str, Any]
    """The optimizer's group of the vector."""
    theta: Any
    """The vector, as the optimizer has it."""
    parameter: nn.Parameter
    place: int
    """Which of the vector's parameters that is."""
    index: tuple[int, ...]

    def take(self, flat: Tensor) -> float:
        """Return the element of this weight in a vector that is laid out as theta."""
        return self.theta.vector.split(flat)[self.place][self.index].item()


def replay(
    folder: Path,
    step: int,
    parameter: str | None,
    index: tuple[int, ...],
    *,
    trust_code: bool = False,
) -> Replay:
    """Make one step of a run once more, and look at one weight.

    The steps before it are replayed by the settings that it was made with, from the
    newest intact checkpoint before it or else from the seed, without the panel, which
    changes no bit. Nothing in the folder changes.

    Args:
        folder: The run directory.
        step: The number of the step, from 1.
        parameter: The name of the parameter that holds the weight.
        index: The place of the weight in the parameter.
        trust_code: Whether the source that the run keeps may be executed.

    Raises:
        SettingsError: There is no such run, step, parameter or index.
        MinitrainError: As `build` and `train` do.
    """
    last = read_settings(folder, trust_code=trust_code)
    definition = definition_of(last)
    if definition.optimizer is not None:
        raise SettingsError(
            f"the updates of {folder} are not SGD's, but those of its experiment's own "
            "optimizer: there is no rule to work out"
        )
    kept = [*_read_checkpoints(folder, definition)]
    summary = _find_summary(folder, kept)
    changes = summary.get("changes", ())
    config = settings_at(step, last, changes)
    parts = build(config)
    num_steps = summary.get("steps", 0)
    if not 1 <= step <= num_steps:
        raise SettingsError(
            f"step = {step}: the run has made the steps 1 to {num_steps}"
        )
    weight = find_weight(parts, parameter, index)

    same = next((found for found in kept if found.step == step), None)
    start = next((found for found in kept if found.step < step), None)
    num_done, changed = 0, []
    if start is not None:
        num_done = start.step
        changed = [str(each) for each in parts.changes_since(start) if not each.is_free]
    _check_changes(changes, num_done, step)
    if start is not None:
        parts.restore(start)
    grads: list[float] = []
    shards = Noting(
        parts.config.shards,
        parts.config.seed,
        note=lambda: grads.append(weight.take(weight.theta.grad)),
    )
    steps = dataclasses.replace(parts, shards=shards).train(num_done)
    for _ in islice(steps, step - 1 - num_done):
        pass
    rule, held = _look_at_next(steps, parts, weight, grads)
    equal = None
    if same is not None:
        own = fingerprint(parts.model.state_dict(), parts.optimizer.state_dict())
        equal = own == fingerprint(same.state["model"], same.state["optimizer"])
    origin = None if start is None else start.step
    form = FORMATS[weight.parameter.dtype]
    return Replay(rule, held, form, parts.num_steps, origin, changed, equal)


@dataclass(frozen=True, kw_only=True)
class Noting(Shards):
    """Says when the gradient of a step is complete, and not yet clipped in place."""

    note: Callable[[], None]

    def backward(self, *arguments: Any, **options: Any) -> tuple[Tensor, int]:
        made = super().backward(*arguments, **options)
        self.note()
        return made


def _look_at_next(
    steps: Iterator[Step], parts: Run, weight: Weight, grads: Sequence[float]
) -> tuple[Rule, Held]:
    """Make one more step, and note the numbers of one weight around it.

    Args:
        steps: The steps, up to the one before.
        parts: The run.
        weight: The weight.
        grads: Its gradient in each step, before clipping.
    """
    theta, config = weight.theta, parts.config

    def buffer() -> Tensor | None:
        return parts.optimizer.state.get(theta, {}).get("momentum_buffer")

    before, old = theta.detach().clone(), buffer()
    old = None if old is None else old.clone()
    made = next(steps)
    options = config.optimizer.model_dump(exclude={"lr", "decay"})
    options["weight_decay"] = weight.group["weight_decay"]
    rule = Rule(lr=float(made.lr), clip_norm=config.clip_norm, **options)
    held = look(
        rule, before, theta.grad, old, buffer(), theta.detach(), weight.take
    )._replace(grad=grads[-1])
    if rule.clip_norm is None:
        return rule, held
    norm = before.new_tensor(made.grad_norm)
    factor = clip_factor(norm, rule.clip_norm)
    return rule, held._replace(norm=norm.item(), factor=factor.item())


def _read_checkpoints(folder: Path, definition: Definition) -> Iterator[Checkpoint]:
    """Yield the intact checkpoints of a run, the newest first; others stay in place.

    Raises:
        CheckpointError: One is intact and not of a run of this version.
    """
    for path in reversed(checkpoint.find_all(folder / "checkpoints")):
        try:
            found = checkpoint.load(path)
        except (DamagedError, UnreadableError) as error:
            warn(f"{error}; passed over")
            continue
        check_state(found, definition)
        yield found


def _find_summary(folder: Path, kept: Sequence[Checkpoint]) -> dict[str, Any]:
    """Return the summary of a run: as it ended, or that of its newest checkpoint."""
    newest = dict(kept[0].state["summary"]) if kept else {}
    with suppress(ValueError):
        ended = check_summary(read_summary(folder) or {})
        if ended.get("steps", 0) >= newest.get("steps", 0):
            return ended
    return newest


def _check_changes(changes: Sequence[Any], num_done: int, step: int) -> None:
    """Refuse a step that would be replayed across a change of the settings."""
    between = [
        f"{each['key']} from {each['old']} to {each['new']} after step {each['step']}"
        for each in changes
        if num_done < each["step"] < step
    ]
    if between:
        raise SettingsError(
            f"step {step} cannot be replayed: the run changed {'; '.join(between)}, "
            "and no checkpoint from then on is before it"
        )


def find_weight(parts: Run, parameter: str | None, index: tuple[int, ...]) -> Weight:
    """Find a weight by the name of its parameter and its index there."""
    named = {
        name: (group, theta, place)
        for group in parts.optimizer.param_groups
        for theta in group["params"]
        for place, name in enumerate(theta.vector.names)
    }
    names = [*named]
    if parameter is None:
        raise SettingsError(f"a run needs --parameter, one of {', '.join(names)}")
    if parameter not in names:
        raise SettingsError(
            f"parameter = {parameter}: there is no such parameter"
            f"{did_you_mean(parameter, names) or '.'} There are {', '.join(names)}"
        )
    found = dict(parts.model.named_parameters())[parameter]
    shape = tuple(found.shape)
    is_inside = all(0 <= i < n for i, n in zip(index, shape, strict=False))
    if len(index) != len(shape) or not is_inside:
        ranges = ", ".join(f"0 to {n - 1}" for n in shape)
        raise SettingsError(
            f"index = {index}: {parameter} has the shape {shape}, so its index is "
            f"{len(shape)} numbers: {ranges}"
        )
    if found.dtype not in FORMATS:
        raise SettingsError(
            f"parameter = {parameter}: is of {found.dtype}, and the lines are worked "
            f"out in {' and '.join(map(str, FORMATS))}"
        )
    group, theta, place = named[parameter]
    return Weight(group, theta, found, place, index)
