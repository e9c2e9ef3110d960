"""The bookkeeping: groups, states, closures, hooks, schedulers, scalers, compilation.

torch.optim.SGD is the oracle here too, and traps and defects count as in test_sgd.py.
"""

import copy
import inspect
import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from harness.optimizers import (
    EVERYTHING,
    LRS,
    OPTIONS,
    MakeOptimizer,
    TorchSGD,
    assert_all,
    decay_lr,
    each,
    first_difference,
    give_gradients,
    parameters_of,
    pickled,
    snapshot,
    twins,
    two_groups,
    unequal,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from minitrain.sgd import SGD
from minitrain.vector import ParameterVector


def theta(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value]))


def after_five_steps() -> tuple[Optimizer, Optimizer]:
    ours, theirs = twins()
    assert first_difference(ours, theirs, give_gradients, range(1, 6)) is None
    return ours, theirs


# Arguments and groups.


def error_of(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        call()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    "options, error",
    [
        ({"lr": -1}, ValueError),
        ({"momentum": -1}, ValueError),
        ({"weight_decay": -1}, ValueError),
        ({"lr": torch.ones(2)}, ValueError),
        ({"lr": "0.1"}, TypeError),
        ({"lr": None}, TypeError),
        ({"nesterov": True}, ValueError),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError),
        ({"fused": True, "differentiable": True}, RuntimeError),
        ({"fused": True, "foreach": True}, RuntimeError),
        ({"lr": 0, "momentum": 5, "dampening": -5}, None),  # trap 6: all legal
    ],
    ids=str,
)
@each("optimizer_class", [SGD, torch.optim.SGD])
def test_bad_options_raise_what_torch_raises(optimizer_class, options, error):
    assert error_of(lambda: optimizer_class([theta()], **options)) is error


SHARED = theta()


@pytest.mark.parametrize(
    "params, error",
    [
        ([], ValueError),
        ([theta() * 2], ValueError),
        ([{"params": SHARED}, {"params": SHARED}], ValueError),
        (SHARED, TypeError),
        (["weight"], TypeError),
        ([{"params": {SHARED}}], TypeError),
        ([{"lr": 0.1}], KeyError),
    ],
    ids=["none", "no leaf", "in two groups", "no list", "names", "set", "no params"],
)
@each("optimizer_class", [SGD, torch.optim.SGD])
def test_bad_parameters_raise_what_torch_raises(optimizer_class, params, error):
    assert error_of(lambda: optimizer_class(params)) is error
    # Trap 6: options are looked at first.
    assert error_of(lambda: optimizer_class(params, lr="0.1")) is TypeError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_numbers_must_be_finite_in_every_group(name: str, value: Any):
    """torch takes NaN, and in a group anything: defect D5, trap 6."""
    as_tensor: dict[str, Any] = {name: torch.tensor(value)}
    for call in (
        lambda: SGD([theta()], **{name: value}),
        lambda: SGD([theta()], **as_tensor),
        lambda: SGD([{"params": [theta()], name: value}]),
    ):
        with pytest.raises(ValueError, match=f"{name} = .* finite and not negative"):
            call()


@pytest.mark.parametrize(
    "group, error",
    [
        ({"params": theta(), "lr": -1}, ValueError),
        ({"params": theta(), "weight_decay": -1}, ValueError),
        ({"params": theta(), "lr": torch.ones(2)}, ValueError),
        ({"params": theta(), "nesterov": True, "momentum": 0}, ValueError),
        ({"params": theta(), "nesterov": True, "dampening": 0.1}, ValueError),
        ({"params": theta() * 2}, ValueError),
        ({"params": 3}, TypeError),
        ([theta()], TypeError),
    ],
    ids=str,
)
def test_bad_group_is_refused_and_changes_nothing(group, error):
    optimizer = SGD([theta()], lr=0.1, momentum=0.9)
    before = copy.deepcopy(optimizer.state_dict())
    assert error_of(lambda: optimizer.add_param_group(group)) is error
    assert optimizer.state_dict() == before


def test_group_added_in_mid_run_equals_torch():
    pair = after_five_steps()
    for optimizer in pair:
        optimizer.add_param_group({"params": [theta(2.0)], "momentum": 0.5})
    assert first_difference(*pair, give_gradients, range(6, 20)) is None


def test_tensor_lr_belongs_to_one_group():
    """A scheduler fills it in place: shared, it would be the last group's (D5)."""
    lr = torch.tensor(0.1)
    ours, theirs = (
        optimizer_class([{"params": theta()}, {"params": theta()}], lr=lr)
        for optimizer_class in (SGD, torch.optim.SGD)
    )
    first, second = ours.param_groups
    assert first["lr"] is lr and second["lr"] is not lr  # trap 10: the object itself
    ours.load_state_dict(theirs.state_dict())
    first, second = ours.param_groups
    first["lr"].fill_(0.5)
    assert_all(second["lr"], 0.1)


def test_zero_grad_forgets_gradients_or_sets_them_to_zero():
    p, module = theta(), nn.Linear(2, 1)
    vector = ParameterVector(module)
    p.grad = grad = torch.ones(1)
    SGD([p]).zero_grad(set_to_none=False)
    assert p.grad is grad and not grad.any()
    SGD([p]).zero_grad()
    assert p.grad is None
    p.grad = torch.ones(1)
    vector.theta.grad.fill_(1)
    SGD([{"params": [p]}, {"params": vector}]).zero_grad()
    assert not p.grad and not vector.theta.grad.any()
    vector.check()  # the module's gradients are still its views


# States.


UNCOMPILED = """
import sys, torch
from minitrain.sgd import SGD
from minitrain.vector import ParameterVector
model = torch.nn.Linear(2, 1)
for params in list(model.parameters()), ParameterVector(model):
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    optimizer.zero_grad()
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_what_is_not_compiled_does_not_wait_for_the_compiler():
    """torch's own optimizers import it when they are built: more than a second."""
    command = [sys.executable, "-c", UNCOMPILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each("options", OPTIONS)
@each("make_lr", LRS)
def test_states_are_exchanged_in_mid_run(make_lr, options):
    """Each goes on from the other's state, which brings its options with it."""
    ours, theirs = twins(lambda: two_groups(torch.float32, options, make_lr))
    assert first_difference(ours, theirs, give_gradients, range(1, 26)) is None
    our_heir, their_heir = (
        optimizer_class([{"params": g["params"]} for g in old.param_groups])
        for optimizer_class, old in ((SGD, ours), (TorchSGD, theirs))
    )
    our_heir.load_state_dict(through_a_file(theirs.state_dict()))
    their_heir.load_state_dict(through_a_file(ours.state_dict()))
    assert first_difference(our_heir, their_heir, give_gradients, range(26, 51)) is None


@each("options", OPTIONS)
def test_state_dict_is_laid_out_as_torchs(options):
    """Trap 16: the same keys in the same order, and values of the same types."""

    def layout(tree: Any) -> Any:
        if isinstance(tree, dict):
            return [(key, layout(value)) for key, value in tree.items()]
        return [layout(item) for item in tree] if isinstance(tree, list) else type(tree)

    layouts = []
    for optimizer_class in (SGD, torch.optim.SGD):
        p = theta()
        p.grad = torch.ones(1)
        optimizer = optimizer_class([("weight", p)], **options)
        optimizer.step()
        layouts.append(layout(optimizer.state_dict()))
    assert layouts[0] == layouts[1]


def test_without_momentum_the_state_stays_empty():
    """Trap 7: a look-up in the state, at a step or at a load, would fill it."""
    optimizer = SGD([theta()], lr=0.1)
    parameters_of(optimizer)[0].grad = torch.ones(1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["state"] == {}


def test_loaded_state_is_a_copy():
    """Trap 16: torch hands out live buffers, and takes them in as they are (D5)."""
    ours, theirs = after_five_steps()
    before = copy.deepcopy(snapshot(theirs))
    ours.load_state_dict(theirs.state_dict())
    give_gradients(ours, 6)
    ours.step()
    assert unequal(snapshot(theirs), before) == []


def test_state_of_another_model_is_refused_and_changes_nothing():
    """torch takes buffers of any shape, and fails at the next step: D5."""
    ours, theirs = after_five_steps()
    before = copy.deepcopy(snapshot(ours))
    state = copy.deepcopy(theirs.state_dict())
    state["param_groups"][0]["lr"] = 7.0
    state["state"][0]["momentum_buffer"] = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"parameter 0 in group 0 has shape \(3, 5\)"):
        ours.load_state_dict(state)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ours.load_state_dict(SGD([theta()]).state_dict())
    assert unequal(snapshot(ours), before) == []
    assert first_difference(ours, theirs, give_gradients, range(6, 16)) is None


@each(
    "entry, seen",
    [
        ("text", "type str"),
        ({"momentum_buffer": 3.0}, "type float"),
        ([torch.zeros(1)], "type list"),
    ],
)
def test_a_state_that_is_none_of_a_parameter_is_refused(entry, seen):
    """torch takes it in, and fails at the next step: D5."""
    ours, theirs = after_five_steps()
    before = copy.deepcopy(snapshot(ours))
    state = copy.deepcopy(theirs.state_dict())
    state["state"][0] = entry
    with pytest.raises(ValueError, match=f"parameter 0 in group 0 has {seen}"):
        ours.load_state_dict(state)
    assert unequal(snapshot(ours), before) == []


def test_old_checkpoint_equals_torch():
    """Trap 16: options that came later are off, and a buffer may be None."""
    pair = after_five_steps()
    state = copy.deepcopy(pair[0].state_dict())
    state["state"][0]["momentum_buffer"] = None
    for group in state["param_groups"]:
        for name in ("nesterov", "maximize", "foreach", "differentiable", "fused"):
            del group[name]
    for optimizer in pair:
        optimizer.load_state_dict(copy.deepcopy(state))
    assert first_difference(*pair, give_gradients, range(6, 16)) is None


@each("optimizer_class", [SGD, torch.optim.SGD])
def test_a_pre_hook_that_returns_nonsense_is_an_error(optimizer_class):
    p = theta()
    p.grad = torch.ones(1)
    optimizer = optimizer_class([p], lr=0.1)
    before = p.item()
    optimizer.register_step_pre_hook(lambda *_: 5)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert p.item() == before


@each("copied", [copy.deepcopy, pickled])
def test_copy_goes_on_alone(copied):
    ours, theirs = after_five_steps()
    heir, before = copied(ours), copy.deepcopy(snapshot(ours))
    theirs.zero_grad()  # copied parameters have no gradient
    assert first_difference(heir, theirs, give_gradients, range(6, 16)) is None
    assert unequal(snapshot(ours), before) == []


@each("copied", [copy.deepcopy, pickled])
def test_copy_over_a_vector_trains_the_copied_module(copied):
    module = nn.Linear(2, 1)
    optimizer = SGD(ParameterVector(module), lr=0.1, momentum=0.9)
    new_module, new_optimizer = copied((module, optimizer))
    new_module(torch.ones(2)).backward()
    new_optimizer.step()
    assert_all(new_module.bias - module.bias, -0.1)


def test_buffers_that_a_checkpoint_made_do_not_dampen_the_first_step():
    """torch.distributed.checkpoint fills states by a step with zero gradients: D5."""
    module = nn.Linear(2, 1, bias=False)
    optimizer = SGD(module.parameters(), lr=1.0, momentum=0.9, dampening=0.5)
    get_optimizer_state_dict(module, optimizer)
    wrong = copy.deepcopy(optimizer.state_dict())
    wrong["state"][0]["momentum_buffer"] = torch.zeros(7)
    with pytest.raises(ValueError, match="another model"):
        optimizer.load_state_dict(wrong)  # "changes nothing" covers this, too
    for heir in (copy.deepcopy(optimizer), pickled(optimizer), optimizer):
        (weight,) = parameters_of(heir)
        weight.grad = torch.ones_like(weight)
        for expected in (1.0, 0.9 * 1.0 + 0.5):
            heir.step()
            assert_all(heir.state[weight]["momentum_buffer"], expected)


# Closures and hooks.


def test_closure_runs_once_before_the_update_with_gradients_enabled():
    """Trap 13: in no_grad as well; and its result comes back as it is."""
    x, calls, result = theta(3.0), [], object()

    def closure() -> object:
        calls.append(x.item())
        x.square().backward()
        return result

    optimizer = SGD([x], lr=0.25)
    with torch.no_grad():
        assert optimizer.step(closure) is result
        assert not torch.is_grad_enabled()
    assert calls == [3.0] and x.item() == 1.5
    assert optimizer.step() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_closure_that_raises_changes_nothing(enabled):
    x = theta(3.0)
    x.grad = torch.ones(1)
    with torch.set_grad_enabled(enabled):
        with pytest.raises(ZeroDivisionError):
            SGD([x], lr=0.1).step(lambda: 1 / 0)
        assert torch.is_grad_enabled() is enabled
    assert x.item() == 3.0


@pytest.mark.parametrize("optimizer_class", [SGD, torch.optim.SGD])
def test_pre_hooks_alone_see_the_step_and_may_change_its_arguments(
    optimizer_class: MakeOptimizer,
) -> None:
    """The panel has one: the step then goes without torch's record for a profiler."""
    x, calls = theta(3.0), []
    x.grad = torch.ones(1)
    optimizer = optimizer_class([x], lr=1.0)
    optimizer.register_step_pre_hook(lambda *given: calls.append((*given, x.item())))
    assert optimizer.step() is None
    assert calls == [(optimizer, (optimizer,), {}, 3.0)] and x.item() == 2.0
    optimizer.register_step_pre_hook(lambda self, *_: ((self, lambda: 5), {}))
    optimizer.register_step_pre_hook(lambda *given: calls.append(given))
    assert optimizer.step() == 5
    (_, (_, closure), kwargs), value = calls[-1], x.item()
    assert closure() == 5 and kwargs == {} and value == 1.0


def hook_calls(optimizer_class: MakeOptimizer) -> list[str]:
    """What hooks see of one step, one save and one load."""
    x, calls = theta(3.0), []
    x.grad = torch.ones(1)
    optimizer = optimizer_class([x], lr=1.0)

    def note(event: str) -> Callable[..., None]:
        return lambda *_: calls.append(f"{event} at {x.item()}")

    optimizer.register_step_pre_hook(note("before step"))
    optimizer.register_step_pre_hook(  # a hook may replace the arguments
        lambda self, args, kwargs: ((self, note("closure")), {})
    )
    optimizer.register_step_post_hook(note("after step"))
    optimizer.register_state_dict_pre_hook(note("before save"))
    optimizer.register_state_dict_post_hook(note("after save"))
    optimizer.register_load_state_dict_pre_hook(note("before load"))
    optimizer.register_load_state_dict_post_hook(note("after load"))
    of_all_optimizers = register_optimizer_step_post_hook(note("after any step"))
    try:
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        of_all_optimizers.remove()
    return calls


@each("optimizer_class", [SGD, torch.optim.SGD])
def test_hooks_run_once_and_in_torchs_order(optimizer_class):
    """Trap 14: a step that calls another step would run them twice."""
    assert hook_calls(optimizer_class) == [
        "before step at 3.0",
        "closure at 3.0",
        "after step at 2.0",
        "after any step at 2.0",
        "before save at 2.0",
        "after save at 2.0",
        "before load at 2.0",
        "after load at 2.0",
    ]


# Schedulers, scalers, compilation.


def sequence(optimizer: Optimizer) -> lr_scheduler.SequentialLR:
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.StepLR(optimizer, 2)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def chain(optimizer: Optimizer) -> lr_scheduler.ChainedScheduler:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "SequentialLR": sequence,
    "ChainedScheduler": chain,
} | {
    name: partial(getattr(lr_scheduler, name), **arguments)
    for name, arguments in {
        "LambdaLR": {"lr_lambda": lambda step: 1 / (1 + step)},
        "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
        "StepLR": {"step_size": 3},
        "MultiStepLR": {"milestones": [2, 5]},
        "ConstantLR": {"total_iters": 3},
        "LinearLR": {"total_iters": 6},
        "ExponentialLR": {"gamma": 0.9},
        "PolynomialLR": {"total_iters": 8, "power": 2},
        "CosineAnnealingLR": {"T_max": 8},
        "CosineAnnealingWarmRestarts": {"T_0": 4},
        "ReduceLROnPlateau": {"patience": 2},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
        "OneCycleLR": {"max_lr": 0.3, "total_steps": 12},
    }.items()
}


def test_every_scheduler_of_torch_is_tested():
    found = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler)
    }
    assert found - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys()


@each("make_lr", LRS)
@each("name", SCHEDULERS)
def test_scheduled_run_equals_torch(name, make_lr):
    """The two cyclic ones drive the momentum as well."""
    pair = twins(lambda: two_groups(make_lr=make_lr))
    schedulers = {optimizer: SCHEDULERS[name](optimizer) for optimizer in pair}
    metric = [1.0] if name == "ReduceLROnPlateau" else []

    def scheduled(optimizer: Optimizer, step: int) -> None:
        if step > 1:
            schedulers[optimizer].step(*metric)
        give_gradients(optimizer, step)

    assert first_difference(*pair, scheduled, range(1, 13)) is None


def scaled_run(
    optimizer_class: MakeOptimizer, **options: Any
) -> Iterator[dict[str, Tensor]]:
    """What stands after each of 8 steps; the gradients of the 1st and 5th overflow."""
    x = theta()
    optimizer = optimizer_class([x], lr=0.1, momentum=0.9, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(1, 9):
        optimizer.zero_grad()
        slope = math.inf if step in (1, 5) else float(step)
        scaler.scale(slope * x).backward()
        scaler.step(optimizer)
        scaler.update()
        yield copy.deepcopy(snapshot(optimizer))


@each("flags", [{}, {"foreach": True}, {"fused": True}])
def test_step_that_overflows_is_skipped(flags):
    """torch's fused SGD then takes uninitialised memory for a buffer: D1, trap 17."""
    ours, theirs = list(scaled_run(SGD, **flags)), list(scaled_run(TorchSGD))
    for mine, reference in zip(ours, theirs, strict=True):
        if flags.get("fused"):  # it rounds in other places
            torch.testing.assert_close(mine, reference)
        else:
            assert unequal(mine, reference) == []
    assert_all(ours[0]["parameter 0"], 1)
    assert "momentum_buffer 0" not in ours[0]
    assert unequal(ours[4], ours[3]) == ["gradient 0"]


def list_groups() -> list[dict[str, Any]]:
    return two_groups(make_lr=torch.tensor)


def vector_groups() -> list[dict[str, Any]]:
    vector = ParameterVector(nn.Linear(3, 2))
    nn.init.ones_(vector.theta)
    return [{"params": vector, "lr": torch.tensor(0.1), **EVERYTHING}]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@each("make_groups", [list_groups, vector_groups])
def test_step_is_compiled_twice_for_ten_values_of_lr(make_groups):
    """For the first step, which makes the buffers, and for all others.

    With a tensor lr; a float would be a constant of the compiled code. torch's SGD is
    compiled beside ours, because compilation itself changes how theta - lr * g rounds.
    """
    ours, theirs = twins(make_groups)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def give_all(optimizer: Optimizer, step: int) -> None:
        decay_lr(optimizer)
        torch.manual_seed(step)
        for p in parameters_of(optimizer):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.normal_()

    ours.step = torch.compile(ours.step, backend=backend)
    theirs.step = torch.compile(theirs.step, backend="eager")
    assert first_difference(ours, theirs, give_all, range(1, 11)) is None
    assert len(graphs) == 2
