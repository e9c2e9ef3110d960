"""The experiments that come with minitrain as Python files, each in a short run."""

import functools
import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.commands import exit_code_of
from harness.pictures import assert_is_a_picture
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minitrain.experiment import Config, parts, runner
from minitrain.experiment.catalog import find
from minitrain.experiment.source import load_file
from minitrain.runs.summary import Summary
from minitrain.system.errors import Stopped
from minitrain.system.signals import Stop

SHORT: dict[str, dict[str, Any]] = {
    "spirals": {"epochs": 12, "data": {"turns": 0.5}},
    "sine": {"epochs": 6},
    "language": {"epochs": 3, "data": {"size": 20_000, "batch_size": 16}},
    "folder": {"epochs": 3, "data": {"workers": 0}},
}
"""Settings that make each experiment end in seconds."""

LOOKS = {"look": 5, "audit": 10, "truth": 0, "noise": 10}
"""Steps between two readings: left open, they would depend on the clock."""

WEIGHTS = {
    "spirals": ("0.weight", 3, 1),
    "sine": ("2.weight", 3, 1),
    "folder": ("0.weight", 3, 0, 1, 1),
}
"""A weight of every experiment that SGD trains."""

Outcome = tuple[Path, Summary]


@pytest.fixture(scope="module", autouse=True)
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which the images of `folder` are few."""
    root = tmp_path_factory.mktemp("data")
    functions_of("folder")["make_folder"](root / "minitrain" / "folder", 600, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINITRAIN_DATA", str(root))
        yield root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """The run directory and the summary of a run that nothing happens to."""

    @functools.cache
    def run(name: str) -> Outcome:
        folder = tmp_path_factory.mktemp(name)
        return folder, runner.run(settings(name, folder))

    return run


def functions_of(name: str) -> dict[str, Any]:
    return load_file(find(name)).data.__globals__


def settings(name: str, folder: Path, **others: Any) -> Config:
    options = {"threads": 1, "instruments": LOOKS, **SHORT[name], **others}
    return load_file(find(name)).config(run_dir=folder, **options)


def interrupt(config: Config, at: int) -> None:
    """Run until a signal comes at a step."""
    stop, train = Stop(), parts.train

    def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for step in train(*args, **kwargs):
            if step.number == at:
                stop.received = signal.SIGTERM
            yield step

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(parts, "train", watched)
        runner.run(config, stop=stop)


@pytest.mark.parametrize("name", SHORT)
def test_stopped_anywhere_it_ends_as_if_nothing_had_been(
    name: str, finished: Callable[[str], Outcome], tmp_path: Path, rng: random.Random
) -> None:
    _, whole = finished(name)
    interrupt(settings(name, tmp_path), rng.randrange(1, whole.steps))
    again = runner.run(settings(name, tmp_path, resume=True))
    assert again.fingerprint == whole.fingerprint
    assert again.test_loss == whole.test_loss


@pytest.mark.parametrize("name", SHORT)
def test_it_learns_and_nothing_is_found(
    name: str, finished: Callable[[str], Outcome]
) -> None:
    _, summary = finished(name)
    assert summary.findings == []
    assert summary.test_metrics is not None
    if name == "sine":  # the mean of |sin| is what 0 everywhere is off by
        assert summary.test_metrics["error"] < 0.7 * 2 / math.pi
    elif name == "language":
        assert summary.test_metrics["bits_per_character"] < entropy_of_its_text()
    else:
        classes = {"spirals": 2, "folder": 10}[name]
        assert summary.test_metrics["accuracy"] > 1.5 / classes


def entropy_of_its_text() -> float:
    """The bits per character of a guess by the frequencies of the characters."""
    inputs, _ = functions_of("language")["data"](size=20_000).test
    counts = Counter(inputs.flatten().tolist()).values()
    return -sum(n * math.log2(n / sum(counts)) for n in counts) / sum(counts)


@pytest.mark.parametrize("name", SHORT)
def test_it_shows_what_it_has_learned(
    name: str, finished: Callable[[str], Outcome]
) -> None:
    folder, _ = finished(name)
    events = EventAccumulator(str(folder), {"images": 0, "tensors": 0}).Reload()
    drawn = [tag for tag in events.Tags()["images"] if tag.startswith("pictures/")]
    for tag in drawn:
        (picture,) = events.Images(tag)
        assert_is_a_picture(picture.encoded_image_string)
    if name == "language":
        samples = events.Tensors("pictures/sample/text_summary")
        assert len({each.step for each in samples}) == len(samples) == 3
        assert len(samples[-1].tensor_proto.string_val[0]) > 400
    else:
        assert drawn


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_step_of_it_is_explained(
    name: str, finished: Callable[[str], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = finished(name)
    parameter, *index = WEIGHTS[name]
    words = ["--step", summary.steps, "--parameter", parameter, "--index", *index]
    assert exit_code_of("explain", folder, *words, "--trust-code") == 0
    assert "equal those of" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_images(
    workers: int, finished: Callable[[str], Outcome], tmp_path: Path
) -> None:
    _, whole = finished("folder")
    more = settings("folder", tmp_path, data={"workers": workers})
    assert runner.run(more).fingerprint == whole.fingerprint


def test_a_folder_of_images_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    """What is in it is what was drawn; a mistake on the way leaves nothing."""
    functions = functions_of("folder")
    folder, make = tmp_path / "images", functions["make_folder"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
        patch.setattr(Image.Image, "save", fail_at(7, Image.Image.save))
        make(folder, 20, 10)
    assert [*tmp_path.iterdir()] == []
    make(folder, 20, 10)
    assert make(folder, 99, 99) == folder
    images, labels = functions["draw_digits"](20, seed=0)
    read = functions["Images"](folder / "train", 28, 0)
    assert len(read) == 20 and sorted(labels.tolist()) == [y for _, y in read.files]
    for path, label in read.files:
        number = int(path.stem)
        assert label == labels[number]
        seen = torch.tensor([*Image.open(path).tobytes()]).view(28, 28)
        assert torch.equal(seen, images[number].long())


def fail_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for a full disk at a call of it."""
    calls = iter(range(1, 1000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise OSError("no space left")
        return function(*args, **kwargs)

    return call


def test_an_augmented_image_is_moved_and_nothing_else(few_images: Path) -> None:
    images = functions_of("folder")["Images"]
    train = few_images / "minitrain" / "folder" / "train"
    still, moved = images(train, 28, 0), images(train, 28, 2)
    framed = torch.nn.functional.pad(still[5][0], (2, 2, 2, 2), value=-1)
    places = {(i, j) for i in range(5) for j in range(5)}
    seen = set()
    for _ in range(20):
        image, _ = moved[5]
        seen |= {
            (i, j)
            for i, j in places
            if torch.equal(image, framed[:, i : i + 28, j : j + 28])
        }
    assert len(seen) > 5


def test_the_transformer_does_not_look_ahead() -> None:
    functions = functions_of("language")
    torch.manual_seed(0)
    model = functions["model"]()
    codes = torch.randint(96, (1, 64))
    others = codes.clone()
    others[0, 40:] = (others[0, 40:] + 1) % 96
    before, after = model(codes), model(others)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40], after[:, 40])


def test_bits_are_the_loss_in_another_unit() -> None:
    functions = functions_of("language")
    outputs, targets = torch.randn(5, 64, 96), torch.randint(96, (5, 64))
    bits = functions["metrics"](outputs, targets)["bits_per_character"]
    assert bits.shape == (5,)
    nats = functions["loss"](outputs, targets)
    torch.testing.assert_close(bits.mean() * math.log(2), nats)


def test_what_is_not_in_the_alphabet_is_read_all_the_same() -> None:
    functions = functions_of("language")
    codes = functions["encode"]("a\n~é\t")
    read = "".join(functions["ALPHABET"][code] for code in codes)
    assert read == "a\n~~~"
