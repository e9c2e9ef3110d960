"""Models: shapes, names, the numbers in their docstrings, and what they compute."""

import inspect
import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minitrain.experiment.fast_cnn import FastCNN
from minitrain.models import CNN, MLP, SoftmaxRegression

MODELS = {
    "softmax": (SoftmaxRegression, {}),
    "mlp": (MLP, {}),
    "mlp without hidden layers": (MLP, {"hidden": ()}),
    "mlp of two hidden layers": (MLP, {"hidden": (3, 4)}),
    "cnn": (CNN, {}),
    "fast-cnn": (FastCNN, {}),
}

every_model = pytest.mark.parametrize(
    ("kind", "options"), MODELS.values(), ids=list(MODELS)
)


@pytest.fixture(autouse=True)
def seeded():
    """Models draw their weights from the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def names_and_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    return inputs @ layer.weight.T + layer.bias


@every_model
@pytest.mark.parametrize("num_images", [1, 5])
def test_logits_for_every_image_and_gradients_for_every_parameter(
    kind: type[nn.Module], options: dict[str, object], num_images: int
):
    model = kind(**options, num_classes=7).eval()
    logits = model(torch.randn(num_images, 1, 28, 28))
    assert logits.shape == (num_images, 7) and logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@every_model
def test_images_do_not_influence_each_other(
    kind: type[nn.Module], options: dict[str, object]
):
    model = kind(**options).double().eval()
    images = torch.randn(4, 1, 28, 28).double()
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(model(images), alone)  # other sums for other shapes


@pytest.mark.parametrize("kind", [SoftmaxRegression, MLP, CNN, FastCNN])
def test_docstring_tells_the_number_of_parameters(kind: type[nn.Module]):
    docstring = " ".join(inspect.getdoc(kind).split())  # pyright: ignore
    told = re.search(r"(\d[\d ]*) parameters", docstring)
    assert told is not None
    assert num_parameters(kind()) == int(told[1].replace(" ", ""))


def test_names_in_the_state_dict():
    """Checkpoints and TensorBoard's tags are written in these."""
    assert names_and_shapes(SoftmaxRegression()) == {
        "linear.weight": (10, 784),
        "linear.bias": (10,),
    }
    assert names_and_shapes(MLP(hidden=(3, 4))) == {
        "layers.0.weight": (3, 784),
        "layers.0.bias": (3,),
        "layers.2.weight": (4, 3),
        "layers.2.bias": (4,),
        "layers.4.weight": (10, 4),
        "layers.4.bias": (10,),
    }
    assert names_and_shapes(MLP(num_inputs=5, hidden=(), num_classes=2)) == {
        "layers.0.weight": (2, 5),
        "layers.0.bias": (2,),
    }
    assert names_and_shapes(CNN(num_classes=3)) == {
        "convolutions.0.weight": (16, 1, 5, 5),
        "convolutions.0.bias": (16,),
        "convolutions.3.weight": (32, 16, 5, 5),
        "convolutions.3.bias": (32,),
        "head.0.weight": (128, 1568),
        "head.0.bias": (128,),
        "head.2.weight": (3, 128),
        "head.2.bias": (3,),
    }
    assert names_and_shapes(FastCNN(num_classes=3)) == {
        "convolutions.0.weight": (16, 1, 7, 7),
        "convolutions.0.bias": (16,),
        "convolutions.2.weight": (16, 16, 3, 3),
        "convolutions.2.bias": (16,),
        "head.0.weight": (128, 576),
        "head.1.weight": (128,),
        "head.1.bias": (128,),
        "head.1.running_mean": (128,),
        "head.1.running_var": (128,),
        "head.1.num_batches_tracked": (),
        "head.3.weight": (3, 128),
        "head.3.bias": (3,),
    }


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_dropout_is_there_only_where_it_is_asked_for(kind: type[MLP] | type[CNN]):
    """Without it the bits of a model and the names of its layers are the usual ones."""
    images = torch.randn(5, 1, 28, 28)
    without, certain = kind(), kind(dropout=0.0)
    assert names_and_shapes(without) == names_and_shapes(certain)
    model = kind(dropout=0.5)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    assert num_parameters(model) == num_parameters(without)


def test_softmax_regression_is_linear():
    model, images = SoftmaxRegression(), torch.randn(6, 1, 28, 28)
    torch.testing.assert_close(model(images), linear(images.flatten(1), model.linear))


def test_mlp_is_linear_layers_with_relu_between():
    model, images = MLP(hidden=(3, 4)), torch.randn(6, 1, 28, 28)
    first, second, last = (m for m in model.layers if isinstance(m, nn.Linear))
    hidden = linear(images.flatten(1), first).clamp(min=0)
    hidden = linear(hidden, second).clamp(min=0)
    torch.testing.assert_close(model(images), linear(hidden, last))


def test_cnn_goes_through_the_shapes_in_its_docstring():
    images, shapes = torch.randn(2, 1, 28, 28), []
    model = CNN()
    for module in (model.convolutions[2], model.convolutions[5], model.head[1]):
        module.register_forward_hook(lambda *call: shapes.append(call[2].shape[1:]))
    model(images)
    assert shapes == [(16, 14, 14), (32, 7, 7), (128,)]
    assert all(str(tuple(shape)) in str(CNN.__doc__) for shape in shapes[:2])


def convolution(images: Tensor, layer: nn.Conv2d) -> Tensor:
    """One product of the weight with every patch."""
    (size, _), (stride, _) = layer.kernel_size, layer.stride
    patches = images.unfold(2, size, stride).unfold(3, size, stride)
    products = torch.einsum("ncyxhw,ochw->noyx", patches, layer.weight)
    return products + layer.bias[:, None, None]


def test_fast_cnn_is_strided_convolutions_and_a_normalized_hidden_layer():
    model, images = FastCNN().double(), torch.randn(5, 1, 28, 28).double()
    first, second = (m for m in model.convolutions if isinstance(m, nn.Conv2d))
    hidden, norm, _, last = model.head
    assert isinstance(hidden, nn.Linear) and isinstance(last, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = convolution(images, first).clamp(min=0)
    assert x.shape[1:] == (16, 8, 8)
    x = convolution(x, second).clamp(min=0)
    assert x.shape[1:] == (16, 6, 6)
    x = x.flatten(1) @ hidden.weight.T
    x = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()
    expected = linear((x * norm.weight + norm.bias).clamp(min=0), last)
    torch.testing.assert_close(model(images), expected)


def test_fast_cnn_needs_as_few_multiplications_as_it_says():
    def multiplications(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.randn(1, 1, 28, 28))
        return counter.get_total_flops() // 2

    for model in (FastCNN(), CNN()):
        number = f"{multiplications(model):,}".replace(",", " ")
        assert number in str(FastCNN.__doc__)
