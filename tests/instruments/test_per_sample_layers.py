"""Per-sample norms of more layers, against the gradient of each sample's own loss."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from minitrain.instruments.layer_hooks import PerSampleNorms
from minitrain.vector import ParameterVector

Losses = Callable[[], Tensor]
"""Runs a model on a batch and returns the loss of each sample, (N,)."""

MANY = settings(derandomize=True, deadline=None, max_examples=60)
DTYPES = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
"""About a hundred, or some thousand, times the spacing of the numbers."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def exact_squares(model: nn.Module, losses: Losses) -> Tensor:
    """|grad l_i|^2 from a backward pass of each sample, with the same dropout."""
    state = torch.get_rng_state()
    trainable = [p for p in model.parameters() if p.requires_grad]
    squares: list[Tensor] = []
    for i in range(len(losses())):
        torch.set_rng_state(state)
        grads = torch.autograd.grad(losses()[i], trainable, materialize_grads=True)
        squares.append(torch.stack([g.square().sum() for g in grads]).sum())
    torch.set_rng_state(state)
    return torch.stack(squares)


def measured(model: nn.Module, losses: Losses) -> PerSampleNorms:
    model.zero_grad()
    with PerSampleNorms(model).watch() as norms:
        losses().mean().backward()
    return norms


def assert_right(model: nn.Module, losses: Losses, rel: float | None = None) -> None:
    exact = exact_squares(model, losses)
    norms = measured(model, losses)
    squared = norms.squared(len(exact))
    assert squared is not None, norms.withheld
    rel = ROUNDING[exact.dtype] if rel is None else rel
    # What cancels to zero, as behind a normalization, is zero up to rounding.
    floor = rel * exact.mean().item()
    torch.testing.assert_close(squared, exact, rtol=rel, atol=floor)
    mean = norms.mean_square(len(exact))
    assert mean == pytest.approx(exact.mean().item(), rel=rel)


def assert_withheld(model: nn.Module, losses: Losses, reason: str) -> None:
    norms = measured(model, losses)
    num_samples = len(losses())
    assert norms.squared(num_samples) is None
    assert norms.mean_square(num_samples) is None
    assert re.search(reason, str(norms.withheld)), norms.withheld


def distances(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(dim=1)


def losses_of(model: nn.Module, inputs: Tensor) -> Losses:
    """Distances from random targets."""
    targets = torch.randn_like(model(inputs))
    return lambda: distances(model(inputs), targets)


NORMALIZATIONS = {
    "layer norm of a vector": (lambda: nn.LayerNorm(6), (6,)),
    "layer norm of each place": (lambda: nn.LayerNorm(6), (3, 2, 6)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm([2, 6]), (3, 2, 6)),
    "layer norm of everything": (lambda: nn.LayerNorm([3, 2, 6]), (3, 2, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    "layer norm with a large eps": (lambda: nn.LayerNorm(6, eps=0.5), (4, 6)),
    "group norm of a vector": (lambda: nn.GroupNorm(3, 6), (6,)),
    "group norm of a sequence": (lambda: nn.GroupNorm(1, 6), (6, 5)),
    "group norm of an image": (lambda: nn.GroupNorm(2, 6, eps=0.5), (6, 3, 4)),
    "instance norm": (lambda: nn.GroupNorm(6, 6), (6, 3, 2, 2)),
}


@pytest.mark.parametrize("frozen", [[], ["weight"], ["bias"]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NORMALIZATIONS)
def test_normalizations(case: str, dtype: torch.dtype, frozen: list[str]) -> None:
    make, shape = NORMALIZATIONS[case]
    layer = make().to(dtype)
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad = name not in frozen
    if any(p.requires_grad for p in layer.parameters()):
        assert_right(layer, losses_of(layer, 3 * torch.randn(5, *shape, dtype=dtype)))


def test_a_normalization_without_parameters_is_no_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False))
    assert_right(model, losses_of(model, torch.randn(5, 6)))


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"padding": "same", "dilation": 2},
    {"padding": 2, "padding_mode": "circular", "groups": 2},
    {"groups": 4, "padding": 1, "stride": 2, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [6, 40])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_in_one_dimension(
    options: dict, size: int, dtype: torch.dtype
) -> None:
    """Few positions, where products of pairs are cheaper, and many."""
    layer = nn.Conv1d(4, 8, 3, **options, dtype=dtype)
    assert_right(layer, losses_of(layer, torch.randn(5, 4, size, dtype=dtype)))


def test_convolutions_in_three_dimensions() -> None:
    layer = nn.Conv3d(
        *(4, 6, (2, 3, 1)),
        stride=(1, 2, 1),
        padding=(0, 1, 2),
        dilation=(2, 1, 1),
        groups=2,
        dtype=torch.float64,
    )
    assert_right(layer, losses_of(layer, torch.randn(3, 4, 5, 4, 3).double()))


@MANY
@given(
    num_samples=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    num_tokens=st.integers(1, 6),
    padding=st.none() | st.integers(-1, 0),
    dtype=st.sampled_from(DTYPES),
)
def test_embeddings(
    num_samples: int,
    shape: list[int],
    num_tokens: int,
    padding: int | None,
    dtype: torch.dtype,
) -> None:
    """With few tokens, which come again in a sample; against vmap(grad)."""
    layer = nn.Embedding(num_tokens, 3, padding_idx=padding, dtype=dtype)
    tokens = torch.randint(num_tokens, (num_samples, *shape))
    targets = torch.randn(num_samples, *shape, 3, dtype=dtype)
    norms = measured(layer, lambda: distances(layer(tokens), targets))

    def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rows = functional_call(layer, {"weight": weight}, (x,))
        return (rows - y).square().mean()

    weight = layer.weight.detach()
    grads = vmap(grad(loss), in_dims=(None, 0, 0))(weight, tokens, targets)
    exact = grads.square().sum(dim=(1, 2))
    squared = norms.squared(num_samples)
    torch.testing.assert_close(squared, exact, rtol=ROUNDING[dtype], atol=1e-30)


def test_what_a_padding_token_receives_does_not_count() -> None:
    """Even where it is not finite, as behind a mask of -inf."""
    layer = nn.Embedding(4, 3, padding_idx=1)
    tokens = torch.tensor([[0, 1], [2, 3]])
    scale = torch.ones(2, 2, 1)
    scale[0, 1] = torch.inf

    def losses() -> Tensor:
        return (layer(tokens) * scale).nan_to_num(0).sum(dim=(1, 2))

    assert_right(layer, losses)


def masks_of(
    data: st.DataObject, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> dict[str, Tensor | bool]:
    """Draw masks as `nn.MultiheadAttention` takes them; no row is masked as a whole."""
    num_samples, num_heads, num_queries, num_keys = sizes
    is_float = data.draw(st.booleans())
    masks: dict[str, Tensor | bool] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {
        "attn_mask": [
            (num_queries, num_keys),
            (num_samples * num_heads, num_queries, num_keys),
        ],
        "key_padding_mask": [(num_samples, num_keys)],
    }
    for name, options in shapes.items():
        shape = data.draw(st.none() | st.sampled_from(options))
        if shape is not None:
            drawn = torch.rand(shape)
            mask = drawn < 0.4
            mask[..., 0] = False
            masks[name] = (
                drawn.to(dtype).masked_fill(mask, -torch.inf) if is_float else mask
            )
    return masks


@MANY
@given(data=st.data())
def test_attention_with_every_option(data: st.DataObject) -> None:
    """Self and cross attention, masks of every kind, dropout, frozen parameters."""
    draw, sizes = data.draw, st.integers(1, 4)
    num_samples, num_queries, num_heads = draw(sizes), draw(sizes), draw(sizes)
    dtype, is_self = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    size = num_heads * draw(sizes)
    kdim = vdim = size
    if not is_self:
        kdim, vdim = (draw(st.sampled_from([size, size + 1])) for _ in range(2))
    layer = nn.MultiheadAttention(
        size,
        num_heads,
        dropout=draw(st.sampled_from([0.0, 0.3])),
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=kdim,
        vdim=vdim,
        batch_first=True,
        dtype=dtype,
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad = draw(st.integers(0, 4)) > 0
    layer.out_proj.weight.requires_grad = True
    layer.train(draw(st.booleans()))
    num_keys = num_queries if is_self else draw(sizes)
    query = torch.randn(num_samples, num_queries, size, dtype=dtype)
    key = torch.randn(num_samples, num_keys, kdim, dtype=dtype)
    value = torch.randn(num_samples, num_keys, vdim, dtype=dtype)
    key, value = (query, query) if is_self else (key, value)
    options = masks_of(data, (num_samples, num_heads, num_queries, num_keys), dtype)
    needs_weights = draw(st.booleans())
    targets = torch.randn_like(query)

    def losses() -> Tensor:
        outputs, _ = layer(query, key, value, need_weights=needs_weights, **options)
        return distances(outputs, targets)

    # The scores are differences of numbers as large as 100.
    assert_right(layer, losses, rel=10 * ROUNDING[dtype])


@pytest.mark.parametrize("needs_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_that_is_said_to_be_causal(needs_weights: bool, padded: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    x, targets = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    padding = torch.zeros(5, 4, dtype=torch.bool)
    padding[1, 2:] = True
    options = {
        "attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1),
        "key_padding_mask": padding if padded else None,
        "need_weights": needs_weights,
        "is_causal": True,
    }
    assert_right(layer, lambda: distances(layer(x, x, x, **options)[0], targets))


@pytest.mark.parametrize("needs_weights", [True, False])
def test_dropout_is_drawn_again_in_the_way_of_the_layer(
    needs_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused kernel draws other numbers than the layer does where it needs weights."""
    attend = F.scaled_dot_product_attention

    def fused(*args: Any) -> Tensor:
        torch.rand(1)
        return attend(*args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    layer = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
    x, targets = torch.randn(2, 5, 4, 8)

    def losses() -> Tensor:
        return distances(layer(x, x, x, need_weights=needs_weights)[0], targets)

    assert_right(layer, losses)


ENCODERS = {
    "norm last": {"dropout": 0.0},
    "norm first": {"dropout": 0.0, "norm_first": True, "activation": "gelu"},
    "dropout": {"dropout": 0.3},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ENCODERS)
def test_encoder_layers(case: str, training: bool, dtype: torch.dtype) -> None:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, batch_first=True, dtype=dtype, **ENCODERS[case]
    )
    layer.train(training)
    assert_right(layer, losses_of(layer, torch.randn(5, 4, 8, dtype=dtype)))


def test_a_whole_transformer() -> None:
    """Encoder and decoder, with cross attention."""
    model = nn.Transformer(
        *(8, 2, 2, 2, 16), batch_first=True, activation="gelu", dtype=torch.float64
    )
    sources = torch.randn(4, 5, 8, dtype=torch.float64)
    starts, targets = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    mask = model.generate_square_subsequent_mask(3, dtype=torch.float64)
    assert_right(
        model, lambda: distances(model(sources, starts, tgt_mask=mask), targets)
    )


class Block(nn.Module):
    """Causal attention, then a hidden layer, each behind a LayerNorm and added."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.hidden = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norms[0](x)).chunk(3, dim=2)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.hidden(self.norms[1](x))


class Language(nn.Module):
    """Logits of the next token; positions, by a table or by numbers of the model."""

    def __init__(self, positions: str = "indices of samples") -> None:
        super().__init__()
        self.positions = positions
        self.tokens = nn.Embedding(7, 8)
        self.places = nn.Embedding(6, 8)
        if positions == "parameter":
            self.table = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.Sequential(Block(8, 2), Block(8, 4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 7)
        if positions == "tied":
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        indices = torch.arange(tokens.shape[1])
        x = self.tokens(tokens)
        match self.positions:
            case "parameter":
                x = x + self.table
            case "indices":
                x = x + self.places(indices)
            case "indices of one sample":
                x = x + self.places(indices[None])
            case _:
                x = x + self.places(indices.expand(tokens.shape))
        return self.head(self.norm(self.blocks(x)))


def next_token_losses(model: nn.Module, num_samples: int) -> Losses:
    tokens = torch.randint(7, (num_samples, 7))

    def losses() -> Tensor:
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(dim=1)

    return losses


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_causal_transformer_by_hand(dtype: torch.dtype) -> None:
    model = Language().to(dtype)
    assert_right(model, next_token_losses(model, 5))


# 6 samples are as many as positions: what has no dimension for the samples looks
# exactly as if it had one.
@pytest.mark.parametrize("num_samples", [5, 6])
@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        ("indices", r"places: its indices .* give it those of each sample, \(N, L\)"),
        ("indices of one sample", "places: its inputs have 1 entries for [56] samples"),
        ("parameter", r"table: .* of Language; .* Embedding, .* shape \(N, L\)"),
        ("tied", "head.weight: it is tokens.weight too"),
    ],
)
def test_positions_without_samples_and_tied_weights_are_withheld(
    positions: str, reason: str, num_samples: int
) -> None:
    model = Language(positions)
    assert_withheld(model, next_token_losses(model, num_samples), reason)


def attention(**options: bool) -> nn.Module:
    return nn.MultiheadAttention(4, 2, **{"batch_first": True, **options})


class First(nn.Module):
    """The first of the outputs of a layer, which may be called with several inputs."""

    def __init__(self, layer: nn.Module, num_inputs: int = 1) -> None:
        super().__init__()
        self.layer, self.num_inputs = layer, num_inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.num_inputs)[0]


class Penalized(nn.Module):
    """Uses the parameters of a layer once more, past it."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name

    def forward(self, x: Tensor) -> Tensor:
        penalty = (1 + self.layer.get_parameter(self.name)).square().sum()
        return self.layer(x) + penalty


class Weights(First):
    """The weights of attention, which have a gradient of their own."""

    def forward(self, x: Tensor) -> Tensor:
        outputs, weights = self.layer(x, x, x)
        return outputs + weights.sum(dim=2, keepdim=True).square() * weights[..., :1]


FLOATS = {
    "recurrent": (lambda: First(nn.GRU(4, 4, batch_first=True)), "layer.w.*: GRU adds"),
    "lstm": (lambda: First(nn.LSTM(4, 4, batch_first=True)), "layer.w.*: LSTM adds"),
    "samples second": (
        lambda: First(attention(batch_first=False), 3),
        "layer: its samples lie .* set batch_first=True",
    ),
    "encoder with samples second": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        "self_attn: its samples lie .* set batch_first=True",
    ),
    "subclass": (
        lambda: First(type("Mine", (nn.MultiheadAttention,), {})(4, 2), 3),
        "layer.in_proj_weight: .* of Mine",
    ),
    "normalization elsewhere": (
        lambda: Penalized(nn.LayerNorm(4), "weight"),
        "layer: its gradient is not",
    ),
    "bias of a normalization elsewhere": (
        lambda: Penalized(nn.LayerNorm(4), "bias"),
        "layer: its gradient is not",
    ),
    "channels elsewhere": (
        lambda: Penalized(nn.GroupNorm(5, 5), "bias"),
        "layer: its gradient is not",
    ),
    "attention elsewhere": (
        lambda: Penalized(First(attention(), 3), "layer.in_proj_weight"),
        "layer.layer: its gradient is not",
    ),
    "bias of attention elsewhere": (
        lambda: Penalized(First(attention(add_bias_kv=True), 3), "layer.bias_k"),
        "layer.layer: its gradient is not",
    ),
    "projection elsewhere": (
        lambda: Penalized(First(attention(), 3), "layer.out_proj.weight"),
        "layer.layer: its gradient is not",
    ),
    "weights of attention": (
        lambda: Weights(attention()),
        "layer: its gradient is not",
    ),
}


@pytest.mark.parametrize("case", FLOATS)
def test_norms_that_would_be_wrong_are_withheld_with_the_reason(case: str) -> None:
    make, reason = FLOATS[case]
    model, x = make(), torch.randn(3, 5, 4)
    if case == "encoder with samples second":
        x = torch.randn(5, 5, 4)  # as many samples as places
    assert_withheld(model, losses_of(model, x), reason)


TABLES = {
    "sparse": ({"sparse": True}, "set sparse=False"),
    "frequency": ({"scale_grad_by_freq": True}, "mixes the samples"),
    "norm": ({"max_norm": 1.0}, "changes its weight in the forward pass"),
}


@pytest.mark.parametrize("case", TABLES)
def test_embeddings_with_options_that_break_the_sum_are_withheld(case: str) -> None:
    options, reason = TABLES[case]
    model = nn.Sequential(nn.Embedding(5, 4, **options))
    assert_withheld(model, losses_of(model, torch.randint(5, (3, 2))), f"0: .*{reason}")


def test_a_parameter_used_elsewhere_in_another_pass_is_withheld() -> None:
    layer, x = nn.LayerNorm(4), torch.randn(3, 4)
    with PerSampleNorms(layer).watch() as norms:
        layer.weight.square().sum().backward()
        layer(x).square().mean().backward()
    assert norms.squared(3) is None
    assert "its gradient is not" in str(norms.withheld)


def test_an_embedding_used_elsewhere_is_withheld() -> None:
    model = Penalized(nn.Embedding(5, 4), "weight")
    losses = losses_of(model, torch.randint(5, (3, 2)))
    assert_withheld(model, losses, "layer: its gradient is not")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.LayerNorm([5, 4]), (5, 4)), (nn.Conv1d(5, 2, 1), (5, 4))],
    ids=["layer norm", "convolution"],
)
def test_inputs_without_samples_are_withheld(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    losses = losses_of(layer, torch.randn(shape))
    assert_withheld(layer, losses, "no dimension for the samples")


def test_attention_without_samples_is_withheld() -> None:
    layer = First(attention(), 3)
    losses = losses_of(layer, torch.randn(5, 4))
    assert_withheld(layer, losses, "no dimension for the samples")


@pytest.mark.parametrize("backward_inside", [True, False])
def test_under_autocast_all_are_as_far_off_as_bfloat16(backward_inside: bool) -> None:
    """Rounded to bfloat16, 2^-9, in both, but not always in the same order."""
    torch.manual_seed(3)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    convolution = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.GroupNorm(2, 6))
    model = nn.Sequential(nn.Embedding(7, 8), encoder, convolution)
    tokens, targets = torch.randint(7, (5, 6)), torch.randn(5, 6, 8)

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(tokens)
        return distances(outputs.float(), targets)

    exact = exact_squares(model, losses)
    with PerSampleNorms(model).watch() as norms:
        if backward_inside:
            with torch.autocast("cpu", torch.bfloat16):
                losses().mean().backward()
        else:
            losses().mean().backward()
    squared = norms.squared(5)
    assert squared is not None, norms.withheld
    assert squared.dtype == torch.float32
    torch.testing.assert_close(squared, exact, rtol=0.02, atol=0)


def test_passes_are_joined_whatever_draws_in_between() -> None:
    """Such as an evaluation in training mode, between a loss and its backward pass."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    inputs, targets = torch.randn(2, 7, 4, 8)
    parts = [slice(0, 3), slice(3, 7)]
    exact: list[Tensor] = []
    for number, part in enumerate(parts):
        torch.manual_seed(number)
        x, y = inputs[part], targets[part]
        exact.append(exact_squares(layer, lambda x=x, y=y: distances(layer(x), y)))
    with PerSampleNorms(layer).watch() as norms:
        for number, part in enumerate(parts):
            torch.manual_seed(number)
            loss = distances(layer(inputs[part]), targets[part]).sum() / 7
            with torch.no_grad():
                layer(inputs)
            loss.backward()
    torch.testing.assert_close(norms.squared(7), torch.cat(exact), rtol=1e-5, atol=0)


@pytest.mark.parametrize("check", [False, True])
def test_a_step_before_the_end_of_watching_changes_no_norm(check: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    losses = losses_of(layer.eval(), torch.randn(5, 4, 8))
    exact = exact_squares(layer, losses)
    with PerSampleNorms(layer).watch(check=check) as norms:
        losses().mean().backward()
        torch.optim.SGD(layer.parameters(), lr=1.0).step()
    torch.testing.assert_close(norms.squared(5), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_watching_changes_nothing(vector: bool, autocast: bool, check: bool) -> None:
    """Bit for bit, where attention with dropout is computed once more."""

    def trained(watch: bool) -> list[Tensor]:
        torch.manual_seed(1)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.Embedding(7, 8), encoder, nn.Linear(8, 7))
        theta = ParameterVector(model) if vector else None
        for _ in range(3):
            theta.zero_grad() if theta else model.zero_grad()
            norms = PerSampleNorms(model)
            watching = norms.watch(check=check) if watch else norms
            for _ in range(2):
                tokens = torch.randint(7, (5, 4))
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = F.cross_entropy(model(tokens).mT, tokens.roll(1, 1)) / 2
                loss.backward()
            watching.close()
            assert not watch or norms.squared(10) is not None, norms.withheld
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [*model.parameters(), *grads, torch.get_rng_state()]

    pairs = zip(trained(True), trained(False), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
