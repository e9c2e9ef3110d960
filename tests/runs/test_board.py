"""What TensorBoard reads back from the file that a board writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]: protobuf makes it
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from torch import nn

from minitrain.batches import Batches
from minitrain.runs.board import Board
from minitrain.runs.scalars import step_scalars
from minitrain.sgd import SGD
from minitrain.training import train

# The smallest valid PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


def read(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder), everything).Reload()


def events(folder: Path) -> list:
    (file,) = folder.iterdir()
    return [Event.FromString(raw) for raw in RawEventFileLoader(str(file)).Load()]


def test_values_come_back_whether_numbers_or_tensors(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        for step in range(1, 2001):
            board.log(step, {"loss/train": torch.tensor(1 / step), "lr": 0.1 * step})
        board.log(2001, {"loss/train": torch.tensor([float("nan")])})
    scalars = read(tmp_path).Scalars("loss/train")
    assert [e.step for e in scalars] == list(range(1, 2002))
    assert [e.value for e in scalars[:-1]] == [
        torch.tensor(1 / step).item() for step in range(1, 2001)
    ]
    assert scalars[-1].value != scalars[-1].value
    assert [e.value for e in read(tmp_path).Scalars("lr")] == pytest.approx(
        [0.1 * step for step in range(1, 2001)]
    )


def test_a_step_is_one_event_and_values_wait_for_the_flush(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.log(1, {"a": torch.tensor(1.0), "b": 2.0, "c": torch.tensor(3.0)})
    assert len(events(tmp_path)) == 1  # the version alone
    board.flush()
    _, event = events(tmp_path)
    assert {v.tag: v.simple_value for v in event.summary.value} == {
        "a": 1,
        "b": 2,
        "c": 3,
    }
    board.close()
    board.close()
    assert len(events(tmp_path)) == 2


def test_everything_about_a_training_is_one_run(tmp_path: Path) -> None:
    with Board(tmp_path / "a") as board:
        board.text("run/settings", "# lr = 0.1")
        board.image("picture", PNG, step=3)
        board.start_hparams(
            "a", {"lr": 0.1, "nesterov": True, "model": "mlp"}, ["loss"]
        )
        board.log(1, {"loss": 0.5})
        board.end_hparams(succeeded=False)
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().Runs()
    assert list(runs) == ["a"]
    accumulator = read(tmp_path / "a")
    (image,) = accumulator.Images("picture")
    assert (image.step, image.width, image.height) == (3, 1, 1)
    assert image.encoded_image_string == PNG
    (text,) = accumulator.Tensors("run/settings/text_summary")
    assert text.tensor_proto.string_val[0] == b"# lr = 0.1"

    def plugin(tag: str):
        content = accumulator.SummaryMetadata(tag).plugin_data.content
        message = plugin_data_pb2.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
        return message.FromString(content)

    start = plugin(metadata.SESSION_START_INFO_TAG).session_start_info
    assert start.hparams["lr"].number_value == 0.1
    assert start.hparams["nesterov"].bool_value is True
    assert start.hparams["model"].string_value == "mlp"
    end = plugin(metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == 2  # api_pb2.STATUS_FAILURE


def test_figures_and_tensors_are_pictures_and_a_folder_may_be_a_string(tmp_path):
    """Anything else is refused with what it is, and leaves no event."""
    figure, pixels = Figure((2, 1)), torch.zeros(4, 6, dtype=torch.uint8)
    with Board(str(tmp_path)) as board:
        board.image("figure", figure, 1)
        board.image("shown", Image.new("RGB", (5, 7)), 1)  # as a notebook would
        board.image("gray", pixels, 1)
        board.image("color", pixels.expand(3, 4, 6), 1)
        board.image("rows", pixels.unsqueeze(-1).expand(4, 6, 3), 1)
        for wrong in (3, pixels.float(), b"no picture", pixels.expand(2, 4, 6)):
            with pytest.raises(TypeError, match=r"a picture is .*: it must be"):
                board.image("wrong", wrong, 1)
    events = EventAccumulator(str(tmp_path)).Reload()
    sizes = {}
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        sizes[tag] = (image.width, image.height)
    assert sizes == {
        "figure": (240, 120),
        "shown": (5, 7),
        "gray": (6, 4),
        "color": (6, 4),
        "rows": (6, 4),
    }


def test_two_boards_in_one_folder_never_share_a_file(tmp_path: Path) -> None:
    boards = [Board(tmp_path) for _ in range(3)]
    for board in boards:
        board.close()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_kill_loses_less_than_a_second_of_points(tmp_path: Path) -> None:
    """SIGKILL a writer: every point that was a second old at its death is there."""
    code = (
        "import sys, time, pathlib; from minitrain.runs.board import Board\n"
        "board, start, step = Board(pathlib.Path(sys.argv[1])), time.time(), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    board.log(step, {'t': time.time() - start})\n"
        "    board.beat(); time.sleep(0.002)\n"
        "    if step == 1: print('started', flush=True)\n"
        "    if time.time() - start > 2.5: print('now', flush=True); time.sleep(9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["started\n", "now\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    points = read(tmp_path).Scalars("t")
    assert [p.step for p in points] == list(range(1, len(points) + 1))
    assert points[-1].value > 2.5 - 1.0


def test_the_tags_of_a_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    batches = Batches(torch.randn(8, 3), torch.randint(2, (8,)), batch_size=4)
    loss_fn = nn.functional.cross_entropy
    first, second = train(model, SGD(model.parameters(), lr=0.1), batches, loss_fn)
    with Board(tmp_path) as board:
        board.log(first.number, step_scalars(first))
    accumulator = read(tmp_path)
    assert set(accumulator.Tags()["scalars"]) == {
        "loss/train",
        "lr",
        "grad_norm/global",
        "grad_norm/weight",
        "grad_norm/bias",
    }
    (norm,) = accumulator.Scalars("grad_norm/global")
    assert norm.value == first.grad_norm and norm.step == 1
    between = second._replace(grad_norms=None, readings={"audit/ratio": 0.5})
    assert step_scalars(between) == {"audit/ratio": 0.5}
