"""The row of a run in TensorBoard's page HParams."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

# Classes that protobuf makes at run time, where no type checker sees them.
Summary: Any = vars(summary_pb2)["Summary"]
Status: Any = vars(api_pb2)["Status"]
HParams: Any = vars(plugin_data_pb2)["HParamsPluginData"]
SessionEnd: Any = vars(plugin_data_pb2)["SessionEndInfo"]

Values = Mapping[str, bool | float | str]

FIRST = {
    "optimizer.lr": "lr",
    "optimizer.momentum": "momentum",
    "data.batch_size": "batch_size",
    "model.name": "model",
    "epochs": "epochs",
    "seed": "seed",
}
"""The settings that most runs differ in: the first columns, in this order, with short
names."""


def columns(settings: Values, metrics: Sequence[str]) -> Any:
    """Return the summary that names the columns: some settings first, then metrics.

    TensorBoard sorts the columns by name and ticks five of them. A digit before its
    name, under which `row` has its value once more, gives a setting its place.
    """
    names = [
        summary_v2.HParam(_placed(key), display_name=FIRST.get(key, key))
        for key in sorted(settings, key=_placed)
    ]
    tags = [summary_v2.Metric(tag) for tag in metrics]
    return summary_v2.hparams_config_pb(names, tags)


def row(run: str, settings: Values) -> Any:
    """Return the summary that opens the row of a run."""
    placed = {_placed(key): value for key, value in settings.items()}
    return summary_v2.hparams_pb({**settings, **placed}, trial_id=run)


def end(succeeded: bool) -> Any:
    """Return the summary that closes the row, with how the run ended."""
    status = "STATUS_SUCCESS" if succeeded else "STATUS_FAILURE"
    info = SessionEnd(status=Status.Value(status), end_time_secs=time.time())
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(HParams(session_end_info=info)),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])


def _placed(key: str) -> str:
    """Return the name by which a column is sorted.

    >>> [_placed(key) for key in ("optimizer.lr", "lr", "seed", "model.hidden")]
    ['1 lr', '1 lr', '6 seed', 'model.hidden']
    """
    name = FIRST.get(key, key)
    number = [*FIRST.values(), name].index(name) + 1
    return f"{number} {name}" if number <= len(FIRST) else key
