"""Work out one update: python scripts/explain.py RUN --step K --parameter NAME ..."""

import difflib
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field
from tyro.conf import Positional, arg

from minitrain import explain
from minitrain.config import Config, Settings, changes, from_toml, read
from minitrain.errors import (
    CheckpointError,
    NotFiniteError,
    SettingsError,
    exit_code,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minitrain.checkpoint import Checkpoint
    from minitrain.experiment import Parts

DISAGREES = 1  # the exit code where a line, or the state after it, is not the run's


class Explain(Settings):
    """Work out the update of one weight at one step, with its actual numbers.

    The run is replayed to that step, and nothing in its folder changes. Every line is
    computed again in exact fractions; the exit code is 1 where one disagrees.
    """

    source: Positional[Annotated[str, arg(metavar="RUN|FUNCTION")]]
    """A run directory, or a function: paraboloid, bowl, rosenbrock, himmelblau, beale
    or saddle."""
    step: Annotated[int, arg(metavar="K")]
    """The step to explain, from 1."""
    parameter: Annotated[str | None, arg(metavar="NAME", constructor=str)] = None
    """Of a run: the parameter that the weight belongs to."""
    index: Annotated[tuple[int, ...], arg(metavar="I J ...")] = ()
    """Of a run: the place of the weight in its parameter, from 0."""
    start: Annotated[tuple[float, ...] | None, arg(metavar="X Y")] = None
    """Of a function: where the walk starts; by default the function's own."""
    lr: Annotated[float | None, Field(gt=0), arg(metavar="LR", constructor=float)] = (
        None
    )
    """Of a function: the learning rate; by default the function's own."""
    momentum: Annotated[float | None, Field(ge=0), arg(metavar="M", constructor=float)] = None
    """Of a function: fraction of the momentum buffer kept at each step."""
    debug: bool = False
    """Show the traceback of an error."""


def main() -> int:
    return run(tyro.cli(Explain, prog="explain.py"))


def run(asked: Explain) -> int:
    """Print the example that was asked for; the exit code."""
    from minitrain.descent import EXAMPLES  # with torch

    is_function = asked.source in EXAMPLES
    others = ("parameter", "index") if is_function else ("start", "lr", "momentum")
    for key in others:
        if getattr(asked, key):
            kind = "run" if is_function else "function"
            raise SettingsError(f"--{key} is for a {kind}, and {asked.source} is none")
    if asked.step < 1:
        raise SettingsError(f"step = {asked.step}: steps are counted from 1")
    if is_function:
        return explain_walk(asked)
    folder = Path(asked.source)
    if not folder.is_dir():
        raise SettingsError(
            f"there is no run {folder}, and no function of that name: give a run "
            f"directory, or one of {', '.join(EXAMPLES)}"
        )
    return explain_run(asked, folder)


def explain_run(asked: Explain, folder: Path) -> int:
    """Replay a run to the step, and work it out for one weight."""
    import torch

    from minitrain.experiment import prepare
    from minitrain.instruments import fingerprint

    if not (folder / "config.toml").exists():
        raise SettingsError(f"{folder} is no run directory: it holds no config.toml")
    config = read(folder / "config.toml")
    unwatched = config.instruments.model_copy(update={"budget": 0.0})
    parts = prepare(config.model_copy(update={"instruments": unwatched}))
    theta: Any = parts.optimizer.param_groups[0]["params"][0]
    vector = theta.vector
    if asked.step > parts.num_steps:
        raise SettingsError(
            f"step = {asked.step}: the run has the steps 1 to {parts.num_steps}"
        )
    place = vector.names.index(_known(asked.parameter, vector.names))
    name, shape = vector.names[place], tuple(vector.split(theta)[place].shape)
    _check_index(asked.index, name, shape)

    def weight(flat: "Tensor") -> float:
        return vector.split(flat)[place][asked.index].item()

    kept = list(checkpoints(folder))
    start = next((found for found in kept if found.step < asked.step), None)
    origin = "the seed"
    if start is not None:
        origin = f"the checkpoint of step {start.step}"
        restore(parts, start)
    steps = parts.train(start.step if start else 0)
    for _ in islice(steps, asked.step - 1 - (start.step if start else 0)):
        pass

    before = theta.detach().clone()
    buf = parts.optimizer.state.get(theta, {}).get("momentum_buffer")
    buf = None if buf is None else buf.clone()
    grads: list[float] = []  # before clipping, which happens in place
    parameter = dict(parts.model.named_parameters())[name]
    parameter.register_post_accumulate_grad_hook(
        lambda p: grads.append(p.grad[asked.index].item())  # pyright: ignore
    )
    step = next(steps)
    settings = config.optimizer
    rule = explain.Rule(
        lr=float(step.lr),
        momentum=settings.momentum,
        dampening=settings.dampening,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        clip_norm=config.clip_norm,
    )
    new_buf = parts.optimizer.state.get(theta, {}).get("momentum_buffer")
    held = look(rule, before, theta.grad, buf, new_buf, theta.detach(), weight)
    held = held._replace(grad=grads[-1])
    if config.clip_norm is not None:
        beside = torch.zeros_like(step.grad_norm)  # what clipping makes of a 1
        beside.grad = torch.ones_like(beside)
        torch.nn.utils.clip_grads_with_norm_([beside], config.clip_norm, step.grad_norm)
        held = held._replace(norm=step.grad_norm.item(), factor=beside.grad.item())

    where = ", ".join(map(str, asked.index))
    print(
        f"Step {step.number} of {parts.num_steps} of {folder}, in epoch {step.epoch}: "
        f"theta = {name}[{where}]\nReplayed from {origin}."
    )
    if start is not None:
        free, bound = changes(from_toml(start.state["settings"]), config)
        changed = [c for c in free if c.startswith("epochs")] + bound
        if changed:
            print(f"Settings changed since then: {'; '.join(changed)}.")
    print()
    agrees = show(rule, held, explain.FLOAT32, "theta")
    same = next((found for found in kept if found.step == asked.step), None)
    if same is not None:
        own = fingerprint(parts.model.state_dict(), parts.optimizer.state_dict())
        equal = own == fingerprint(same.state["model"], same.state["optimizer"])
        agrees = agrees and equal
        print(
            "All parameters and momentum buffers after this step "
            + ("are equal, bit for bit, to" if equal else "DIFFER from")
            + " those of the run's checkpoint."
        )
    return 0 if agrees else DISAGREES


def look(
    rule: explain.Rule,
    theta: "Tensor",
    grad: "Tensor",
    buf: "Tensor | None",
    new_buf: "Tensor | None",
    new_theta: "Tensor",
    weight: Callable[["Tensor"], float],
) -> explain.Held:
    """The numbers of one weight around a step, from the whole tensors.

    What lies between is asked of the rule itself: with no buffer yet, the new one is
    the gradient with weight decay, and at theta = 0 a step with lr = -1 is the
    direction.
    """
    import torch

    from minitrain.sgd import sgd_update

    with torch.no_grad():
        decayed = sgd_update(
            theta.clone(), grad, None, lr=0, momentum=1, weight_decay=rule.weight_decay
        )
        assert decayed is not None
        direction = torch.zeros_like(theta)
        sgd_update(
            direction,
            decayed,
            None if buf is None else buf.clone(),
            lr=-1,
            momentum=rule.momentum,
            dampening=rule.dampening,
            nesterov=rule.nesterov,
        )
    return explain.Held(
        theta=weight(theta),
        grad=weight(grad),
        clipped=weight(grad),
        decayed=weight(decayed),
        buf=None if buf is None else weight(buf),
        new_buf=None if new_buf is None else weight(new_buf),
        direction=weight(direction),
        new_theta=weight(new_theta),
    )


def show(
    rule: explain.Rule, held: explain.Held, form: explain.Format, name: str
) -> bool:
    """Print the example; whether all of its lines agree."""
    print("\n".join(explain.textbook(rule, held, form, name)))
    agrees = all(line.agrees for line in explain.worked(rule, held, form, name))
    if agrees:
        print(
            "Every line agrees with the run: exact fractions, rounded, give its number "
            "to 1 ulp\n(unit in the last place; of the largest number in the line)."
        )
    else:
        print("A line DISAGREES with the run: see WRONG above.")
    return agrees


def checkpoints(folder: Path) -> "Iterator[Checkpoint]":
    """The intact checkpoints of a run, the newest first; damaged ones stay in place."""
    from minitrain import checkpoint

    for path in reversed(checkpoint.listed(folder / "checkpoints")):
        try:
            yield checkpoint.load(path)
        except CheckpointError as error:
            print(f"{error}; passed over", file=sys.stderr)


def restore(parts: "Parts", found: "Checkpoint") -> None:
    """Put the parts of a run into the state of a checkpoint."""
    import torch

    for name, part in parts.state.items():
        part.load_state_dict(found.state[name])
    for group in parts.optimizer.param_groups:  # lr stays: the schedule sets it
        group.update(parts.config.optimizer.model_dump(exclude={"lr"}))
    torch.set_rng_state(found.state["random"])


def explain_walk(asked: Explain) -> int:
    """Work out one step of a walk down a function, for each coordinate."""
    import torch

    from minitrain.descent import EXAMPLES, descend
    from minitrain.sgd import sgd_update

    example, k = EXAMPLES[asked.source], asked.step
    start, lr = asked.start or example.start, asked.lr or example.lr
    if len(start) != 2:
        raise SettingsError(f"start = {start}: must be two numbers, x and y")
    momentum = asked.momentum or 0.0
    try:
        walk = descend(example.function, start, lr=lr, steps=k, momentum=momentum)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if len(walk.points) <= k:
        raise NotFiniteError(
            f"the walk diverged at step {walk.diverged}, and was given up before step "
            f"{k} was complete. Try a smaller --lr"
        )
    bufs: list[Tensor | None] = [None]
    for grad in walk.gradients[:k]:  # a walk keeps no buffers: the rule gives them
        old = bufs[-1] if bufs[-1] is None else bufs[-1].clone()
        bufs.append(sgd_update(torch.zeros(2).double(), grad, old, lr=0, momentum=momentum))
    rule = explain.Rule(lr, momentum)
    around = (walk.points[k - 1], walk.gradients[k - 1], bufs[k - 1], bufs[k])
    agrees = True
    print(f"Step {k} down f(x, y) = {example.formula} from {start}:")
    for i, name in enumerate("xy"):
        print()
        held = look(rule, *around, walk.points[k], lambda point, i=i: point[i].item())
        agrees &= show(rule, held, explain.FLOAT64, name)
    return 0 if agrees else DISAGREES


def _known(name: str | None, names: list[str]) -> str:
    if name in names:
        return name
    likeness = {n: difflib.SequenceMatcher(None, name or "", n).ratio() for n in names}
    nearest = sorted(names, key=lambda n: -likeness[n])
    raise SettingsError(
        f"parameter = {name}: there is no such parameter; there are {', '.join(nearest)}"
    )


def _check_index(index: tuple[int, ...], name: str, shape: tuple[int, ...]) -> None:
    inside = all(0 <= i < n for i, n in zip(index, shape, strict=False))
    if len(index) != len(shape) or not inside:
        ranges = ", ".join(f"0 to {n - 1}" for n in shape)
        raise SettingsError(
            f"index = {index}: {name} has the shape {shape}, so its index is "
            f"{len(shape)} numbers: {ranges}"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
