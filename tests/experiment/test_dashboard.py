"""What TensorBoard shows of a whole run: charts, maps of layers, words and columns."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.runs import PANEL, keep_few_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from minitrain.experiment import journal, runner
from minitrain.experiment.definition import builtin
from minitrain.runs.board import Board
from minitrain.runs.summary import Summary
from minitrain.training import NotFiniteError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two epochs of ten steps on digits, with a reading at every step."""
    keep_few_digits(tmp_path / "data")
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "data"))

    def run(name: str = "run", **others: Any) -> Summary:
        few = {"epochs": 2, "data": {"name": "digits"}, "instruments": PANEL}
        few |= {"log": {"every": 1}, "run_dir": tmp_path / name}
        return runner.run(builtin().config(**{**few, **others}))

    return run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every picture that a board is given, before it is a file."""
    shown: list[tuple[str, Any]] = []
    image = Board.image

    def keep(self: Board, tag: str, picture: Any, step: int = 0) -> None:
        shown.append((tag, picture))
        image(self, tag, picture, step)

    monkeypatch.setattr(Board, "image", keep)
    return shown


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()


def layout_of(events: EventAccumulator) -> list[Any]:
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout  # pyright: ignore[reportAttributeAccessIssue]
    return layout.FromString(config.tensor_proto.string_val[0]).category


OTHERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "clip_norm": 0.1,
        "ema": 0.9,
        "data": {"name": "digits", "validation": 0.2},
        "instruments": {**PANEL, "sharpness": True},
    },
    "no decay": {"optimizer": {"weight_decay": 0.0}},
    "no panel": {"instruments": {"budget": 0.0}},
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_every_chart_has_curves_and_at_most_three(run, tmp_path, others) -> None:
    """As TensorBoard finds them: by regular expressions that begin where a tag does."""
    run(**others)
    events = read(tmp_path / "run")
    scalars = events.Tags()["scalars"]
    glance, depth = layout_of(events)
    assert (glance.closed, depth.closed) == (False, True)
    for category in (glance, depth):
        for chart in category.chart:
            seen = {
                tag
                for pattern in chart.multiline.tag
                for tag in scalars
                if re.match(pattern, tag)
            }
            assert 1 <= len(seen) <= 3, chart.title
            assert len(chart.multiline.tag) <= 3
    titles = [chart.title.partition(":")[0] for chart in glance.chart]
    panel = ["Step audit", "Stability", "Noise scale and batch size"]
    assert titles == [
        *("Loss", "Accuracy", "Gradient norm"),
        *(panel if "budget" not in others.get("instruments", {}) else []),
        "Learning rate",
    ]


def test_the_lines_beside_audit_and_noise_are_where_these_are(run, tmp_path) -> None:
    run(accumulate=2)
    events = read(tmp_path / "run")

    def steps(*tags: str) -> list[int]:
        return sorted({e.step for tag in tags for e in events.Scalars(tag)})

    ones, sizes = events.Scalars("audit/line_at_1"), events.Scalars("noise/batch_size")
    assert {e.value for e in ones} == {1.0} and {e.value for e in sizes} == {128.0}
    assert [e.step for e in ones] == steps("audit/ratio", "audit/margin")
    assert [e.step for e in sizes] == steps("noise/scale")
    assert len(sizes) > 1 < len(ones)


def map_of(figures: list[tuple[str, Any]], tag: str) -> tuple[list[str], Any]:
    """The rows and the colors of the last map."""
    figure = [picture for name, picture in figures if name == tag][-1]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    return labels, figure.axes[0].collections[0].get_array()


@pytest.mark.parametrize("quantity", ["grad_norm", "update_ratio"])
def test_a_map_of_layers_shows_what_is_logged(run, tmp_path, figures, quantity):
    run(optimizer={"decay": "matrices"})  # its groups are no order of the network
    events = read(tmp_path / "run")
    names, colors = map_of(figures, f"layers/{quantity}")
    assert names == [
        f"layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    ]
    logged = [[e.value for e in events.Scalars(f"{quantity}/{x}")] for x in names]
    expected = torch.tensor(logged, dtype=torch.float64).log10()
    assert expected.shape == (4, 20)
    assert torch.equal(torch.from_numpy(colors.data), expected)


def test_a_map_of_a_resumed_run_is_that_of_the_undisturbed_one(run, figures) -> None:
    schedule = {"schedule": {"name": "constant"}}
    whole = run("whole", **schedule)
    tags = "layers/grad_norm", "layers/update_ratio"
    undisturbed = [map_of(figures, tag) for tag in tags]
    run("parts", epochs=1, **schedule)
    figures.clear()
    assert run("parts", resume=True, **schedule).fingerprint == whole.fingerprint
    for tag, (names, colors) in zip(tags, undisturbed, strict=True):
        again, same = map_of(figures, tag)
        assert again == names and same.shape == colors.shape == (4, 20)
        assert (same.data == colors.data).all()


def test_long_runs_are_drawn_before_their_end_and_keep_their_bits(
    run, tmp_path, monkeypatch
) -> None:
    plain = run("plain")
    monkeypatch.setattr(journal, "LONG_SECONDS", 0)
    assert run("long").fingerprint == plain.fingerprint
    for name, steps in (("plain", [20]), ("long", [10, 20])):
        images = read(tmp_path / name).Images("layers/grad_norm")
        assert [image.step for image in images] == steps


def test_a_run_that_is_not_finite_shows_its_layers(run, tmp_path) -> None:
    with pytest.raises(NotFiniteError) as error:
        run(optimizer={"lr": 1e6, "momentum": 0.99}, schedule={"name": "constant"})
    (image,) = read(tmp_path / "run").Images("layers/grad_norm")
    assert image.step == error.value.step - 1 > 1


def test_every_tag_says_what_it_is(run, tmp_path) -> None:
    """TensorBoard's readers take a description with the first value of a tag."""
    instruments = {**PANEL, "sharpness": True, "histograms": True}
    data = {"name": "digits", "validation": 0.2}
    run(instruments=instruments, data=data, clip_norm=0.1, ema=0.9)
    events = read(tmp_path / "run")
    plugins = {"scalars": ("scalars", 1), "images": ("images", 3)}
    plugins |= {"histograms": ("histograms", 2)}
    for kind, expected in plugins.items():
        assert events.Tags()[kind]
        for tag in events.Tags()[kind]:
            told = events.SummaryMetadata(tag)
            assert len(told.summary_description) > 20, tag
            assert (told.plugin_data.plugin_name, told.data_class) == expected


def test_the_columns_begin_with_what_runs_differ_in(run, tmp_path) -> None:
    run(optimizer={"lr": 0.02})
    events = read(tmp_path / "run")

    def content(tag: str) -> Any:
        message = plugin_data_pb2.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
        return message.FromString(events.SummaryMetadata(tag).plugin_data.content)

    experiment = content(metadata.EXPERIMENT_TAG).experiment
    shown = sorted(experiment.hparam_infos, key=lambda info: info.name)
    names = [info.display_name for info in shown]
    assert names[:6] == ["lr", "momentum", "batch_size", "model", "epochs", "seed"]
    assert names[6:] == sorted(names[6:]) and "model.hidden" in names
    assert not any(name.startswith(("instruments", "log")) for name in names)
    row = content(metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    assert row["optimizer.lr"].number_value == 0.02
    assert row[shown[0].name].number_value == 0.02
    assert all(info.name in row for info in shown)
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["accuracy/test", "loss/test"]


def test_the_settings_tell_what_departs_from_the_defaults(run, tmp_path) -> None:
    run(optimizer={"lr": 0.02})
    (text,) = read(tmp_path / "run").Tensors("run/settings/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    first, *_ = told.splitlines()
    assert first == (
        "Trained on **digits**, with `epochs = 2`, `optimizer.lr = 0.02`; "
        "all else by default."
    )
    assert "(lr at most 0.02)" in told and "[optimizer]\nlr = 0.02" in told
