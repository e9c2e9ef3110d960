"""Every module becomes a vector that trains as a list does, or is refused untouched."""

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.optimizers import each, first_difference, training_twins
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from minitrain.placing import Only
from minitrain.sgd import SGD
from minitrain.vector import ParameterVector

OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
USE_A_LIST = r"SGD\(model\.parameters\(\)\)"


class Recurrent(nn.Module):
    """The outputs of an RNN alone, without its states."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rnn(inputs)[0]


class Complex(nn.Module):
    """|W x|, of a complex matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.complex64) @ self.weight.t()).abs()


class Buffered(nn.Linear):
    """Has buffers of other dtypes than its parameters."""

    count: Tensor
    phase: Tensor

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        return super().forward(inputs) * self.phase.real * self.count


def tied() -> nn.Module:
    """A weight in a first and a last place, and a module in two."""
    shared, first, last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    last.weight = first.weight
    return nn.Sequential(first, shared, nn.Tanh(), shared, last)


def lazy(has_seen_a_batch: bool = True) -> nn.Module:
    module = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    if has_seen_a_batch:
        module(torch.zeros(1, 3))
    return module


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Recurrent(nn.RNN(3, 4, nonlinearity="relu")),
    "GRU": lambda: Recurrent(nn.GRU(3, 4, num_layers=2, batch_first=True)),
    "LSTM": lambda: Recurrent(nn.LSTM(3, 4, bidirectional=True, proj_size=2)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 2)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "tied and shared": tied,
    "lazy after a batch": lazy,
    "complex": Complex,
    "buffers of other dtypes": Buffered,
    "DataParallel": lambda: nn.DataParallel(nn.Linear(3, 2)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@each("kind", TRAINED)
def test_training_equals_a_list(kind):
    torch.manual_seed(0)
    draw = partial(torch.randn, 5, 6, 3)
    run = training_twins(TRAINED[kind](), draw, ParameterVector, **OPTIONS)
    assert first_difference(*run, range(1, 11)) is None


def train_both(
    networks: tuple[nn.Module, nn.Module], optimizers: tuple[SGD, SGD]
) -> None:
    """Three steps of each on the same inputs."""
    for _ in range(3):
        inputs = torch.randn(5, 4, 3)
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()


def assert_equal_parameters(module: nn.Module, twin: nn.Module) -> None:
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def alike(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two modules of the same values, neither of which is a copy."""
    module, twin = make(), make()
    twin.load_state_dict(module.state_dict())
    return module, twin


def test_parametrized_rnn_trains_as_a_list():
    """It keeps a weight with its graph from one pass to the next."""
    module, twin = alike(
        lambda: Recurrent(parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"))
    )
    module(torch.ones(1, 1, 3))
    train_both((module, twin), (SGD(ParameterVector(module)), SGD(twin.parameters())))
    assert_equal_parameters(module, twin)


@pytest.mark.filterwarnings("ignore")
@each("before", [True, False])
def test_compiled_module_trains_as_a_list(before):
    """The vector may be made before torch.compile, or after a compiled pass."""
    module, twin = alike(lambda: nn.Linear(3, 2))
    vector = ParameterVector(module) if before else None
    compiled: Any = torch.compile(module, backend="eager")
    compiled(torch.ones(1, 3)).sum().backward()
    vector = vector or ParameterVector(compiled)
    train_both((compiled, twin), (SGD(vector), SGD(twin.parameters())))
    assert_equal_parameters(module, twin)


def test_rnn_has_its_weak_references_anew():
    """Also through functional_call, for which it looks at them, and after a refusal."""
    rnn = nn.GRU(3, 4)
    held = weakref.ref(rnn.bias_hh_l0)
    inputs = torch.randn(2, 5, 3)
    twin = copy.deepcopy(rnn)
    with pytest.raises(ValueError, match=r"^bias_hh_l0 .* weak reference"):
        ParameterVector(rnn)
    del held
    for _ in range(2):
        zeros = {name: torch.zeros_like(p) for name, p in rnn.named_parameters()}
        assert not torch.func.functional_call(rnn, zeros, (inputs,))[0].any()
        assert torch.equal(rnn(inputs)[0], twin(inputs)[0])
        ParameterVector(rnn)
    vector = ParameterVector(rnn)
    gradient: Any = vector.theta.grad
    rnn(inputs)[0].square().sum().backward()
    twin(inputs)[0].square().sum().backward()
    for p, part in zip(twin.parameters(), vector.split(gradient), strict=True):
        assert p.grad is not None and torch.equal(p.grad, part)


def test_rnn_does_not_flatten_its_parameters_again(monkeypatch):
    """On a GPU that would give them memory outside of theta."""
    rnn, inputs = nn.GRU(3, 4), torch.randn(2, 5, 3)
    zeros = {name: torch.zeros_like(p) for name, p in rnn.named_parameters()}
    torch.func.functional_call(rnn, zeros, (inputs,))
    calls: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", calls.append)
    ParameterVector(rnn)
    rnn(inputs)
    assert calls == []


# What hangs on a parameter goes along.


def test_hooks_and_attributes_of_a_parameter_stay():
    module, calls = nn.Linear(2, 1), []
    weight: Any = module.weight
    weight.is_embedding = True
    doubling = weight.register_hook(lambda grad: 2 * grad)
    counting = weight.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    vector = ParameterVector(module)
    assert weight.is_embedding
    module(torch.ones(2)).backward()
    assert vector.theta.grad.tolist() == [2, 2, 1]
    assert len(calls) == 1 and calls[0] is weight
    doubling.remove()
    counting.remove()
    vector.zero_grad()
    module(torch.ones(2)).backward()
    assert vector.theta.grad.tolist() == [1, 1, 1] and len(calls) == 1


# Whatever cannot become a vector is refused by name, and nothing has changed.


def evidence(module: nn.Module) -> list[Any]:
    """All that a half-made move would change, as far as the parameters have it."""
    found: list[Any] = []
    for name, p in module.named_parameters():
        found += [name, p, p._backward_hooks, dict(p.__dict__)]
        if not nn.parameter.is_lazy(p):
            found += [] if p.is_inference() else [p._version]
            found += [p.grad] if p.is_leaf else []
            found += [p.data_ptr()] if p.layout == torch.strided else []
    return found


def assert_untouched(before: list[Any], after: list[Any]) -> None:
    for x, y in zip(before, after, strict=True):
        assert x is y if isinstance(x, Tensor) else x == y


def on(parameter: nn.Parameter) -> Any:
    """A module in which a good parameter comes before the bad one."""
    module = nn.Module()
    module.good = nn.Parameter(torch.ones(2))
    module.bad = parameter
    return module


def sharing() -> nn.Module:
    whole = torch.zeros(6)
    module = on(nn.Parameter(whole[1:4]))
    module.worse = nn.Parameter(whole[3:])
    return module


def viewed_by_a_buffer() -> nn.Module:
    module = on(nn.Parameter(torch.zeros(3)))
    module.register_buffer("view", module.bad.detach()[1:])
    return module


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        parameter = nn.Parameter(torch.zeros(3))
    return on(parameter)


def with_gradients_of_another_dtype() -> nn.Module:
    module = on(nn.Parameter(torch.zeros(3)))
    module.bad.grad_dtype = torch.float64
    return module


def computed() -> nn.Module:
    parameter = nn.Parameter(torch.zeros(3), requires_grad=False)
    module = on(parameter)
    parameter.add_(torch.ones(3, requires_grad=True))
    return module


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.Linear(2, 2), nn.utils.weight_norm(nn.Linear(2, 2)))


class Special(nn.Parameter):
    """A parameter that is more than a parameter."""


# kind: (the module, the exception, what it says)
REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "lazy": (
        lambda: lazy(False),
        ValueError,
        rf"^0\.weight .*run one batch first.*{USE_A_LIST}",
    ),
    "lazy at last": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)),
        ValueError,
        rf"^1\.weight .*run one batch first.*{USE_A_LIST}",
    ),
    "meta": (
        lambda: nn.Linear(2, 1, device="meta"),
        ValueError,
        "^weight .* meta .*values",
    ),
    "sparse": (
        lambda: on(nn.Parameter(torch.eye(2).to_sparse())),
        ValueError,
        f"^bad .* torch.sparse_coo.*{USE_A_LIST}",
    ),
    "expanded": (
        lambda: on(nn.Parameter(torch.zeros(1).expand(3))),
        ValueError,
        "^bad overlaps itself .*: clone it",
    ),
    "unfolded": (
        lambda: on(nn.Parameter(torch.zeros(5).unfold(0, 3, 1))),
        ValueError,
        "^bad overlaps itself .*: clone it",
    ),
    "two that share": (
        sharing,
        ValueError,
        f"^bad and worse overlap .*{USE_A_LIST}",
    ),
    "a buffer's": (
        viewed_by_a_buffer,
        ValueError,
        f"^bad and view overlap .*{USE_A_LIST}",
    ),
    "shared by processes": (
        lambda: on(nn.Parameter(torch.zeros(3).share_memory_())),
        ValueError,
        f"^bad .* processes.*{USE_A_LIST}",
    ),
    "inference": (made_for_inference, ValueError, "^bad .*inference_mode.*: leave it"),
    "gradient's dtype": (
        with_gradients_of_another_dtype,
        ValueError,
        f"^bad .* dtype, torch.float64.*{USE_A_LIST}",
    ),
    "computed": (computed, ValueError, "^bad is computed .*: detach it"),
    "real and complex": (
        lambda: nn.Sequential(nn.Linear(2, 2), Complex()),
        ValueError,
        rf"^1\.weight is torch\.complex64.*{USE_A_LIST}",
    ),
    "subclass": (
        lambda: on(Special(torch.zeros(3))),
        TypeError,
        f"^bad is a Special.*{USE_A_LIST}",
    ),
    "old weight_norm": (
        old_weight_norm,
        RuntimeError,
        rf"^1\.weight_g is in use.*{USE_A_LIST}",
    ),
}


@each("kind", REFUSED)
def test_refusal_names_the_parameter_and_changes_nothing(kind):
    make, error, message = REFUSED[kind]
    module = make()
    before = evidence(module)
    with pytest.raises(error, match=message):
        ParameterVector(module)
    assert_untouched(before, evidence(module))


def test_refusal_keeps_the_gradients_and_hooks():
    module: Any = nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 1))
    module[1].weight.register_hook(lambda grad: grad)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    held = weakref.ref(module[1].bias)
    before = evidence(module)
    with pytest.raises(ValueError, match=rf"^1\.bias .* weak .*{USE_A_LIST}"):
        ParameterVector(module)
    assert_untouched(before, evidence(module))
    assert held() is module[1].bias


def test_waiting_loss_is_refused_and_can_still_go_backward():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    loss = module(torch.ones(2)).square().sum()
    before = evidence(module)
    with pytest.raises(RuntimeError, match=rf"^0\.weight is in use .*{USE_A_LIST}"):
        ParameterVector(module)
    assert_untouched(before, evidence(module))
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    del loss
    ParameterVector(module).check()


def test_failing_move_is_taken_back(monkeypatch):
    module: Any = nn.Sequential(nn.GRU(2, 2), nn.Linear(2, 1))
    module[0].weight_ih_l0.register_hook(lambda grad: grad)
    module[0].weight_ih_l0.tag = "first"
    module[1].bias.grad = torch.ones(1)
    before, swap, pairs = evidence(module), torch.utils.swap_tensors, []

    def fail_at_the_last(p, q):
        pairs.append((p, q))
        if p is module[1].bias:
            raise RuntimeError("planted")
        swap(p, q)

    monkeypatch.setattr(torch.utils, "swap_tensors", fail_at_the_last)
    with pytest.raises(RuntimeError, match="planted"):
        ParameterVector(module)
    assert len(pairs) == 6 + 5
    assert_untouched(before, evidence(module))
    monkeypatch.undo()
    pairs.clear()
    ParameterVector(module).check()


def test_inside_inference_mode_no_vector_is_made():
    module = nn.Linear(2, 1)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"^weight .*torch\.inference_mode"),
    ):
        ParameterVector(module)


@each("params", [[nn.Parameter(torch.ones(2))], nn.Linear(2, 1).parameters(), None])
def test_what_is_no_module_is_refused(params):
    with pytest.raises(TypeError, match=rf"is not a module: .*{USE_A_LIST}"):
        ParameterVector(params)


@pytest.mark.parametrize(
    "only, message",
    [
        (["weight", "offset"], "there is no offset in weight, bias"),
        ([], "chooses none of weight, bias"),
        (lambda name, parameter: False, "chooses none of weight, bias"),
    ],
)
def test_choice_of_nothing_is_refused(only: Only, message: str):
    with pytest.raises(ValueError, match=f"^only:? {message}"):
        ParameterVector(nn.Linear(2, 1), only=only)


# Many processes, of which one is here.


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_vector_of_a_distributed_module_is_refused():
    """Its gradients would no longer be averaged; the other way round they are."""
    module = nn.Linear(2, 1)
    distributed = DistributedDataParallel(module)
    for wrapped, name in ((distributed, r"module\.weight"), (module, "weight")):
        before = evidence(module)
        with pytest.raises(
            RuntimeError, match=f"^{name} .*DistributedDataParallel: .* before"
        ):
            ParameterVector(wrapped)
        assert_untouched(before, evidence(module))
    distributed(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad.tolist() == [[1, 1]]


@pytest.mark.usefixtures("process_group")
def test_distributed_module_trains_on_a_vector_made_before():
    module, twin = alike(lambda: nn.Linear(3, 2))
    optimizers = SGD(ParameterVector(module)), SGD(twin.parameters())
    networks = DistributedDataParallel(module), DistributedDataParallel(twin)
    train_both(networks, optimizers)
    assert_equal_parameters(module, twin)


@pytest.mark.usefixtures("process_group")
def test_gradients_that_the_distributed_module_replaces_are_told_apart():
    module = nn.Linear(3, 2)
    optimizer = SGD(ParameterVector(module))
    distributed = DistributedDataParallel(module, gradient_as_bucket_view=True)
    distributed(torch.ones(1, 3)).sum().backward()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match=r"gradient_as_bucket_view=True\) does"):
        optimizer.step()
    assert torch.equal(module.weight, before["weight"])
    module.zero_grad()
    with pytest.raises(RuntimeError, match=r"theta\.grad: module\.zero_grad\(\) cuts"):
        optimizer.step()


@pytest.mark.usefixtures("process_group")
def test_sharded_module_is_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = nn.Linear(3, 2)
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    parameters = list(module.parameters())
    with pytest.raises(TypeError, match=f"^weight is a DTensor, .*{USE_A_LIST}"):
        ParameterVector(module)
    assert all(p is q for p, q in zip(parameters, module.parameters(), strict=True))
