"""A small transformer that learns to write, one character after the other.

It reads its own framework: by default the text is the source code of minitrain. Each
place attends to those before it, and the loss is the cross-entropy of the character
that comes next. After every epoch TensorBoard's page Text has a new sample of what it
writes, from noise to something that looks like Python.

    minitrain train language
    minitrain train language --data.files notes.txt letters.txt

Source: Vaswani et al., Attention is all you need, 2017; the norms come first here.
"""

# Result: 2.0 bits per character (mean of seeds 0, 1 and 2); the frequencies of the
# characters alone give 4.7. It moves with the sources, which are the text.

import math
import textwrap
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minitrain
from minitrain import Data

SETTINGS = {
    "epochs": 10,
    "threads": 1,  # a step is too short to be shared
    "data.batch-size": 32,
    "clip-norm": 1.0,
    "log.pictures": 1,
}

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""What can be read and written; any other character is read as the last of these."""

LENGTH = 64
"""How many characters the model sees at once."""


def data(files: tuple[Path, ...] = (), size: int = 200_000) -> Data:
    """Return pieces of text, (N, LENGTH), and as targets the same, one place further.

    Args:
        files: The text, one after another; by default the source code of minitrain.
        size: How many characters of it are read, of which the last tenth is the test.
    """
    paths = files or sorted(Path(minitrain.__file__).parent.rglob("*.py"))
    codes = encode("".join(path.read_text("utf-8") for path in paths)[:size])
    train, test = codes.tensor_split([len(codes) * 9 // 10])
    return Data(cut(train), cut(test))


def encode(text: str) -> Tensor:
    """Return the places of characters in the alphabet."""
    return torch.tensor([ALPHABET.find(each) % len(ALPHABET) for each in text])


def cut(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a text into pieces, each with the characters that come next."""
    num = (len(codes) - 1) // LENGTH
    inputs, targets = codes[: num * LENGTH], codes[1 : num * LENGTH + 1]
    return inputs.view(num, LENGTH), targets.view(num, LENGTH)


class Block(nn.Module):
    """Attention, then a perceptron at each place; both add to what is there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (
            nn.Linear(width, width) for _ in range(4)
        )
        expand, contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), expand, nn.GELU(), contract)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm(x))
        return x + self.mlp(x)

    def attend(self, x: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(d)) v of each head, mixed; nobody looks ahead."""
        q, k, v = (  # each (N, heads, L, d)
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.mix(found.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """From characters, (N, L), to logits of those that come next, (N, L, V)."""

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
        heads: Attentions in a block, which share its width.
        depth: How many blocks there are.
    """
    return Transformer(width, heads, depth)


def optimizer(parameters: list[nn.Parameter], lr: float = 4e-3) -> torch.optim.AdamW:
    """Return AdamW, which transformers are trained with.

    Args:
        parameters: What is trained.
        lr: Learning rate: the largest of the schedule.
    """
    return torch.optim.AdamW(parameters, lr=lr)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the next characters, in nats."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return for each piece what share was foreseen, and how surprising it was."""
    surprise = F.cross_entropy(outputs.mT, targets, reduction="none") / math.log(2)
    is_right = (outputs.argmax(dim=2) == targets).double()
    return {"accuracy": is_right.mean(1), "bits_per_character": surprise.mean(1)}


def draw(model: nn.Module, data: Data) -> dict[str, str]:
    """Return what the model writes when it begins with a line, as code in Markdown."""
    generator, text = torch.Generator().manual_seed(0), "\n"
    for _ in range(400):
        codes = encode(text[-LENGTH:]).unsqueeze(0).to(data.test[0].device)
        chances = model(codes)[0, -1].softmax(dim=0).cpu()
        text += ALPHABET[int(torch.multinomial(chances, 1, generator=generator))]
    return {"sample": textwrap.indent(text, "    ", lambda line: True)}
