"""What the gradient says of a step, and whether it is true.

Start with `minitrain.tags`, the table of all readings, and with `readings`, the
formulas for the gradient and the update of a step. `audit` and `truth` compute the loss
of the step's own batch once more, by `recompute`. `noise` says how much of a gradient
is noise, from the norms of `per_sample`, for which `layer_hooks` sets a `layer_watcher`
on the layers that `per_sample_layers` and `per_sample_attention` know. `sharpness` says
how strongly the loss curves, and `landscape` what it is around trained weights.

`panel` has them read at the right moments of a step (`watch`), as often as `cadence`
says: each step is an `observation`, and what later ones need of it a `memory`.
`findings` says what all this means in plain sentences, by `rules` that ask the
`evidence` that a run has given. Before the first step `preflight` looks at the samples,
as such (`sample_checks`, `neighbors`) and on their way through a copy of the model
(`model_checks`).

This room imports the book alone, and never changes a training.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.instruments.cadence import Cadence as Cadence
    from minitrain.instruments.findings import Findings as Findings
    from minitrain.instruments.guessing import loss_of_guessing as loss_of_guessing
    from minitrain.instruments.panel import Panel as Panel

_HOMES = {
    "Cadence": "cadence",
    "Findings": "findings",
    "Panel": "panel",
    "loss_of_guessing": "guessing",
}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)
