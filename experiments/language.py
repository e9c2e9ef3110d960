"""A small transformer that writes text, one character at a time.

It reads its own framework: by default the text is the source code of minitrain. Each
character attends to those before it, and the loss is the cross-entropy of the next one,
at every place. After every epoch the page Text of TensorBoard has a new sample of what
it writes, from noise to something that looks like Python.

    minitrain train language
    minitrain train language --data.files my-notes.txt my-letters.txt

Source: Vaswani et al., Attention is all you need, 2017; the norms come first here.
"""

# Result: 2.4 bits per character (mean of seeds 0, 1 and 2), where the frequencies of
# the characters alone give 4.6.

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minitrain
from minitrain import Data

SETTINGS = {
    "epochs": 8,
    "data.batch-size": 32,
    "log.pictures": 1,
    "clip-norm": 1.0,
}

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""What can be read and written; any other character is read as the last of these."""

LENGTH = 64
"""How many characters the model looks back on."""


def data(files: tuple[Path, ...] = (), size: int = 200_000) -> Data:
    """Return pieces of text, (N, 64), and as targets the same, one character later.

    Args:
        files: The text, one after another; by default the source code of minitrain.
        size: How many characters of it are read: the last tenth is the test.
    """
    package = Path(minitrain.__file__).parent
    paths = files or sorted(package.rglob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in paths)[:size]
    cut = len(text) * 9 // 10
    return Data(*map(pieces, (text[:cut], text[cut:])))


def pieces(text: str) -> tuple[Tensor, Tensor]:
    """Cut a text into pieces of `LENGTH` characters, each with what comes after it."""
    codes, num = encode(text), (len(text) - 1) // LENGTH
    return tuple(codes[i : i + num * LENGTH].view(num, LENGTH) for i in (0, 1))


def encode(text: str) -> Tensor:
    """Return the places of characters in the alphabet."""
    place = {character: number for number, character in enumerate(ALPHABET)}
    return torch.tensor([place.get(each, len(ALPHABET) - 1) for each in text])


class Attention(nn.Module):
    """Each place takes in what it looks for at the places before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.match, self.tell = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v in each head, without a look ahead."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.ask, self.match, self.tell)
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.mix(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, and a multilayer perceptron at each place, both added to what is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Transformer(nn.Module):
    """From characters, (N, L), to logits of the next ones, (N, L, V)."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        places = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        x = self.characters(codes) + self.places(places)
        return self.head(self.norm(self.blocks(x)))


def model(width: int = 64, heads: int = 4, depth: int = 2) -> nn.Module:
    """Return a transformer with new random weights.

    Args:
        width: Numbers that stand for a character within.
        heads: Parts of an attention; each looks for something of its own.
        depth: How many blocks follow each other.
    """
    return Transformer(width, heads, depth)


def optimizer(
    parameters: list[nn.Parameter], lr: float = 4e-3, weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """Return AdamW, which transformers are trained with.

    Args:
        parameters: What is trained.
        lr: Learning rate: the largest of the schedule.
        weight_decay: How much of itself a parameter loses at a step, times lr.
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the next characters, in nats."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return for each piece what share was foreseen, and how surprising it was."""
    surprise = F.cross_entropy(outputs.mT, targets, reduction="none") / math.log(2)
    is_right = (outputs.argmax(dim=2) == targets).double()
    return {
        "accuracy": is_right.mean(dim=1),
        "bits_per_character": surprise.mean(dim=1),
    }


def draw(model: nn.Module, data: Data) -> dict[str, str]:
    """Return 400 characters that the model writes, as code in Markdown."""
    device = data.test[0].device
    text = "".join(write(model, "def ", 400, device))
    return {"sample": textwrap.indent(text, "    ", lambda line: True)}


def write(
    model: nn.Module, start: str, num: int, device: torch.device
) -> Iterator[str]:
    """Yield a start, and what the model goes on with, drawn from softmax(logits)."""
    generator, text = torch.Generator().manual_seed(0), start
    yield start
    for _ in range(num):
        codes = encode(text[-LENGTH:]).unsqueeze(0).to(device)
        chances = model(codes)[0, -1].softmax(dim=0).cpu()
        text += ALPHABET[int(torch.multinomial(chances, 1, generator=generator))]
        yield text[-1]
