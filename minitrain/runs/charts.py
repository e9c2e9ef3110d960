"""The page Custom Scalars: which curves share a chart, and which charts come first.

TensorBoard colors by run and not by tag, so that a chart of many tags is a tangle: each
has at most three, of one scale. What every parameter has is a picture instead.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from minitrain import tags

# Classes that protobuf makes at run time, where no type checker sees them.
Summary: Any = vars(summary_pb2)["Summary"]
Tensor: Any = vars(tensor_pb2)["TensorProto"]
Layout: Any = vars(layout_pb2)["Layout"]

PARTS = "train", "validation", "test"
"""What is evaluated."""


OF_PANEL = frozenset(
    [
        "audit",
        "clip",
        "cosine",
        "cost",
        "momentum",
        "noise",
        "path",
        "truth",
        "update_ratio",
        "weight_decay",
    ]
)
"""The quantities of the instrument panel, whose charts a run without it lacks."""


class Category(NamedTuple):
    """Charts that are shown together."""

    title: str
    charts: Mapping[str, Sequence[str]]
    """By the title of each the tags on it."""
    is_closed: bool = False
    """Whether it has to be opened first."""


def at_a_glance(metric: str | None = "accuracy") -> Category:
    """Return the charts that are looked at first.

    Args:
        metric: The metric that is shown, if there is one.
    """
    metrics = {}
    if metric is not None:
        name = f"{metric[:1].upper()}{metric[1:]}"
        metrics[name] = [tags.tag(metric, part) for part in PARTS]
    return Category(
        "The run at a glance",
        {
            "Loss": [tags.TRAIN_LOSS, tags.VALIDATION_LOSS, tags.TEST_LOSS],
            **metrics,
            "Gradient norm": [tags.GLOBAL_GRAD_NORM],
            "Step audit: decrease delivered / promised": [
                tags.AUDIT_RATIO,
                tags.AUDIT_LINE,
            ],
            "Stability: learning rate / largest stable one": [
                tags.AUDIT_MARGIN,
                tags.AUDIT_LINE,
            ],
            "Noise scale and batch size": [tags.NOISE_SCALE, tags.BATCH_SIZE],
            "Learning rate": [tags.LR],
        },
    )


def in_depth(matrices: Sequence[str] = (), averaged: Sequence[str] = ()) -> Category:
    """Return the charts for a second look: layers, path, truth and cost.

    Args:
        matrices: The parameters with several dimensions, in the order of the network:
            the first and the last of them get a chart.
        averaged: The loss and the metrics that the averaged weights have, too.
    """
    ends = dict.fromkeys([*matrices[:1], *matrices[-1:]])
    layers = {
        f"{title}: {name}": [tags.tag(quantity, name)]
        for quantity, title in (
            (tags.GRAD_NORM, "Gradient norm"),
            (tags.UPDATE_RATIO, "Update / parameters"),
        )
        for name in ends
    }
    return Category(
        "Layers, path, truth and cost",
        layers
        | {
            "Update / parameters, all together": [tags.GLOBAL_UPDATE_RATIO],
            "Cosine to steepest descent": [tags.DESCENT_COSINE],
            "Cosine to the gradient before": [tags.PREVIOUS_COSINE],
            "Share of momentum in the step": [tags.MOMENTUM_SHARE],
            "Share of weight decay in the gradient": [tags.DECAY_SHARE],
            "Path: distance / length": [tags.EFFICIENCY],
            "Path: distance from the start": [tags.DISTANCE],
            "Curvature along the step": [tags.AUDIT_CURVATURE],
            "Sharpness and 2 / lr": [tags.LARGEST_EIGENVALUE, tags.STABLE_EIGENVALUE],
            "Share of signal in the gradient": [tags.SIGNAL_SHARE],
            "Clipped steps": [tags.CLIP_FRACTION],
            "Truth: error of the gradient": [tags.TRUTH_ERROR, tags.TRUTH_WORST_ERROR],
        }
        | {
            f"Averaged weights: {name}": [
                tags.tag(name, f"{part}_average") for part in PARTS[1:]
            ]
            for name in averaged
        }
        | {
            "Cost of the panel": [tags.PANEL_COST],
            "Waiting for other processes": [tags.WAITING],
            "Samples per second": [tags.THROUGHPUT],
        },
        is_closed=True,
    )


def without(categories: Sequence[Category], absent: Collection[str]) -> list[Category]:
    """Return the categories without the charts that would stay empty.

    Args:
        categories: The charts.
        absent: Tags that a run does not log, or quantities of which it logs nothing.
    """

    def is_seen(title_and_tags: tuple[str, Sequence[str]]) -> bool:
        first = title_and_tags[1][0]
        return first not in absent and first.partition("/")[0] not in absent

    return [
        each._replace(charts=dict(filter(is_seen, each.charts.items())))
        for each in categories
    ]


def layout(categories: Sequence[Category], prefix: str = "") -> Any:
    """Return the summary that arranges the page.

    Args:
        categories: The charts.
        prefix: A regular expression of what may stand before the tags.
    """
    arranged = Layout()
    for each in categories:
        category = arranged.category.add(title=each.title, closed=each.is_closed)
        for title, shown in each.charts.items():
            chart = category.chart.add(title=title)
            # TensorBoard asks whether a tag begins with what is given.
            chart.multiline.tag.extend(f"{prefix}{re.escape(x)}$" for x in shown)
    tensor = Tensor(
        dtype=types_pb2.DT_STRING,  # pyright: ignore[reportAttributeAccessIssue]
        string_val=[arranged.SerializeToString()],
    )
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        tensor=tensor,
        metadata=metadata.create_summary_metadata(),
    )
    return Summary(value=[value])
