"""Pictures as the bytes of a PNG file: the same input gives the same bytes."""

import io

from matplotlib.figure import Figure

# Colors of Okabe and Ito, which the colour-blind can tell apart as well.
BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, without the entry that names the version."""
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(
        buffer, format="png", dpi=120, bbox_inches="tight", metadata=metadata
    )
    return buffer.getvalue()
