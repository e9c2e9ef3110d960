"""Settings: defaults < file < flags, and for each bad one a message and exit code 2."""

import os
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from harness.commands import ROOT, in_a_process

from minitrain import schedules
from minitrain.experiment import Config
from minitrain.experiment.catalog import shipped
from minitrain.experiment.reading import parse, read, to_toml
from minitrain.experiment.settings import (
    LogSettings,
    ScheduleSettings,
)

SCRIPT = ROOT / "scripts" / "train.py"

CHANGED = Config(
    run_dir=Path('runs/a "quoted" é\\folder'),
    seed=2**63 - 1,
    epochs=7,
    device="cuda:1",
    threads=3,
    precision="bfloat16",
    clip_norm=1e-300,
    accumulate=2,
    debug=True,
    data=dict(name="digits", root=Path("/data"), batch_size=60_000),
    model=dict(name="cnn", hidden=(3, 4)),
    loss=dict(label_smoothing=0.25),
    optimizer=dict(
        lr=0.1, momentum=0.5, dampening=-0.5, weight_decay=1 / 3, nesterov=False
    ),
    schedule=ScheduleSettings(name="step", warmup=5),
    log=LogSettings(every=1),
)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a TOML file, and tell where."""

    def write(text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        key
        for name, value in values.items()
        for key in (
            keys(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [(prefix + name).replace("_", "-")]
        )
    ]


# Where settings come from


def test_no_arguments_are_the_defaults(file: Callable[[str], Path]):
    assert parse([]) == Config() == read(file(""))


def test_file_overrides_defaults_and_flags_override_the_file(
    file: Callable[[str], Path],
):
    path = file(
        "epochs = 2\nclip-norm = 3\n[data]\nbatch-size = 100\n"
        "[optimizer]\nlr = 1\nmomentum = 0.5\nnesterov = true\n[model]\nhidden = []\n"
    )
    from_file = read(path)
    assert from_file == parse([str(path)])
    assert from_file == Config(
        epochs=2,
        clip_norm=3.0,
        data=dict(batch_size=100),
        optimizer=dict(lr=1.0, momentum=0.5, nesterov=True),
        model=dict(hidden=()),
    )
    flags = "--epochs 3 --optimizer.lr 0.2 --optimizer.no-nesterov --model.hidden 9 8"
    assert parse([str(path), *flags.split()]) == Config(
        epochs=3,
        clip_norm=3.0,
        data=dict(batch_size=100),
        optimizer=dict(lr=0.2, momentum=0.5),
        model=dict(hidden=(9, 8)),
    )


@pytest.mark.parametrize("config", [Config(), CHANGED], ids=["defaults", "changed"])
def test_written_settings_read_back_equal(config: Config, file: Callable[[str], Path]):
    path = file(to_toml(config))
    assert read(path) == config
    assert "_" not in "".join(
        re.findall(r"^[\w-]+", path.read_text("utf-8"), re.MULTILINE)
    )


def test_written_settings_are_complete():
    """A run's config.toml must not depend on the defaults of later versions."""
    written = tomllib.loads(to_toml(Config()))
    unset = {"run-dir", "threads", "clip-norm", "data.root"}
    unset |= {f"instruments.{kind}" for kind in ("look", "audit", "truth", "noise")}
    unset |= {
        "ema",
        "resume",
        "allow-changes",
        "trust-code",
    }  # how it was started, not what it is
    assert {*keys(written)} == {*keys(Config().model_dump())} - unset


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_experiments_can_be_read(path: Path):
    assert parse([str(path)]) == read(path)


def test_names_are_those_of_the_parts():
    def choices(settings: type[Any]) -> set[str]:
        return set(get_args(settings.model_fields["name"].annotation))

    assert choices(ScheduleSettings) == set(schedules.SCHEDULES)


def test_settings_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        Config().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


# Bad settings. What stands on the left must be refused with all of what stands right.

GREATER = "must be greater than or equal to"

BAD_FLAGS: dict[str, tuple[str, ...]] = {
    "--optimizer.lr -1": ("optimizer.lr = -1.0: must be greater than 0",),
    "--optimizer.lr=0": ("optimizer.lr = 0.0: must be greater than 0",),
    "--optimizer.lr nan": ("optimizer.lr = nan: must be a finite number",),
    "--optimizer.lr inf": ("optimizer.lr = inf: must be a finite number",),
    "--optimizer.lr fast": ("--optimizer.lr", "float", "'fast'"),
    "--optimizer.momentum -0.1": (f"optimizer.momentum = -0.1: {GREATER} 0",),
    "--optimizer.weight-decay -1": (f"optimizer.weight-decay = -1.0: {GREATER} 0",),
    "--optimizer.dampening nan": ("optimizer.dampening = nan: must be a finite",),
    "--optimizer.nesterov --optimizer.momentum 0": (
        "optimizer: nesterov needs momentum > 0 and dampening = 0",
        "momentum = 0.0",
    ),
    "--optimizer.nesterov --optimizer.dampening 0.5": (
        "optimizer: nesterov needs momentum > 0 and dampening = 0",
        "dampening = 0.5",
    ),
    "--data.batch-size 0": (f"data.batch-size = 0: {GREATER} 1",),
    "--data.batch-size 1000000001": ("must be less than or equal to 1000000000",),
    "--data.name cifar": ("'cifar'", "--data.name", "'mnist'", "'digits'"),
    "--model.name resnet": ("'resnet'", "--model.name", "'mlp'"),
    "--model.hidden 128 0": (f"model.hidden.1 = 0: {GREATER} 1",),
    "--model.hidden wide": ("--model.hidden", "INT", "'wide'"),
    "--loss.label-smoothing -0.1": (f"loss.label-smoothing = -0.1: {GREATER} 0",),
    "--loss.label-smoothing 1.1": ("loss.label-smoothing = 1.1: must be less than",),
    "--schedule.name exponential": ("'exponential'", "--schedule.name", "'cosine'"),
    "--schedule.warmup -1": (f"schedule.warmup = -1: {GREATER} 0",),
    "--log.every 0": (f"log.every = 0: {GREATER} 1",),
    "--epochs 0": (f"epochs = 0: {GREATER} 1",),
    "--epochs -3": (f"epochs = -3: {GREATER} 1",),
    "--epochs 1.5": ("--epochs", "int", "'1.5'"),
    "--epochs": ("Missing value", "'--epochs'"),
    "--epochs 1 2": ("Unrecognized options: 2",),
    "--epochs 1 late.toml": ("Unrecognized options: late.toml",),
    "--epoch 1": ("--epoch", "Perhaps you meant", "--epochs INT"),
    "--lr 0.1": ("--lr", "Perhaps you meant", "--optimizer.lr FLOAT"),
    "--seed -1": (f"seed = -1: {GREATER} 0",),
    "--seed 9223372036854775808": ("seed = 9223372036854775808: must be less than",),
    "--threads 0": (f"threads = 0: {GREATER} 1",),
    "--accumulate 0": (f"accumulate = 0: {GREATER} 1",),
    "--clip-norm 0": ("clip-norm = 0.0: must be greater than 0",),
    "--precision float16": ("'float16'", "--precision", "'bfloat16'"),
    "--device gpu": ("device: 'gpu' is not one of auto, cpu", "cuda"),
    "--device cuda:": ("device: 'cuda:' is not one of auto, cpu", "cuda"),
    "nowhere.toml": ("cannot read nowhere.toml: No such file",),
    ".": ("cannot read .: not a regular file",),
    "--model.dropout 1": ("model.dropout = 1.0: must be less than 1",),
    "--model.dropout -0.1": (f"model.dropout = -0.1: {GREATER} 0",),
    "--run-dir a\x1b[31m": (r"run-dir: 'a\x1b[31m' has characters that cannot be",),
    "--run-dir a\udcff": (r"run-dir: 'a\udcff' has characters that cannot be",),
    "--data.root a\x07": (r"data.root: 'a\x07' has characters that cannot be",),
}

BAD_FILES: dict[str, tuple[str, ...]] = {
    "epoch = 3": ("epoch: there is no such setting; did you mean epochs?",),
    "lr = 3": ("lr: there is no such setting; did you mean optimizer.lr?",),
    "every = 3": ("every: there is no such setting; did you mean log.every or ",),
    "name = 'mlp'": ("did you mean data.name or model.name or schedule.name?",),
    "[optimizer]\nmomentun = 0.9": (
        "optimizer.momentun: there is no such setting; did you mean "
        "optimizer.momentum?",
    ),
    "[optimizer]\nlearning-rate = 1": ("optimizer.learning-rate: there is no such",),
    "[optimiser]\nlr = 1": (
        "optimiser: there is no such setting; did you mean optimizer?",
    ),
    "[data]\nbatchsize = 1": ("did you mean data.batch-size?",),
    "[optimizer]\nlr = '0.1'": ("optimizer.lr = '0.1': must be a valid number",),
    "[optimizer]\nlr = true": ("optimizer.lr = True: must be a valid number",),
    "[optimizer]\nlr = [0.1]": ("optimizer.lr = [0.1]: must be a valid number",),
    "[optimizer]\nlr = -1": ("optimizer.lr = -1: must be greater than 0",),
    "[optimizer]\nlr = nan": ("optimizer.lr = nan: must be a finite number",),
    "[optimizer]\nweight-decay = inf": ("optimizer.weight-decay = inf: must be a",),
    "[optimizer]\nnesterov = 1": ("optimizer.nesterov = 1: must be a valid boolean",),
    "[optimizer]\nnesterov = true\nmomentum = 0": ("optimizer: nesterov needs",),
    "epochs = 1.5": ("epochs = 1.5: must be a valid integer",),
    "epochs = 2.0": ("epochs = 2.0: must be a valid integer",),
    "epochs = '2'": ("epochs = '2': must be a valid integer",),
    "epochs = true": ("epochs = True: must be a valid integer",),
    "epochs = 0": (f"epochs = 0: {GREATER} 1",),
    "epochs = 0\nseed = -1": (f"epochs = 0: {GREATER} 1", f"seed = -1: {GREATER} 0"),
    "optimizer = 3": ("optimizer = 3: must be a section",),
    "[model]\nhidden = 128": ("model.hidden = 128: must be a list",),
    "[model]\nhidden = [128, 0]": (f"model.hidden.1 = 0: {GREATER} 1",),
    "[model]\nhidden = ['a']": ("model.hidden.0 = 'a': must be a valid integer",),
    "[data]\nname = 'cifar'": ("data.name = 'cifar': must be", "'mnist'", "'digits'"),
    "[data]\nroot = 5": ("data.root = 5: must be a path",),
    "device = 'gpu'": ("device: 'gpu' is not one of auto, cpu",),
    "device = 0": ("device = 0: must be a valid string",),
    "epochs = 1\nepochs = 2": ("is not valid TOML", "Cannot overwrite a value"),
    "clip-norm = 1\nclip_norm = 2": ("one setting twice, among clip-norm, clip_norm",),
    "epochs = = 1": ("is not valid TOML", "line 1, column 10"),
    "[optimizer": ("is not valid TOML",),
    "device = '\xff'": ("is not valid TOML", "byte 0xff in position 10"),
    "epochs = " + "9" * 5000: ("is not valid TOML", "4300 digits"),
    "epochs = " + "[" * 10_000 + "]" * 10_000: ("is not valid TOML", "too deeply"),
    ".".join("a" * 10_000) + " = 1": ("is not valid TOML", "too deeply"),
    "[data]\nbatch-size = 1_000_000_000_000": (
        "must be less than or equal to 1000000000",
    ),
    'run-dir = "a\\u001b[2J"': ("run-dir", "characters that cannot be printed"),
    "\x00": ("is not valid TOML",),
}


@pytest.fixture
def main(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[object, str]]:
    """The script without its experiment, in an empty working directory.

    Returns the exit code and what was written to standard error, in one line. The
    settings of a run that would have started are the exit code.
    """

    def run(*arguments: str) -> tuple[object, str]:
        started: list[object] = []
        monkeypatch.setattr(
            "minitrain.cli.train.train", lambda config, *_: started.append(config)
        )
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        errors = re.sub("[─-╿]", " ", capsys.readouterr().err)  # tyro draws boxes
        return (started[0] if started else caught.value.code), " ".join(errors.split())

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return run


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_good_settings_start_the_run(
    main: Callable[..., tuple[object, str]], file: Callable[[str], Path]
):
    """Otherwise every test below might pass because everything is refused."""
    path = str(file("[optimizer]\nlr = 0.1"))
    expected = Config(epochs=2, optimizer=dict(lr=0.1))
    assert main(path, "--epochs", "2") == (expected, "")


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(flags: str, main: Callable[..., tuple[object, str]], tmp_path: Path):
    before = tree(tmp_path)
    code, message = main(*flags.split())
    assert code == 2
    assert [part for part in BAD_FLAGS[flags] if part not in message] == [], message
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files(text: str, main: Callable[..., tuple[object, str]], tmp_path: Path):
    path = tmp_path / "experiment.toml"
    path.write_bytes(text.encode("latin-1"))
    before = tree(tmp_path)
    code, message = main(str(path), "--seed", "3")
    assert code == 2
    assert message.startswith(f"error: in {path}: ") or (
        message.startswith(f"error: {path} is not valid TOML: ")
    )
    assert [part for part in BAD_FILES[text] if part not in message] == [], message
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's special files")
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "huge", "folder"])
def test_what_is_no_settings_file_is_not_waited_for(
    kind: str, main: Callable[..., tuple[object, str]], tmp_path: Path
):
    path = tmp_path / "experiment.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as sparse:
            sparse.truncate(2**30)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path(kind)
    code, message = main(str(path))
    rule = "more than 1000000 bytes" if kind == "huge" else "not a regular file"
    assert code == 2 and f"cannot read {path}: " in message and rule in message


def test_names_cannot_act_on_the_terminal(main: Callable[..., tuple[object, str]]):
    assert main("no\x1b[31m.toml")[1].startswith(r"error: cannot read no\x1b[31m.toml")


def test_debug_shows_the_traceback(main: Callable[..., tuple[object, str]]):
    """And leaves the exit code as it is: 1 would be the answer no of a command."""
    code, error = main("--debug", "--epochs", "0")
    assert code == 2 and "Traceback" in error and "SettingsError: epochs = 0" in error


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert [key for key in keys(Config().model_dump()) if f"--{key}" not in shown] == []
    assert "EXPERIMENT" in shown and all(name in shown for name in shipped())


# The real command


def test_command_refuses_in_one_line(tmp_path: Path):
    done = in_a_process(SCRIPT, "--optimizer.lr", -1, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: optimizer.lr = -1.0: must be greater than 0\n"
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "code"), [(["--help"], 0), (["--epochs", "0"], 2), (["--epoch", "1"], 2)]
)
def test_answers_come_without_importing_torch(
    flags: list[str], code: int, tmp_path: Path
):
    """It takes seconds; whoever asks for help or mistypes gets the answer at once."""
    program = f"""
import runpy, sys
sys.argv = ["train.py", *{flags!r}]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
finally:
    print("slow:", *{{"torch", "torchvision", "matplotlib"}} & {{*sys.modules}})
"""
    done = in_a_process("-c", program, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "slow:"
    assert tree(tmp_path) == []
