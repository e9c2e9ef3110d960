"""Per-sample norms against vmap(grad)."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from minitrain.instruments.layer_hooks import PerSampleNorms
from minitrain.models import CNN, MLP
from minitrain.vector import ParameterVector

LossFunction = Callable[[Tensor, Tensor], Tensor]


def oracle(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> Tensor:
    """|grad l_i|^2 from the gradient of each sample's own loss."""
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(functional_call(model, parameters, (x[None],)), y[None])

    grads = vmap(grad(loss), in_dims=(None, 0, 0))(trainable, inputs, targets)
    return torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)


def measured(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> PerSampleNorms:
    with PerSampleNorms(model).watch() as norms:
        loss_fn(model(inputs), targets).backward()
    return norms


def assert_right(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFunction = F.mse_loss,
    rel: float = 1e-5,
) -> None:
    norms = measured(model, inputs, targets, loss_fn)
    squared = norms.squared(len(inputs))
    assert squared is not None, norms.withheld
    exact = oracle(model, inputs, targets, loss_fn)
    torch.testing.assert_close(squared, exact, rtol=rel, atol=0)
    mean = norms.mean_square(len(inputs))
    assert mean == pytest.approx(exact.mean().item(), rel=rel)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("model_class", [MLP, CNN])
def test_norms_of_the_models_are_those_of_each_sample_alone(
    model_class: type[nn.Module],
) -> None:
    inputs, targets = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    assert_right(model_class(), inputs, targets, F.cross_entropy)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (40,), (2, 5)])
def test_linear_layers_with_inputs_of_more_dimensions(
    shape: tuple[int, ...], bias: bool
) -> None:
    """Few places, where products of pairs are cheaper, and many."""
    inputs, targets = torch.randn(6, *shape, 12), torch.randn(6, *shape, 4)
    model = nn.Sequential(nn.Linear(12, 9, bias), nn.Tanh(), nn.Linear(9, 4, bias))
    assert_right(model.double(), inputs.double(), targets.double(), rel=1e-12)
    assert_right(model.float(), inputs, targets)


CONVOLUTIONS = [
    {},
    {"stride": 2},
    {"stride": (1, 3), "padding": (2, 0)},
    {"padding": 1, "dilation": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": (1, 2), "bias": False},
    {"padding": "valid", "groups": 2},
    {"groups": 4, "padding": 1, "stride": 2, "dilation": (2, 1)},
    {"padding": 2, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "reflect", "groups": 2},
    {"padding": "same", "padding_mode": "replicate"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kernel", [3, (2, 3), (6, 5)], ids=str)
def test_convolutions_with_every_option(options: dict, kernel: int | tuple) -> None:
    options = {"dilation": 1} | options
    if kernel == (6, 5) and options["dilation"] != 1:
        options["dilation"] = 1  # the kernel would not fit
    model = nn.Conv2d(4, 8, kernel, **options).double()
    inputs = torch.randn(5, 4, 9, 8, dtype=torch.float64)
    targets = torch.randn_like(model(inputs))
    assert_right(model, inputs, targets, rel=1e-12)


def test_frozen_parameters_are_left_out() -> None:
    inputs, targets = torch.randn(6, 12), torch.randn(6, 2)
    images = torch.randn(6, 3, 5, 5)
    for frozen in (["0.weight"], ["0.bias"], ["0.weight", "0.bias"], ["2.weight"]):
        model = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2))
        convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2))
        for net, x in (model, inputs), (convolution, images):
            for name, parameter in net.named_parameters():
                parameter.requires_grad = name not in frozen
            assert_right(net, x, targets)


def test_inplace_activations_and_normalization_of_samples() -> None:
    """What changes an output in place must not change what is measured of it."""
    inputs, targets = torch.randn(6, 3, 8, 8), torch.randint(4, (6,))
    norm, batch_norm = nn.GroupNorm(2, 4, affine=False), nn.BatchNorm2d(4)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        norm,
        batch_norm.requires_grad_(False).eval(),
        nn.Flatten(),
        nn.Linear(144, 4),
    )
    assert_right(model, inputs, targets, F.cross_entropy)


def test_samples_of_several_passes_are_joined_in_order() -> None:
    """Ragged windows too; what came in between, such as an evaluation, is not seen."""
    model = CNN()
    vector = ParameterVector(model)
    inputs, targets = torch.randn(11, 1, 28, 28), torch.randint(10, (11,))
    with PerSampleNorms(model).watch() as norms:
        for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
            loss = F.cross_entropy(model(inputs[part]), targets[part])
            (loss * len(targets[part]) / 11).backward()
            with torch.no_grad():
                model(inputs)
    squared = norms.squared(11)
    assert squared is not None, norms.withheld
    exact = oracle(model, inputs, targets, F.cross_entropy)
    torch.testing.assert_close(squared, exact, rtol=1e-5, atol=0)
    assert vector.theta.grad is not None


@pytest.mark.parametrize("model_class", [MLP, CNN])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_under_autocast_sums_are_in_float32(
    model_class: type[nn.Module], backward_inside: bool
) -> None:
    """As far from those without it as rounding to bfloat16, 2^-9, takes them."""
    model = model_class()
    inputs, targets = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    with PerSampleNorms(model).watch() as norms:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(inputs), targets)
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
    squared = norms.squared(16)
    assert squared is not None, norms.withheld
    assert squared.dtype == torch.float32
    exact = oracle(model, inputs, targets, F.cross_entropy)
    torch.testing.assert_close(squared, exact, rtol=0.05, atol=0)


def test_one_bfloat16_layer_is_exact_for_the_rounded_numbers() -> None:
    """5000 products of the same sign: a sum in bfloat16 would stop growing early."""
    layer, inputs = nn.Linear(5000, 3), torch.rand(4, 5000)
    with PerSampleNorms(layer).watch() as norms:
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(inputs).mean()
        loss.backward()
    delta = torch.tensor(1 / 12).bfloat16().double()
    exact = 3 * (delta * 4) ** 2 * (inputs.bfloat16().double().square().sum(1) + 1)
    squared = norms.squared(4)
    assert squared is not None, norms.withheld
    torch.testing.assert_close(squared.double(), exact, rtol=1e-5, atol=0)


def test_autocast_around_everything_leaves_the_sums_alone() -> None:
    layer, inputs = nn.Linear(40, 30), torch.randn(4, 50, 40)
    with torch.autocast("cpu", torch.bfloat16):
        with PerSampleNorms(layer).watch() as norms:
            outputs = layer(inputs)
            outputs.retain_grad()
            outputs.square().mean().backward()
        squared = norms.squared(4)
    assert squared is not None, norms.withheld
    assert outputs.grad is not None
    delta, x = 4 * outputs.grad.double(), inputs.bfloat16().double()
    exact = (delta.mT @ x).square().sum((1, 2)) + delta.sum(1).square().sum(1)
    torch.testing.assert_close(squared.double(), exact, rtol=1e-5, atol=0)


def test_a_hook_that_changes_the_output_belongs_to_what_follows() -> None:
    model = nn.Sequential(nn.Linear(12, 5), nn.Linear(5, 2))
    model[0].register_forward_hook(lambda module, args, output: 3 * output.tanh())
    assert_right(model, torch.randn(6, 12), torch.randn(6, 2))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x).tanh())


class Bypass(Twice):
    """Uses the weight of a layer past the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.linear.weight


class Past(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight, self.linear.bias)


class Unused(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).detach() + self.other(x)

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 4)


class Flat(Twice):
    """Makes each place a sample of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.repeat(2, 1)).view(2, -1, 4).sum(0)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Scale(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    next(model.parameters()).register_hook(lambda g: g * torch.eye(4))
    return model


WITHHELD = {
    "twice": (Twice, "linear: it was called more than once"),
    "bypass": (Bypass, "linear: its gradient is not"),
    "past": (Past, "linear: it was not called"),
    "unused": (Unused, "linear: it was called, but no gradient"),
    "flat": (Flat, "linear: its inputs have 12 entries for 6 samples"),
    "subclass": (lambda: nn.Sequential(Scaled(4, 4)), "0.weight: .* not .* of Scaled"),
    "parameter": (Scale, "scale: .* Scale"),
    "activation with a parameter": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()),
        "1.weight: .* PReLU",
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
        "1: BatchNorm1d mixes",
    ),
    "batch norm without statistics": (
        lambda: nn.Sequential(
            nn.Linear(4, 4),
            nn.BatchNorm1d(4, affine=False, track_running_stats=False).eval(),
        ),
        "1: BatchNorm1d mixes",
    ),
    "two devices": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta")),
        "1.weight: .* more than one device",
    ),
    "tied": (tied, "2.weight: it is 0.weight too"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "ParametrizationList|Parametrized",
    ),
    "gradient hook": (hooked, "0: its gradient is not"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.cfloat), "weight: .*complex64"),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), "no trainable"),
}


@pytest.mark.parametrize("case", WITHHELD)
def test_norms_that_would_be_wrong_are_withheld_with_the_name(case: str) -> None:
    make, reason = WITHHELD[case]
    model = make()
    inputs = torch.randn(6, 4).requires_grad_()
    if case == "complex":
        inputs = torch.randn(6, 4, dtype=torch.cfloat)
    if case == "two devices":
        model.forward = model[0].forward
    norms = measured(model, inputs, inputs.detach(), lambda a, b: (a - b).abs().mean())
    assert norms.squared(6) is None and norms.mean_square(6) is None
    assert re.search(reason, str(norms.withheld))


def test_passes_that_are_no_mean_of_samples_are_withheld() -> None:
    model, inputs = nn.Linear(4, 4), torch.randn(6, 4)
    with PerSampleNorms(model).watch() as norms:
        pass
    assert norms.squared(6) is None and "not called" in str(norms.withheld)

    with PerSampleNorms(model).watch() as norms:  # a penalty belongs to no sample
        (model(inputs).square().mean() + model.weight.square().sum()).backward()
    assert norms.squared(6) is None and "penalty" in str(norms.withheld)

    with PerSampleNorms(model).watch() as norms:  # two losses, one after the other
        outputs = model(inputs)
        outputs.mean().backward(retain_graph=True)
        outputs.square().mean().backward()
    assert norms.squared(6) is None and "more than one" in str(norms.withheld)

    with PerSampleNorms(model).watch() as norms:
        model(inputs[0]).mean().backward()
    assert norms.squared(4) is None and "dimension" in str(norms.withheld)

    buffer = inputs.clone()
    with PerSampleNorms(model).watch() as norms:
        for _ in range(2):
            buffer.copy_(inputs)
            model(buffer).square().mean().backward()
    # The first pass is taken in when its input has already been overwritten.
    assert norms.squared(12) is None and "in place" in str(norms.withheld)

    with PerSampleNorms(model).watch() as norms:
        model(inputs * torch.inf).mean().backward()
    assert norms.squared(6) is None and "finite" in str(norms.withheld)


def test_an_error_while_watching_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("minitrain.instruments.layer_watcher.sample_norms", fails)
    model = nn.Linear(4, 4)
    norms = measured(model, torch.randn(6, 4), torch.randn(6, 4), F.mse_loss)
    assert norms.squared(6) is None
    assert norms.withheld == "the model: MemoryError: no room"
    assert model.weight.grad is not None


def test_an_input_without_versions_does_not_end_the_training() -> None:
    model = nn.Linear(4, 4)
    model.weight.requires_grad = False
    with torch.inference_mode():
        inputs = torch.randn(6, 4)
    with PerSampleNorms(model).watch() as norms:
        model(inputs).mean().backward()
    assert norms.squared(6) is None and "RuntimeError" in str(norms.withheld)


def hooks_of(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from module._forward_hooks.values()
    for parameter in model.parameters():
        yield from (parameter._backward_hooks or {}).values()


def test_a_kept_watcher_sees_what_trains_now() -> None:
    """A layer thawed after the first step counts; BatchNorm in training withholds."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    model[1].requires_grad_(False)
    model[0].requires_grad_(False)
    norms = PerSampleNorms(model)
    inputs, targets = torch.randn(6, 4), torch.randn(6, 2)
    for layers in ([], [model[0]]):
        for layer in layers:
            layer.requires_grad_(True)
        with norms.watch(check=False):
            F.mse_loss(model(inputs), targets).backward()
        squared = norms.squared(6)
        exact = oracle(model, inputs, targets, F.mse_loss)
        torch.testing.assert_close(squared, exact, rtol=1e-5, atol=0)
    model.train()
    with norms.watch(check=False):
        F.mse_loss(model(inputs), targets).backward()
    assert norms.squared(6) is None and "mixes the samples" in str(norms.withheld)


def test_hooks_are_removed_whatever_happens() -> None:
    model, outputs = MLP(), torch.tensor(0.0)
    with pytest.raises(KeyboardInterrupt), PerSampleNorms(model).watch():
        outputs = model(torch.randn(2, 1, 28, 28))
        assert list(hooks_of(model))
        raise KeyboardInterrupt
    assert not list(hooks_of(model))
    assert all(p._backward_hooks is None for p in model.parameters())
    outputs.sum().backward()  # what is left of them in the graph does nothing


def test_a_late_gradient_of_an_earlier_step_is_passed_over() -> None:
    model, inputs, targets = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    norms = PerSampleNorms(model)
    with norms.watch(check=False):
        late = F.mse_loss(model(inputs), targets)
        late.backward(retain_graph=True)
    with norms.watch(check=False):
        loss = F.mse_loss(model(inputs), targets)
        late.backward()
        loss.backward()
    squared = norms.squared(4)
    exact = oracle(model, inputs, targets, F.mse_loss)
    torch.testing.assert_close(squared, exact, rtol=1e-5, atol=0)


class Everything(nn.Module):
    """Dropout draws random numbers, BatchNorm has buffers, and ReLU is in place."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * 8 * 8, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_watching_changes_nothing(
    batch_norm: bool, vector: bool, autocast: bool, check: bool
) -> None:
    """Bit for bit: gradients, parameters, buffers, outputs, graph, random state."""

    def trained(watch: bool) -> tuple[list[Tensor], list[str]]:
        torch.manual_seed(1)
        model = Everything(batch_norm)
        theta = ParameterVector(model) if vector else None
        names: list[str] = []
        for _ in range(3):
            theta.zero_grad() if theta else model.zero_grad()
            watching = PerSampleNorms(model).watch(check=check)
            norms = watching.__enter__() if watch else None
            for _ in range(2):
                x, y = torch.randn(5, 1, 8, 8), torch.randint(10, (5,))
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = F.cross_entropy(model(x), y) / 2
                names += graph(loss)
                loss.backward()
            if norms is not None:
                watching.__exit__(None, None, None)
                assert (norms.squared(10) is None) == batch_norm, norms.withheld
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        state = [*model.parameters(), *model.buffers(), *grads, torch.get_rng_state()]
        return state, names

    (watched, graph_watched), (alone, graph_alone) = trained(True), trained(False)
    assert graph_watched == graph_alone
    assert all(torch.equal(a, b) for a, b in zip(watched, alone, strict=True))


def graph(loss: Tensor) -> list[str]:
    """The names of all nodes behind a loss."""
    nodes, names = [loss.grad_fn], []
    for node in nodes:
        if node is not None:
            names.append(node.name())
            nodes += [parent for parent, _ in node.next_functions]
    return names
