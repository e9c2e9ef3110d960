"""What the gradient says of a step, and whether it is true.

Start with `readings`, the formulas, and then `panel`, which takes them at the right
moments of a step, `cadence` says how often. `audit` and `truth` compute the loss of a
step's own batch once more, by `recompute`. `noise` and `per_sample` say how much of a
gradient is noise, `sharpness` how the loss curves, and `findings` what all this means
in plain sentences.

This room imports the book alone, and never changes a training.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.instruments.cadence import Cadence as Cadence
    from minitrain.instruments.findings import Findings as Findings
    from minitrain.instruments.panel import Panel as Panel

_HOMES = {"Cadence": "cadence", "Findings": "findings", "Panel": "panel"}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
