"""The rule: torch.optim.SGD to the last bit, and the right numbers where torch errs.

"Trap n" is one of the 21 traps of a hand-written SGD, "defect Dn" one of torch's own;
what an optimizer does around the rule is tested in test_sgd_optimizer.py.
"""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from harness.optimizers import (
    DTYPES,
    LATE,
    LRS,
    OPTIONS,
    MakeOptimizer,
    TorchSGD,
    assert_all,
    each,
    first_difference,
    give_gradients,
    parameters_of,
    snapshot,
    training_twins,
    twins,
    two_groups,
    unequal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

import minitrain.blocks
import minitrain.sgd
from minitrain.sgd import SGD, sgd_update
from minitrain.vector import ParameterVector


def difference_from_torch(
    optimizer_class: MakeOptimizer, *arguments: Any
) -> str | None:
    """Where a class first differs from torch's SGD, in 50 steps over `two_groups`."""
    ours = optimizer_class(two_groups(*arguments))
    return first_difference(ours, TorchSGD(two_groups(*arguments)), give_gradients)


# The table: traps 1 to 5 and 9 to 11, in every combination.


@each("options", OPTIONS)
@each("make_lr", LRS)
@each("dtype", DTYPES)
def test_equals_torch(dtype, make_lr, options):
    assert difference_from_torch(SGD, dtype, options, make_lr) is None


@each("options", OPTIONS)
@each("make_lr", LRS[:2])
@each("dtype", [torch.float64, torch.float32])
def test_vector_equals_torch_over_a_list(dtype, make_lr, options):
    """With the gradients of a network, which backward writes into the vector."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 2 * 2, 3),
    ).to(dtype)
    images = partial(torch.randn, 4, 2, 4, 4, dtype=dtype)
    run = training_twins(network, images, ParameterVector, lr=make_lr(0.1), **options)
    assert first_difference(*run) is None


@each("foreach", [True, False])
@each("options", OPTIONS)
def test_foreach_changes_no_bit(options, foreach):
    flagged = partial(SGD, foreach=foreach)
    assert difference_from_torch(flagged, torch.float32, options) is None


@each("block", [4, 20])
@each("options", OPTIONS)
@each("dtype", DTYPES)
def test_blocks_change_no_bit(dtype, options, block, monkeypatch):
    """Tensors of up to 24 elements, cut into parts of 4, or three to a block."""
    monkeypatch.setattr(minitrain.blocks, "BLOCK", block)
    assert difference_from_torch(SGD, dtype, options) is None


@each("options", [o for o in OPTIONS if o["momentum"]])
@each("dtype", [torch.float32, torch.float64])
def test_large_tensors_change_no_bit(dtype, options):
    """Cut into two and a part, and shared among threads, which cut them elsewhere."""
    start = torch.randn(2 * minitrain.blocks.BLOCK + 12_345, dtype=dtype)
    pair = twins(lambda: [{"params": [start.clone(), start[:9].clone()], **options}])

    def give(optimizer: Optimizer, step: int) -> None:
        torch.manual_seed(step)
        for p in parameters_of(optimizer):
            p.grad = torch.randn_like(p)

    assert first_difference(*pair, give, range(2)) is None


@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_equals_torch_for_any_options(data):
    """Options, shapes, dtypes and patterns of gradients that nobody thought of."""

    def number(low: float, high: float) -> float:
        return data.draw(st.floats(low, high, allow_subnormal=False))

    momentum = number(0, 1.2)
    nesterov = momentum > 0 and data.draw(st.booleans())
    options = {
        "lr": number(0, 1),
        "momentum": momentum,
        "dampening": 0 if nesterov else number(-1, 2),
        "weight_decay": number(0, 0.1),
        "nesterov": nesterov,
        "maximize": data.draw(st.booleans()),
    }
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = st.lists(st.integers(0, 9), max_size=3)
    shapes = data.draw(st.lists(shape, min_size=1, max_size=4))
    present = st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes))
    pattern = data.draw(st.lists(present, min_size=1, max_size=6))

    def give(optimizer: Optimizer, step: int) -> None:
        torch.manual_seed(step)
        for p, has_gradient in zip(
            parameters_of(optimizer), pattern[step], strict=True
        ):
            p.grad = torch.randn_like(p) if has_gradient else None

    ours, theirs = twins(
        lambda: [{"params": [torch.ones(s, dtype=dtype) for s in shapes], **options}]
    )
    assert first_difference(ours, theirs, give, range(len(pattern))) is None


@each("dtype", [torch.float32, torch.float64])
@each("options", OPTIONS)
def test_fused_step_differs_by_rounding_alone(options, dtype):
    """By no more than the docstring says; and the gradient stays as it was."""
    torch.manual_seed(0)
    num = 40_000 + 5
    start, grad, buf = (torch.randn(num, dtype=dtype) for _ in range(3))
    fused, plain = (
        optimizer_class([start.clone()], lr=0.1, **options)
        for optimizer_class in (partial(SGD, fused=True), TorchSGD)
    )
    for optimizer in (fused, plain):
        (theta,) = parameters_of(optimizer)
        theta.grad = grad.clone()
        if options["momentum"]:
            optimizer.state[theta]["momentum_buffer"] = buf.clone()
        optimizer.step()
        assert torch.equal(theta.grad, grad)
    eps = 4 * torch.finfo(dtype).eps
    sizes = options["momentum"] * buf.abs() + options["weight_decay"] * start.abs()
    sizes += (1 - options["dampening"]) * grad.abs()
    bounds = {"momentum_buffer 0": eps * sizes, "gradient 0": 0 * grad}
    bounds["parameter 0"] = eps * (start.abs() + 0.1 * 2 * (sizes + grad.abs()))
    reference = snapshot(plain)
    for name, value in snapshot(fused).items():
        assert ((value - reference[name]).abs() <= bounds[name]).all()


@each("options", OPTIONS)
def test_fused_steps_stay_close(options):
    """With late gradients too, at which torch's fused SGD stops: defect D3, trap 20."""
    ours = SGD(two_groups(options=options), fused=True)
    theirs = TorchSGD(two_groups(options=options))
    for step in range(50):
        for optimizer in (ours, theirs):
            give_gradients(optimizer, step)
            optimizer.step()
    reference = snapshot(theirs)
    for name, value in snapshot(ours).items():
        torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-5)


@each("make_lr", LRS)
def test_options_may_change_between_steps(make_lr):
    """A step with lr = 0 moves the buffers (trap 8), momentum off and on resumes the
    old buffer (trap 7), nesterov without momentum is ignored (trap 5)."""
    changes = {
        12: {"lr": make_lr(0.0)},
        15: {"lr": make_lr(0.2), "momentum": 0, "nesterov": True, "dampening": 0},
        22: {"momentum": 0.8, "nesterov": False, "dampening": 0.1},
        28: {"weight_decay": 0.1, "maximize": False},
    }

    def change(optimizer: Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group |= copy.deepcopy(changes.get(step, {}))
        give_gradients(optimizer, step)

    groups = partial(two_groups, make_lr=make_lr)
    assert first_difference(*twins(groups), change) is None


# Mutants: mistakes that others have made, and that the table has to report.


def rounded_twice(param, grad, buf, *, lr, **options):
    """Trap 1: theta - lr * b, where theta.add(b, alpha=-lr) rounds once."""
    before = param.clone()
    buf = sgd_update(param, grad, buf, lr=lr, **options)
    param.copy_(before - lr * buf)
    return buf


def dampened_first_step(param, grad, buf, **options):
    """Trap 2: a buffer that starts at zero."""
    return sgd_update(
        param, grad, torch.zeros_like(param) if buf is None else buf, **options
    )


class GlobalFirstStep:
    """Trap 2: after the optimizer's first step, all parameters count as started."""

    def __init__(self):
        self.is_over = False

    def __call__(self, param, grad, buf, **options):
        self.is_over |= buf is not None
        rule = dampened_first_step if self.is_over else sgd_update
        return rule(param, grad, buf, **options)


def aliased_buffer(param, grad, buf, **options):
    """Trap 3: a first buffer that is the gradient, not a copy of it."""
    new = sgd_update(param, grad, buf, **options)
    assert new is not None
    return grad if buf is None and torch.equal(new, grad) else new


def ascent_by_the_sign_of_lr(param, grad, buf, *, lr, maximize, **options):
    """Trap 4: weight decay becomes growth."""
    return sgd_update(param, grad, buf, lr=-lr if maximize else lr, **options)


def decay_after_momentum(param, grad, buf, *, lr, weight_decay, **options):
    decay = param * weight_decay
    buf = sgd_update(param, grad, buf, lr=lr, **options)
    param.sub_(decay, alpha=lr)
    return buf


def lr_inside_buffer(param, grad, buf, *, lr, weight_decay, **options):
    """The convention of Keras: each gradient keeps the lr of its own step."""
    return sgd_update(
        param, grad * lr, buf, lr=1, weight_decay=weight_decay * lr, **options
    )


SOME = torch.linspace(1, 2, 99)
rounds_twice_here = pytest.mark.skipif(
    torch.equal(SOME.add(SOME, alpha=0.1), SOME + 0.1 * SOME),
    reason="torch itself rounds twice on a processor without fused multiply-add",
)


@pytest.mark.parametrize(
    "mutant, step",
    [
        pytest.param(rounded_twice, 1, marks=rounds_twice_here),
        (dampened_first_step, 1),
        (GlobalFirstStep(), LATE),
        (aliased_buffer, LATE + 1),  # when the gradient is written anew
        (ascent_by_the_sign_of_lr, 1),
        (decay_after_momentum, 1),
        (lr_inside_buffer, 1),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_mutant_is_reported_at_the_step_where_it_errs(mutant, step, monkeypatch):
    monkeypatch.setattr(minitrain.sgd, "sgd_update", mutant)
    report = difference_from_torch(SGD)
    assert report is not None and report.startswith(f"step {step}:")


# One parameter and a few steps: what can be checked by hand.


def walk(
    optimizer_class: MakeOptimizer, *grads: float | None, **options: Any
) -> dict[str, Tensor]:
    """Where theta = (1, 1) comes to with these gradients, one for each step."""
    theta = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optimizer_class([theta], **options)
    for grad in grads:
        theta.grad = None if grad is None else torch.full_like(theta, grad)
        optimizer.step()
    return snapshot(optimizer)


def test_descent_of_the_paraboloid():
    """On x^2 + y^2 each step multiplies theta by 1 - 2 lr, here by 1/2: exactly."""
    start = torch.tensor([3.0, 4.0])
    theta = nn.Parameter(start.clone())
    optimizer = SGD([theta], lr=0.25)
    for step in range(1, 11):
        optimizer.zero_grad()
        theta.square().sum().backward()
        optimizer.step()
        assert torch.equal(theta, start / 2**step)


def test_lr_scales_the_whole_buffer_when_it_drops():
    """b = 1, 1.9, 2.71, 3.439: theta = -0.35149, where lr inside b gives -0.6439."""
    theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    theta.grad = torch.ones_like(theta)
    optimizer = SGD([theta], momentum=0.9)
    for lr in (0.1, 0.1, 0.01, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert_all(theta, -0.35149)


def test_no_gradient_is_not_a_zero_gradient():
    """Trap 9: without one nothing moves, with a zero theta decays and drifts."""
    options = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.1}
    stays, moves = walk(SGD, 1.0, None, **options), walk(SGD, 1.0, 0.0, **options)
    assert_all(stays["momentum_buffer 0"], 1.1)
    assert_all(stays["parameter 0"], 1 - 0.5 * 1.1)
    assert_all(moves["parameter 0"], 0.45 - 0.5 * (0.5 * 1.1 + 0.1 * 0.45))


@each("options", [{"lr": 0.0, "momentum": 0.9}, {"momentum": 0.9, "dampening": 1}])
@each("optimizer_class", [SGD, torch.optim.SGD])
def test_zero_times_infinity_is_not_skipped(optimizer_class, options):
    """Trap 8: neither lr = 0 nor dampening = 1 hides a gradient that overflowed."""
    assert walk(optimizer_class, 1.0, torch.inf, **options)["parameter 0"].isnan().all()


@each(
    "options",
    [
        {"foreach": True},  # torch's leaves 1.9 in the gradient: defect D2
        {"fused": True},
        {"weight_decay": torch.tensor(0.1, requires_grad=True)},  # 1.1: defect D4
    ],
)
def test_gradient_is_never_written_to(options):
    end = walk(SGD, 1.0, lr=0.1, momentum=0.9, nesterov=True, **options)
    assert_all(end["gradient 0"], 1)  # trap 11


def test_frozen_parameter_with_a_gradient_left_over_still_steps():
    theta = nn.Parameter(torch.ones(2))
    theta.grad = torch.ones(2)
    theta.requires_grad_(False)
    SGD([theta], lr=0.5).step()
    assert_all(theta, 0.5)  # trap 9


def test_update_is_in_place_and_leaves_no_history():
    """Trap 12: the same memory and strides, a new version, nothing for autograd."""
    optimizer = SGD(two_groups())
    params = parameters_of(optimizer)
    before = [(p.data_ptr(), p.stride(), p._version) for p in params]
    for step in (LATE + 1, LATE + 2):
        give_gradients(optimizer, step)
        optimizer.step()
    for p, (address, stride, version) in zip(params, before, strict=True):
        assert (p.data_ptr(), p.stride()) == (address, stride)
        assert p._version > version
        assert p.is_leaf and p.requires_grad
        assert not optimizer.state[p]["momentum_buffer"].requires_grad


def test_backward_through_overwritten_values_is_refused():
    theta = nn.Parameter(torch.ones(2))
    loss = theta.square().sum()
    loss.backward(retain_graph=True)
    SGD([theta], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # trap 12: an update of theta.data would go unnoticed


def test_parameters_in_shared_memory_are_updated_one_after_the_other():
    memory = torch.ones(3)
    params = [nn.Parameter(memory), nn.Parameter(memory)]
    for p in params:
        p.grad = torch.zeros(3)
    SGD(params, lr=1, weight_decay=0.5).step()
    assert_all(memory, 0.25)  # trap 18: 1, 0.5, 0.25; both at once would give 0


@each("optimizer_class", [SGD, torch.optim.SGD])
def test_parameter_listed_twice_finds_no_buffer_twice(optimizer_class):
    theta = nn.Parameter(torch.zeros(1))
    theta.grad = torch.ones(1)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = optimizer_class([theta, theta], lr=1, momentum=0.5)
    optimizer.step()
    assert_all(theta, -2)  # trap 19: with a look-up in between, -2.5


@each("is_same", [False, True])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with dupl")
def test_momentum_in_shared_memory_equals_torch(is_same):
    """Overlapping parameters, and one listed twice, over several steps."""

    def walked(make):
        torch.manual_seed(0)
        memory = torch.randn(5000)
        params = [nn.Parameter(memory[:4000]), nn.Parameter(memory[1000:])]
        params = params[:1] * 2 if is_same else params
        optimizer = make(params, lr=0.1, momentum=0.9)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        return memory

    plain = walked(partial(torch.optim.SGD, foreach=False))
    assert torch.equal(walked(SGD), plain)


# Sparse gradients: trap 15.


@each("options", [o for o in OPTIONS if not o["weight_decay"]])
def test_sparse_gradients_equal_torch(options):
    rows = partial(torch.randint, 9, size=(4,))
    run = training_twins(nn.Embedding(9, 3, sparse=True), rows, lr=0.1, **options)
    assert first_difference(*run, range(1, 11)) is None
    for state in run[0].state.values():
        assert state["momentum_buffer"].is_sparse


def test_sparse_gradient_with_weight_decay_changes_nothing():
    dense, embedding = nn.Linear(2, 2), nn.Embedding(5, 2, sparse=True)
    decayed = {"params": embedding.parameters(), "weight_decay": 0.1}
    optimizer = SGD([{"params": dense.parameters()}, decayed], lr=0.1, momentum=0.9)
    dense(embedding(torch.tensor([1, 3]))).sum().backward()
    before = copy.deepcopy(snapshot(optimizer))
    with pytest.raises(RuntimeError, match="parameter 0 has a sparse gradient"):
        optimizer.step()
    assert unequal(snapshot(optimizer), before) == []


# Differentiable mode: an update that gradients flow through.


@each("options", [o for o in OPTIONS if not o["weight_decay"]])
def test_hypergradients_equal_finite_differences(options):
    """Of theta after three steps, by theta before them, by lr and by weight decay.

    torch's SGD raises for lr with momentum and takes the first buffer for a constant.
    """

    def end(start: Tensor, lr: Tensor, weight_decay: Tensor) -> Tensor:
        theta = start.clone()
        learned = {"lr": lr, "weight_decay": weight_decay}
        optimizer = SGD([theta], differentiable=True, **options | learned)
        for _ in range(3):
            theta.grad = theta.clone().sinh()  # the gradient of cosh
            optimizer.step()
        return theta

    values = ([0.5, -1.0], 0.1, 0.2)
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    assert torch.autograd.gradcheck(end, inputs)
