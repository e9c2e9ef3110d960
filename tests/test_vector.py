"""One vector: the module lives in theta and its gradients in theta.grad."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from harness.optimizers import (
    Options,
    TorchSGD,
    each,
    first_difference,
    pickled,
    training_twins,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from minitrain.sgd import SGD
from minitrain.vector import ParameterVector

Cut = Callable[["Network", ParameterVector], Any]


class Network(nn.Module):
    """Has what is hard to lay flat: channels-last, 0-d, tied and frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.fixed = nn.Linear(4, 4).requires_grad_(False)
        self.left = nn.Linear(4, 3, bias=False)
        self.right = nn.Linear(4, 3)
        self.right.weight = self.left.weight

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return self.scale * (self.left(features) - self.right(self.fixed(features)))


NAMES = [
    "scale",
    "conv.weight",
    "conv.bias",
    "norm.weight",
    "norm.bias",
    "left.weight",
    "right.bias",
]

draw_images = partial(torch.randn, 5, 2, 6, 6)


def laid_out() -> tuple[Network, ParameterVector]:
    torch.manual_seed(0)
    network = Network()
    return network, ParameterVector(network)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def gradient_of(vector: ParameterVector) -> Tensor:
    assert vector.theta.grad is not None
    return vector.theta.grad


def assert_is_view(part: Tensor, flat: Tensor, whole: Tensor) -> None:
    """`part` and `flat` are the same memory, inside that of `whole`."""
    assert part.data_ptr() == flat.data_ptr()
    assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert part.shape == flat.shape and part.stride() == flat.stride()


# Layout.


def test_theta_holds_each_trainable_parameter_once_and_in_order():
    network, vector = laid_out()
    assert vector.names == NAMES  # tied weights once, frozen ones not at all
    assert list(vector) == [vector.theta]
    assert vector.theta.shape == (sum(p.numel() for p in trainable(network)),)
    whole = gradient_of(vector)
    parts, gradients = vector.split(vector.theta), vector.split(whole)
    for p, part, gradient in zip(trainable(network), parts, gradients, strict=True):
        assert_is_view(p, part, vector.theta)
        assert p.grad is not None
        assert_is_view(p.grad, gradient, whole)


def test_laying_out_changes_neither_values_nor_strides_nor_objects():
    network, images = Network().eval(), draw_images()
    params, output = trainable(network), network(images).detach()
    values = copy.deepcopy(params)
    vector = ParameterVector(network)
    for p, part, value in zip(params, trainable(network), values, strict=True):
        assert p is part  # whoever holds a parameter still holds the right one
        assert torch.equal(p, value) and p.stride() == value.stride()
    assert torch.equal(vector.theta[1:73], values[1].permute(0, 2, 3, 1).flatten())
    torch.testing.assert_close(network(images), output)
    assert network.right.weight is network.left.weight
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.conv.weight.grad.is_contiguous(memory_format=torch.channels_last)


@each("shape", [(), (0, 3), (1,), (1, 1, 1, 1), (4, 1, 1, 3)])
def test_parameters_of_any_shape(shape):
    module = nn.ParameterList([torch.ones(shape), torch.full((2, 3), 2.0).t()])
    vector = ParameterVector(module)
    assert vector.theta.tolist() == [1.0] * module[0].numel() + [2.0] * 6
    assert module[0].shape == shape
    assert module[1].stride() == (1, 3)


def test_writing_to_theta_is_writing_to_the_module_and_back():
    network, vector = laid_out()
    with torch.no_grad():
        vector.theta.fill_(2)
        assert all((p == 2).all() for p in trainable(network))
        network.scale.fill_(7)
        assert vector.theta[0] == 7
    network.load_state_dict(Network().state_dict())
    assert vector.theta[0] == 1.5


def test_gradient_is_one_vector():
    """The gradients of a plain network, one after the other as theta has them."""
    network, vector = laid_out()
    twin, images = copy.deepcopy(network), draw_images()
    gradient = gradient_of(vector)
    for accumulated in (1, 2):
        for module in (network, twin):
            module(images).square().sum().backward()
        assert vector.theta.grad is gradient
        parts = vector.split(gradient)
        for part, p in zip(parts, trainable(twin), strict=True):
            assert p.grad is not None and torch.equal(part, p.grad), accumulated
    vector.zero_grad()
    assert vector.theta.grad is gradient and not gradient.any()


def test_parameter_that_the_loss_does_not_reach_has_gradient_zero():
    network, vector = laid_out()
    network.scale.square().backward()
    assert vector.theta.grad.tolist() == [3.0] + [0.0] * (len(vector.theta) - 1)


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.ReLU(), "no trainable parameter"),
        (nn.Linear(2, 1).requires_grad_(False), "no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).half()), "1.weight is .*16"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).to("meta")),
            "1.weight .* meta",
        ),
    ],
    ids=["no parameters", "all frozen", "two dtypes", "two devices"],
)
def test_module_that_is_no_one_vector_is_refused(module, message):
    with pytest.raises(ValueError, match=message):
        ParameterVector(module)


# Training.


def test_training_equals_torch_over_a_list():
    torch.manual_seed(0)
    run = training_twins(
        Network(), draw_images, ParameterVector, lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    assert first_difference(*run, range(1, 21)) is None


def test_backward_through_overwritten_values_is_refused():
    """As in torch: parameters and theta count the same versions."""
    network, vector = laid_out()
    loss = network(draw_images()).square().sum()
    loss.backward(retain_graph=True)
    SGD(vector, lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each("depth", [1, 2])
def test_loss_from_before_the_layout_has_no_silent_backward(depth):
    """Its gradients could not reach theta.grad. torch refuses the layout where the loss
    needs a parameter's value (here of the second layer), else the backward pass."""
    module = nn.Sequential(*[nn.Linear(2, 2) for _ in range(depth)])
    loss = module(torch.ones(2)).sum()
    with pytest.raises(RuntimeError, match=r"poisoned by swap_tensors|use_count"):
        ParameterVector(module)
        loss.backward()


# Saving and copying.


def test_module_saves_and_loads_as_before():
    network, vector = laid_out()
    plain = Network()
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    for p, q in zip(plain.parameters(), network.parameters(), strict=True):
        assert torch.equal(p, q)
    with torch.no_grad():
        plain.scale.fill_(3)
    network.load_state_dict(plain.state_dict())
    assert vector.theta[0] == 3
    vector.check()


@each("copied", [copy.deepcopy, pickled])
def test_copy_of_the_module_is_a_module_of_its_own(copied):
    network, vector = laid_out()
    before = vector.theta.detach().clone()
    twin = copied(network)
    with torch.no_grad():
        for p in trainable(twin):
            p.add_(1)
    assert torch.equal(vector.theta, before)
    assert torch.equal(ParameterVector(twin).theta, before + 1)


@each("copied", [copy.deepcopy, pickled])
def test_copy_of_the_vector_is_over_a_copy_of_the_module(copied):
    network, vector = laid_out()
    before = vector.theta.detach().clone()
    twin_network, twin = copied((network, vector))
    assert twin.module is twin_network and twin.theta.vector is twin
    assert torch.equal(twin.theta, before)
    optimizer = SGD(twin, lr=0.1)
    twin_network(draw_images()).square().sum().backward()
    optimizer.step()
    assert twin_network.scale == twin.theta[0] != before[0]
    assert torch.equal(vector.theta, before) and not vector.theta.grad.any()


# Several vectors of one module.


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1


def is_no_matrix(name: str, parameter: nn.Parameter) -> bool:
    return not is_matrix(name, parameter)


def in_groups(network: nn.Module, as_vectors: bool = True) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    params: list[Any] = [
        ParameterVector(network, only=only)
        if as_vectors
        else [p for n, p in named if only(n, p)]
        for only in (is_matrix, is_no_matrix)
    ]
    return [{"params": params[0]}, {"params": params[1], "weight_decay": 0.0}]


GROUP_OPTIONS: Options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-2}
MATRICES = ["conv.weight", "left.weight"]


def test_parameters_are_those_of_the_module_in_its_order():
    network, vector = laid_out()
    pairs = zip(vector.parameters, trainable(network), strict=True)
    assert all(p is q for p, q in pairs)
    vector.parameters.clear()
    assert len(vector.parameters) == len(NAMES)


@each("only", [is_matrix, MATRICES, set(MATRICES), MATRICES[::-1]])
def test_vector_of_a_part_holds_what_was_chosen(only):
    network = Network()
    addresses = [p.data_ptr() for p in network.parameters()]
    vector = ParameterVector(network, only=only)
    assert vector.names == MATRICES
    assert vector.parameters[0] is network.conv.weight
    assert vector.parameters[1] is network.left.weight
    assert len(vector.theta) == 4 * 2 * 3 * 3 + 3 * 4
    rest = [
        p.data_ptr() == address
        for p, address in zip(network.parameters(), addresses, strict=True)
    ]
    assert rest.count(False) == 2 and network.conv.bias.grad is None


def test_training_in_two_groups_equals_torch_over_lists():
    torch.manual_seed(0)
    network = Network()
    twin = copy.deepcopy(network)
    ours = SGD(in_groups(network), **GROUP_OPTIONS)
    theirs = TorchSGD(in_groups(twin, as_vectors=False), **GROUP_OPTIONS)
    modules = {ours: network, theirs: twin}

    def backward(optimizer: Optimizer, step: int) -> None:
        optimizer.zero_grad()
        torch.manual_seed(step)
        modules[optimizer](draw_images()).square().mean().backward()

    assert first_difference(ours, theirs, backward, range(1, 21)) is None


@each("copied", [copy.deepcopy, pickled])
def test_copies_of_two_vectors_are_over_one_module(copied):
    """Also of a predicate that nobody can pickle: what it chose is remembered."""
    network = Network()
    matrices = ParameterVector(network, only=lambda name, p: p.dim() > 1)
    others = ParameterVector(network, only=lambda name, p: p.dim() <= 1)
    before = matrices.theta.detach().clone()
    twin_network, *twins = copied((network, matrices, others))
    assert [twin.names for twin in twins] == [matrices.names, others.names]
    optimizer = SGD([{"params": twin} for twin in twins], lr=0.1)
    twin_network(draw_images()).square().sum().backward()
    optimizer.step()
    assert twin_network.scale == twins[1].theta[0] != network.scale
    assert not torch.equal(twins[0].theta, before)
    assert torch.equal(matrices.theta, before) and not matrices.theta.grad.any()
    for vector in (matrices, others):
        vector.check()


@each("to_vectors", [True, False])
def test_state_of_two_lists_fits_two_vectors_and_back(to_vectors):
    torch.manual_seed(0)
    network = Network()
    twin = copy.deepcopy(network)
    before = SGD(in_groups(network, not to_vectors), **GROUP_OPTIONS)
    trained(None, network, 3, before)
    twin.load_state_dict(network.state_dict())
    heir = SGD(in_groups(twin, to_vectors), lr=7.0, momentum=0.1)
    heir.load_state_dict(before.state_dict())
    trained(None, network, 3, before)
    trained(None, twin, 3, heir)
    for p, q in zip(twin.parameters(), network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_cut_in_one_of_two_vectors_stops_both():
    network = Network()
    optimizer = SGD(in_groups(network), **GROUP_OPTIONS)
    network(draw_images()).sum().backward()
    before = copy.deepcopy(network.state_dict())
    network.norm.weight.grad = None
    with pytest.raises(RuntimeError, match=r"^the gradient of norm\.weight "):
        optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    optimizer.zero_grad()
    assert network.norm.weight.grad is not None
    optimizer.step()
    ParameterVector(network, only=["conv.weight", "scale"])
    with pytest.raises(RuntimeError, match=r"^conv\.weight is no longer"):
        optimizer.step()


# A state goes from a list of the parameters to their vector, and back.


def trained(params: Any, network: Network, steps: int, optimizer: Any = None) -> SGD:
    optimizer = optimizer or SGD(params, lr=0.01, momentum=0.9)
    for seed in range(steps):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        network(draw_images()).square().sum().backward()
        optimizer.step()
    return optimizer


@each("to_vector", [True, False])
def test_state_of_a_list_fits_the_vector_and_back(to_vector):
    torch.manual_seed(0)
    network, twin = Network(), copy.deepcopy(laid_out()[0])
    params = ParameterVector(network) if not to_vector else trainable(network)
    before = trained(params, network, 3)
    twin.load_state_dict(network.state_dict())
    params = ParameterVector(twin) if to_vector else trainable(twin)
    heir = SGD(params, lr=7.0, momentum=0.1)
    heir.load_state_dict(before.state_dict())
    trained(None, network, 3, before)
    trained(None, twin, 3, heir)
    assert twin.state_dict().keys() == network.state_dict().keys()
    for p, q in zip(twin.parameters(), network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_buffers_missing_in_a_list_are_zero_in_the_vector():
    network = nn.Linear(2, 1)
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.bias.grad = torch.ones(1)
    optimizer.step()
    heir = SGD(ParameterVector(network), lr=0.1, momentum=0.9)
    heir.load_state_dict(optimizer.state_dict())
    (state,) = heir.state.values()
    assert state["momentum_buffer"].tolist() == [0, 0, 1]


@each("to_vector", [True, False])
def test_state_of_other_parameters_is_refused(to_vector):
    wide, narrow = nn.Linear(3, 1), nn.Linear(2, 1)
    params = ParameterVector(wide) if not to_vector else wide.parameters()
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    wide(torch.ones(3)).backward()
    optimizer.step()
    own = ParameterVector(narrow) if to_vector else list(narrow.parameters())
    heir = SGD(own, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"has shape .*: the state dict belongs to an"):
        heir.load_state_dict(optimizer.state_dict())
    assert not heir.state


# Whatever cuts the module off is noticed, by name, before anything is updated.


# kind: (what is done, the name that the error gives)
CUT_PARAMETERS: dict[str, tuple[Cut, str]] = {
    "cast": (lambda net, vector: net.double(), "scale"),
    "moved": (lambda net, vector: net.norm.to("meta"), "norm.weight"),
    "frozen": (lambda net, vector: net.left.requires_grad_(False), "left.weight"),
    "laid out again": (lambda net, vector: ParameterVector(net.conv), "conv.weight"),
    "replaced": (
        lambda net, vector: setattr(net.right, "bias", nn.Parameter(torch.zeros(3))),
        "right.bias",
    ),
    "assigned": (
        lambda net, vector: net.load_state_dict(Network().state_dict(), assign=True),
        "scale",
    ),
}
CUT_GRADIENTS: dict[str, tuple[Cut, str]] = {
    "module.zero_grad": (lambda net, vector: net.zero_grad(), "scale"),
    "torch's zero_grad": (
        lambda net, vector: torch.optim.SGD(vector).zero_grad(),
        "theta.grad",
    ),
    "replaced": (
        lambda net, vector: setattr(net.conv.bias, "grad", torch.zeros(4)),
        "conv.bias",
    ),
    "replaced as a whole": (
        lambda net, vector: setattr(vector.theta, "grad", vector.theta.grad.clone()),
        "theta.grad",
    ),
}


@pytest.mark.parametrize(
    "cut, name",
    [*CUT_PARAMETERS.values(), *CUT_GRADIENTS.values()],
    ids=[f"parameter {k}" for k in CUT_PARAMETERS]
    + [f"gradient {k}" for k in CUT_GRADIENTS],
)
def test_cut_is_reported_before_any_update(cut, name):
    network, vector = laid_out()
    other = nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": [other]}, {"params": vector}], lr=0.1, momentum=0.9)
    (network(draw_images()).sum() + other.sum()).backward()
    before = vector.theta.detach().clone()
    cut(network, vector)
    with pytest.raises(RuntimeError, match=f"^(the gradient of )?{name} "):
        optimizer.step()
    assert torch.equal(vector.theta, before) and torch.equal(other, torch.ones(2))
    assert not optimizer.state


@each("kind", CUT_GRADIENTS)
def test_zero_grad_joins_gradients_that_were_cut_off(kind):
    network, vector = laid_out()
    CUT_GRADIENTS[kind][0](network, vector)
    vector.zero_grad()
    vector.check()
    network(draw_images()).square().sum().backward()
    assert vector.theta.grad[0] == network.scale.grad != 0


@each("kind", CUT_PARAMETERS)
def test_zero_grad_does_not_hide_that_a_parameter_was_cut_off(kind):
    network, vector = laid_out()
    cut, name = CUT_PARAMETERS[kind]
    cut(network, vector)
    with pytest.raises(RuntimeError, match=f"^{name} "):
        vector.zero_grad()
