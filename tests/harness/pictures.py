"""What a picture must be, as the library that decodes it says."""

from io import BytesIO

from PIL import Image


def assert_is_a_picture(png: bytes) -> None:
    """A whole PNG of a sensible size with more on it than a background."""
    assert png.endswith(b"IEND\xaeB`\x82")
    image = Image.open(BytesIO(png)).convert("RGB")
    assert min(image.size) > 400 and max(image.size) < 2000
    assert len(image.getcolors(maxcolors=2**24) or []) > 50
