"""Handwritten-looking digits drawn at run time: a data set that needs no file.

They have the form of MNIST, white strokes on black, and stand in for it offline.
A few clean glyphs become a data set through the distortions that tell one handwriting
from another, after Simard, Steinkraus and Platt (2003), "Best practices for
convolutional neural networks applied to visual document analysis".
"""

from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional

from minitrain.datasets.cache import read_or_make
from minitrain.datasets.dataset import Dataset, Examples

VERSION = 1
"""To be raised when the images change: copies of them are kept."""

SIZE = 28
"""Pixels along each side of an image, as in MNIST."""

PIXEL = 2 / SIZE
"""One pixel in the coordinates of grid_sample, from -1 to 1 along each side."""

HANDS = ("0123456789", "0IZ345678q")
"""What each hand writes for 0 to 9: the second borrows letters from the font."""

CANVAS = 2 * SIZE
"""Glyphs are drawn at twice the size: this gives outlines to half a pixel."""

FONT_SIZE = 48
"""Makes a digit 33 high on the canvas: 16 or 17 of the 28 pixels."""

# The bounds of uniform distributions: no draw is extreme, so every digit stays legible.
ROTATION = 0.2
"""Radians either way: with more, a 1 and a 7 lean into each other."""

SLANT = 0.35
"""Sideways per unit of height: what differs most between two writers."""

SCALE = (0.8, 1.15)
"""Scales of width and height, drawn apart; the largest fit the frame."""

SHIFT = 1.0
"""Pixels either way: nobody writes in the exact middle of the box."""

TREMOR = 2.5
"""Pixels either way at a knot, as strong as in Simard et al. (sd 1.4)."""

KNOTS = 4
"""Per side, so 9 pixels apart: about a stroke, which then bends as one."""

WEIGHT = (-0.25, 0.7)
"""Pixels added around the outline: from a fine pen to a marker."""

FRAY = 0.2
"""Pixels either way at the edge of the ink: noise that keeps black black."""

BRIGHTNESS = (0.7, 1.0)
"""Of full white: the pressure of the pen."""

TRAIN_SEED, TEST_SEED = 0, 1
"""Of the data set `digits`."""

CHUNK = 2000
"""Images drawn at a time, in about 50 MB."""


def draw_digits(num_images: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images of digits from the seed alone.

    The pixel at x looks at the point y(x) of a glyph and is white where that lies
    inside the glyph's outline or less than a stroke's weight w outside it:

        y(x) = A x + t + u(x),    image(x) = b * clamp(1/2 + w + n(x) - d(y(x)), 0, 1)

    A rotates, slants and scales, t shifts, u is a smooth random displacement; d is the
    signed distance from the outline in pixels, n frays the edge of the stroke and b is
    its brightness. All but d, which is the glyph, are drawn anew for each image.
    The classes are equally frequent, to within one image, and in random order.

    Args:
        num_images: N, how many to draw.
        seed: What the draws depend on; the global random state is left alone.

    Returns:
        Images, (N, 28, 28) uint8, and labels, (N,) int64.

    Raises:
        ValueError: num_images is less than 1.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    generator = Generator().manual_seed(seed)
    labels = _draw_labels(num_images, generator)
    glyphs = torch.stack([_distance(character) for character in "".join(HANDS)])
    chunks = [_draw(glyphs, chunk, generator) for chunk in labels.split(CHUNK)]
    return torch.cat(chunks), labels


def _draw_labels(num_images: int, generator: Generator) -> Tensor:
    """Draw every class as often, to within one image, in random order."""
    return torch.randperm(num_images, generator=generator) % 10


def _distance(character: str) -> Tensor:
    """Return d, the pixels from each canvas point to the outline, negative in the ink.

    Unlike the ink itself, d is almost linear, so it can be interpolated without blur,
    and a constant added to it makes every stroke bolder or finer.
    """
    from PIL import Image, ImageDraw, ImageFont  # only where digits are drawn

    font = ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = font.getbbox(character)
    corner = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)

    levels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    ink = levels.view(CANVAS, CANVAS) > 127
    between = torch.cdist(ink.nonzero().float(), (~ink).nonzero().float())
    distance = torch.empty(CANVAS, CANVAS, dtype=torch.float32)
    distance[ink] = 0.5 - between.amin(dim=1)  # the outline runs between two points
    distance[~ink] = between.amin(dim=0) - 0.5
    return distance * (SIZE / CANVAS)


def _draw(glyphs: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Draw an image per label; glyphs, (hands * 10, CANVAS, CANVAS), hold d of each."""
    num_images = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(num_images, *shape, generator=generator, dtype=torch.float32)
        return low + (high - low) * unit

    # (A t) with A = rotation(angle) [[1, slant], [0, 1]] diag(1 / width, 1 / height).
    angle, slant = uniform(-ROTATION, ROTATION), uniform(-SLANT, SLANT)
    width, height = uniform(*SCALE), uniform(*SCALE)
    right, down = uniform(-SHIFT, SHIFT) * PIXEL, uniform(-SHIFT, SHIFT) * PIXEL
    cos, sin = angle.cos(), angle.sin()
    first_row = [cos / width, (cos * slant - sin) / height, right]
    second_row = [sin / width, (sin * slant + cos) / height, down]
    affine = torch.stack(first_row + second_row, dim=1).view(num_images, 2, 3)
    points = functional.affine_grid(
        affine, [num_images, 1, SIZE, SIZE], align_corners=False
    )  # (N, SIZE, SIZE, 2)

    # u: random at a few knots, smooth between them. Simard et al. blur a random number
    # per pixel instead, which looks the same and costs fifty times the random numbers.
    knots = uniform(-TREMOR, TREMOR, 2, KNOTS, KNOTS) * PIXEL
    tremor = functional.interpolate(
        knots, size=(SIZE, SIZE), mode="bicubic", align_corners=True
    )
    points = points + tremor.permute(0, 2, 3, 1)

    hands = torch.randint(len(HANDS), (num_images,), generator=generator)
    distance = functional.grid_sample(
        glyphs[10 * hands + labels].unsqueeze(1),
        points,
        padding_mode="border",  # beyond the canvas is as far from ink as its border
        align_corners=False,
    ).squeeze(1)

    weight, fray = uniform(*WEIGHT, 1, 1), uniform(-FRAY, FRAY, SIZE, SIZE)
    ink = (0.5 + weight + fray - distance).clamp(0, 1)
    return (255 * uniform(*BRIGHTNESS, 1, 1) * ink).to(torch.uint8)


def digits(root: Path, num_train: int = 60_000, num_test: int = 10_000) -> Dataset:
    """Draw digits from fixed seeds, for machines that have no data and no network.

    Args:
        root: The folder to keep them in, in the file minitrain/digits-*.pt.
        num_train: How many to train on.
        num_test: How many to test on.
    """

    def draw() -> tuple[Examples, Examples]:
        train = draw_digits(num_train, seed=TRAIN_SEED)
        test = draw_digits(num_test, seed=TEST_SEED)
        return Examples(*train), Examples(*test)

    def are_right(train: Examples, test: Examples) -> bool:
        return _may_be_drawn(train, TRAIN_SEED) and _may_be_drawn(test, TEST_SEED)

    path = root / "minitrain" / f"digits-{num_train}-{num_test}-v{VERSION}.pt"
    return Dataset("digits", tuple("0123456789"), *read_or_make(path, draw, are_right))


def _may_be_drawn(examples: Examples, seed: int) -> bool:
    """Whether examples are drawn digits, as their form and all of their labels tell."""
    images, labels = examples
    expected = _draw_labels(len(labels), Generator().manual_seed(seed))
    return (
        len(labels) > 0
        and images.shape == (len(labels), SIZE, SIZE)
        and images.dtype == torch.uint8
        and labels.dtype == expected.dtype
        and torch.equal(labels, expected)
    )
