"""Pictures of any kind as the bytes of a PNG file."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def as_png(picture: Any) -> bytes:
    """Return a picture as a PNG file.

    Args:
        picture: Whatever a notebook shows as a picture (by its method `_repr_png_`), a
            matplotlib figure, the bytes of a PNG file, or a uint8 tensor of shape
            (height, width), (1 or 3, height, width) or (height, width, 3).

    Raises:
        TypeError: It is not one of these.
    """
    if isinstance(picture, bytes) and picture.startswith(SIGNATURE):
        return picture
    if show := getattr(picture, "_repr_png_", None):
        return show()
    if save := getattr(picture, "savefig", None):
        buffer = io.BytesIO()
        save(buffer, format="png", dpi=120)
        return buffer.getvalue()
    what = type(picture).__name__
    if isinstance(picture, Tensor):
        what = f"a tensor {picture.dtype} of shape {tuple(picture.shape)}"
        pixels = picture.unsqueeze(0) if picture.dim() == 2 else picture
        if pixels.dim() == 3 and pixels.shape[0] not in (1, 3):
            pixels = pixels.permute(2, 0, 1)
        if pixels.dtype == torch.uint8 and pixels.dim() == 3 and len(pixels) in (1, 3):
            rows = pixels.cpu().permute(1, 2, 0).numpy()
            buffer = io.BytesIO()
            Image.fromarray(rows.squeeze(2) if len(pixels) == 1 else rows).save(
                buffer, "PNG"
            )
            return buffer.getvalue()
    raise TypeError(
        f"a picture is {what}: it must be a matplotlib figure, the bytes of a PNG "
        "file, or a uint8 tensor of shape (height, width), (3, height, width) or "
        "(height, width, 3)"
    )
