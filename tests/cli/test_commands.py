"""The commands by name: all there, quick to answer, and the same by every door."""

import sys
from pathlib import Path

import pytest
from harness.commands import ROOT, exit_code_of, in_a_process

import minitrain
from minitrain import cli
from minitrain.cli import commands
from minitrain.cli.commands import COMMANDS
from minitrain.system.errors import SettingsError
from minitrain.system.terminal import BUG

SLOW = {"torch", "torchvision", "matplotlib", "tensorboard"}
"""What takes seconds to import: whoever asks for help or mistypes does not wait."""


def test_every_file_of_the_room_is_a_command_and_every_command_a_script() -> None:
    files = {path.stem for path in (ROOT / "minitrain" / "cli").glob("[!_]*.py")}
    assert files - {"commands"} == set(COMMANDS)
    sign = cli.__doc__ or ""
    assert all(f"`{name}`" in sign for name in files)
    assert all((ROOT / "scripts" / f"{name}.py").is_file() for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("", 2),
        ("--help", 0),
        ("--version", 0),
        ("trian", 2),
        ("train --help", 0),
        ("train --epochs 0", 2),
        ("train mnist-cn", 2),
        ("descend --help", 0),
        ("explain --help", 0),
        ("plot --help", 0),
        ("landscape --help", 0),
        ("landscape nowhere --points 4", 2),
        ("plot", 2),
    ],
)
def test_answers_come_without_slow_imports(
    words: str, code: int, tmp_path: Path
) -> None:
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('minitrain', run_name='__main__')\n"
        "finally:\n"
        f"    print('slow:', *{SLOW} & {{*sys.modules}})\n"
    )
    done = in_a_process("-c", program, *words.split(), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "slow:"
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["--help", ""])
def test_the_commands_are_listed(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked for, on standard output; where a command is missing, as an error."""
    code = exit_code_of(*words.split())
    out, error = capfd.readouterr()
    shown, silent, expected = (out, error, 0) if words else (error, out, 2)
    assert code == expected and silent == ""
    for name, sentence in COMMANDS.items():
        assert f"  {name:9}  {sentence}\n" in shown
        assert shown.count(f"  minitrain {name} ") == 1, "an example, to copy"


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--version") == 0
    assert capfd.readouterr().out == f"minitrain {minitrain.__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("trian", "did you mean train?"),
        ("zzz", "try minitrain --help"),
        ("--epochs", "try minitrain --help"),
    ],
)
def test_an_unknown_command_is_refused(
    word: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(word, "--epochs", 1) == 2
    expected = f"error: there is no command '{word}'; {hint}\n"
    assert capfd.readouterr() == ("", expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_door_tells_its_own_name(command: str, tmp_path: Path) -> None:
    script = ROOT / "scripts" / f"{command}.py"
    for door, program in {
        (script,): f"{command}.py",
        ("-m", "minitrain", command): f"python -m minitrain {command}",
    }.items():
        done = in_a_process(*door, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {program} ")


def test_a_command_gets_the_words_after_it_and_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the words are those of the process, as for the console command."""
    seen = []

    def main(arguments: list[str], program: str) -> int:
        seen.append((arguments, program))
        return 6

    monkeypatch.setattr("minitrain.cli.descend.main", main)
    monkeypatch.setattr(sys, "argv", ["minitrain", "descend", "bowl", "--lr", "1"])
    assert commands.main() == 6
    assert seen == [(["bowl", "--lr", "1"], "minitrain descend")]


def test_errors_for_people_and_bugs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str], program: str) -> int:
        raise KeyError("a bug") if "bug" in arguments else SettingsError("no such")

    monkeypatch.setattr("minitrain.cli.descend.main", fail)
    assert exit_code_of("descend") == 2
    assert capfd.readouterr() == ("", "error: no such\n")
    assert exit_code_of("descend", "--debug") == 2
    error = capfd.readouterr().err
    assert "Traceback" in error and error.endswith("\nerror: no such\n")
    assert exit_code_of("descend", "bug") == BUG == 70
    out, error = capfd.readouterr()
    assert out == "" and error.endswith("KeyError: 'a bug'\n")
    assert exit_code_of("descend", "bug", "--debug") == BUG
