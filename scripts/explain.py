"""Work out one update: python scripts/explain.py RUN --step K --parameter NAME ..."""

import difflib
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field
from tyro.conf import Positional, arg

from minitrain import explain
from minitrain.config import Settings, changes, from_toml, read
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

of_run = partial(arg, help_behavior_hint="(of a run)")
of_function = partial(arg, help_behavior_hint="(of a function)")


class Explain(Settings):
    """Work out the update of one weight at one step, with its actual numbers.

    The run is replayed to that step, and nothing in its folder changes. Every line is
    computed again in exact fractions; the exit code is 1 where one disagrees.
    """

    source: Positional[Annotated[str, arg(metavar="RUN|FUNCTION")]]
    """A run directory, or a function: paraboloid, bowl, rosenbrock, himmelblau, beale
    or saddle."""
    step: Annotated[int, Field(ge=1), arg(metavar="K")]
    """The step to explain, from 1."""
    parameter: Annotated[str | None, of_run(metavar="NAME", constructor=str)] = None
    """The parameter that the weight belongs to."""
    index: Annotated[tuple[int, ...], of_run(metavar="I J ...")] = ()
    """The place of the weight in its parameter, counted from 0."""
    start: Annotated[tuple[float, ...] | None, of_function(metavar="X Y")] = None
    """Where the walk starts; by default where descend.py starts it."""
    lr: Annotated[
        float | None, Field(gt=0), of_function(metavar="LR", constructor=float)
    ] = None
    """Learning rate; by default that of descend.py."""
    momentum: Annotated[float, Field(ge=0), of_function(metavar="M")] = 0.0
    """Fraction of the momentum buffer kept at each step."""
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
        if getattr(asked, key) != Explain.model_fields[key].default:
            kind = "run" if is_function else "function"
            raise SettingsError(f"--{key} is for a {kind}, and {asked.source} is none")
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

    same = start = None
    for found in checkpoints(folder):
        if found.step == asked.step:
            same = found
        elif found.step < asked.step:
            start = found
            break
    num_done = 0
    if start is not None:
        num_done = start.step
        restore(parts, start)
    steps = parts.train(num_done)
    for _ in islice(steps, asked.step - 1 - num_done):
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
        f"Step {step.number} of {parts.num_steps} in {folder}, for one weight:\n"
        f"theta = {name}[{where}]"
    )
    if start is None:
        print("Replayed from the seed.")
    else:
        print(f"Replayed from the checkpoint of step {start.step}.")
        free, bound = changes(from_toml(start.state["settings"]), config)
        changed = [c for c in free if c.startswith("epochs")] + bound
        if changed:
            print(f"Settings changed since then: {'; '.join(changed)}.")
    print()
    agrees = show(rule, held, explain.FLOAT32, "theta")
    if same is not None:
        own = fingerprint(parts.model.state_dict(), parts.optimizer.state_dict())
        equal = own == fingerprint(same.state["model"], same.state["optimizer"])
        agrees = agrees and equal
        print(
            f"All parameters and momentum buffers after step {step.number} "
            + ("equal those of" if equal else "DIFFER from")
            + "\nthe run's checkpoint"
            + (", bit for bit." if equal else ": this replay is not the run.")
        )
    return conclude(agrees)


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
    return all(line.agrees for line in explain.worked(rule, held, form, name))


def conclude(agrees: bool) -> int:
    """Say whether all was as it should be; the exit code."""
    if not agrees:
        print("\nThis DISAGREES with the run by more than rounding: see above.")
        return DISAGREES
    print(
        "\nEvery line was computed again in exact fractions. Rounded, they are the run's "
        "own\nnumbers, or off by the few ulp (units in the last binary place) shown."
    )
    return 0


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
    momentum = asked.momentum
    try:
        walk = descend(example.function, start, lr=lr, steps=k, momentum=momentum)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if len(walk.points) <= k:
        raise NotFiniteError(
            f"the walk diverged at step {walk.diverged}, and was given up before step "
            f"{k} was complete. Try a smaller --lr"
        )
    buf = new_buf = None
    for grad in walk.gradients[:k]:  # a walk keeps no buffers: the rule gives them
        buf = None if new_buf is None else new_buf.clone()
        unused = torch.zeros_like(grad)
        new_buf = sgd_update(unused, grad, new_buf, lr=0, momentum=momentum)
    rule = explain.Rule(lr, momentum)
    around = (walk.points[k - 1], walk.gradients[k - 1], buf, new_buf, walk.points[k])
    agrees = True
    print(
        f"Step {k} down f(x, y) = {example.formula} from ({start[0]:g}, {start[1]:g})"
    )
    for i, name in enumerate("xy"):
        print(f"\nThe coordinate {name}\n")
        held = look(rule, *around, lambda point, i=i: point[i].item())
        agrees &= show(rule, held, explain.FLOAT64, name)
        if asked.source == "paraboloid" and momentum == 0:
            agrees &= show_closed_form(start[i], lr, k, held.new_theta, name)
    return conclude(agrees)


def show_closed_form(start: float, lr: float, k: int, seen: float, name: str) -> bool:
    """Compare a walk down the paraboloid with the power that it is; whether it agrees.

    Each of k steps rounds twice, a product and a difference that are no more than twice
    the longest of the walk: together they cannot exceed 2 k ulp of that length.
    """
    exact = explain.closed_form(start, lr, k)
    error = abs(Fraction(seen) - exact)
    longest = 2 * max(abs(Fraction(start)), abs(exact))
    agrees = error <= 2 * k * explain.FLOAT64.ulp(longest)
    print(
        f"\nOn x^2 + y^2 the gradient is 2 {name}, and a step a product: {name} <- "
        f"(1 - 2 lr) * {name}\nAfter {k} from {start:g}: {1 - 2 * lr:g}^{k} * "
        f"{start:g} = {float(exact):.12g}, and the walk is there but for "
        f"{float(error):.1g}"
        + ("." if agrees else ": DISAGREES, that is more than rounding.")
    )
    return agrees


def _known(name: str | None, names: list[str]) -> str:
    if name in names:
        return name
    likeness = {n: difflib.SequenceMatcher(None, name or "", n).ratio() for n in names}
    nearest = sorted(names, key=lambda n: -likeness[n])
    raise SettingsError(
        f"parameter = {name}: there is no such one; there are {', '.join(nearest)}"
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
