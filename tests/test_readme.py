"""What the front page and the pages behind it claim about the code."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from harness.commands import exit_code_of

from minitrain.cli.commands import COMMANDS
from minitrain.cli.explain import Explain
from minitrain.cli.landscape import Ask
from minitrain.cli.plot import Plot
from minitrain.experiment.reading import parse
from minitrain.experiment.runner import run
from minitrain.runs.points import read_curves

ROOT = Path(__file__).parents[1]
FRONT = "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in (FRONT, "[a-z]*/README.md", "minitrain/*/README.md")
    for path in sorted(ROOT.glob(pattern))
}
CORE, EXPERIMENT = "minitrain/README.md", "minitrain/experiment/README.md"
WALKS, PANEL = "minitrain/explain/README.md", "minitrain/instruments/README.md"
NOTEBOOK = "experiments/README.md"


def blocks_of(text: str, language: str) -> list[str]:
    """The code of one language in a text."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def blocks_under(page: str, heading: str) -> list[str]:
    """The Python of a section."""
    pattern = rf"^## {heading}\n(.*?)(?=^## |\Z)"
    (section,) = re.findall(pattern, PAGES[page], re.DOTALL | re.MULTILINE)
    return blocks_of(section, "python")


RUN_HERE = {
    (FRONT, "A first training"): 1,
    (FRONT, "Your own experiment, in a file"): 1,
    (CORE, "Your own model and data"): 1,
    (EXPERIMENT, "Stop and go on"): 1,
    (EXPERIMENT, "Your own loop"): 1,
    (PANEL, "The instrument panel"): 1,
    (WALKS, "Walk down a hill"): 1,
    (NOTEBOOK, "The whole way in one notebook"): 1,
}
"""The blocks of Python that are run below, by page and section."""


def test_all_python_of_all_pages_is_run_here() -> None:
    found = {place: len(blocks_under(*place)) for place in RUN_HERE}
    assert found == RUN_HERE
    blocks = [block for text in PAGES.values() for block in blocks_of(text, "python")]
    assert len(blocks) == sum(RUN_HERE.values())


def test_a_walk_from_python_is_that_of_the_command_and_plots_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks_under(WALKS, "Walk down a hill")
    names: dict = {}
    exec(code, names)
    walk = names["walk"]
    assert walk.values[-1] < 0.1 < 57 == walk.values[0]
    assert walk.plot()._repr_png_().startswith(b"\x89PNG")
    (command,) = re.findall(r"minitrain descend (\"x.*)", PAGES[WALKS])
    monkeypatch.chdir(tmp_path)
    assert exit_code_of("descend", *shlex.split(command), "--steps", 20) == 0
    assert (tmp_path / "walk.gif").stat().st_size < 2_000_000


@pytest.fixture
def names_of_first_training() -> dict[str, Any]:
    """What the first training of the front page leaves, once it has run."""
    (code,) = blocks_under(FRONT, "A first training")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_ten_lines_run_and_learn(
    capsys: pytest.CaptureFixture[str], names_of_first_training: dict[str, Any]
) -> None:
    out = capsys.readouterr().out
    accuracy = float(re.findall(r"'accuracy': ([\d.]+)", out)[0])
    assert out.count("|grad L|") == 20 and accuracy > 0.95


def test_groups_are_vectors_of_parts(names_of_first_training: dict[str, Any]) -> None:
    (groups,) = blocks_under(CORE, "Your own model and data")
    exec(groups, names_of_first_training)
    kept, left = names_of_first_training["optimizer"].param_groups
    assert kept["weight_decay"] == 1e-3 and left["weight_decay"] == 0
    assert kept["params"][0].vector.names == ["0.weight", "2.weight"]
    assert left["params"][0].vector.names == ["0.bias", "2.bias"]


def test_a_panel_in_a_loop_looks_at_every_step(
    capsys: pytest.CaptureFixture[str], names_of_first_training: dict[str, Any]
) -> None:
    capsys.readouterr()
    names = names_of_first_training
    names["batches"] = names["Batches"](names["inputs"], names["targets"], 50, seed=0)
    (code,) = blocks_under(PANEL, "The instrument panel")
    exec(code, names)
    assert capsys.readouterr().out.count("'update_norm/global'") == 20


def test_the_experiment_in_a_file_trains_and_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = blocks_under(FRONT, "Your own experiment, in a file")
    (command,) = re.findall(r"minitrain train (circle\.py .*model.*)", PAGES[FRONT])
    monkeypatch.chdir(tmp_path)
    Path("circle.py").write_text(text, encoding="utf-8")
    summary = run(parse(command.split()))
    assert summary.dataset == "circle" and summary.test_metrics["accuracy"] > 0.95


def test_a_trained_model_is_loaded_in_one_line(
    few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data.name", "digits", "--epochs", "1", "--run-dir", "runs/NAME"]
    run(parse([*words, "--model.hidden", "7"]))
    (code,) = blocks_under(EXPERIMENT, "Stop and go on")
    names: dict = {}
    exec(code, names)
    assert names["model"](torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_loop_of_ones_own_runs_and_goes_on(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = blocks_under(EXPERIMENT, "Your own loop")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for _ in range(2):
        exec(code, {})
    assert "runs/circle is finished: nothing is left to do" in capsys.readouterr().out
    curves = read_curves(tmp_path / "runs" / "circle")
    steps, accuracy = curves["accuracy/train"]
    assert steps == [100, 200, 300, 400, 500] and min(accuracy[1:]) > 0.85
    assert curves["loss/train"][0] == [1, *range(10, 501, 10)]
    assert {"grad_norm/global", "update_norm/global", "lr"} <= curves.keys()


def test_a_run_in_a_notebook_has_a_history(
    few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the notebook's section shows, but for pandas, and on few digits."""
    monkeypatch.chdir(tmp_path)
    assert run(parse(["--data.name", "digits", "--run-dir", "runs/EARLIER"])).steps
    (code,) = blocks_under(NOTEBOOK, "The whole way in one notebook")
    code = code.replace("epochs=1", "epochs=1, data={'name': 'digits'}")
    names: dict = {}
    exec(re.sub(r"table = .*", "", code), names)
    assert names["steps"].tolist() == [1, 10] and len(names["losses"]) == 2
    assert names["earlier"]["loss/train"].steps.tolist() == [1, *range(10, 51, 10)]


def commands_of(text: str) -> list[list[str]]:
    """The words of all commands in the shell's blocks of a page, minitrain's first."""
    blocks = blocks_of(text, "sh") + [
        line.removeprefix("$ ")
        for block in blocks_of(text, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    found = []
    for command in "\n".join(blocks).splitlines():
        door = r"^(torchrun .*)?scripts/train\.py"
        found.append(shlex.split(re.sub(door, "minitrain train", command)))
    return [words for words in found if words[:1] == ["minitrain"]]


def read_command(command: str, *words: str) -> None:
    """Read the settings of a command, as it does itself."""
    if command == "train":
        parse(words)
    elif command != "descend":  # whose commands are run
        of = {"explain": Explain, "landscape": Ask, "plot": Plot}[command]
        tyro.cli(of, args=words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_every_page_can_be_read(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file for the experiment, and a run to resume, which are not there yet."""
    (text,) = blocks_under(FRONT, "Your own experiment, in a file")
    monkeypatch.chdir(tmp_path)
    Path("circle.py").write_text(text, encoding="utf-8")
    for _, *words in commands_of(PAGES[page]):
        read_command(*[word for word in words if word != "--resume"])
        if words[0] == "descend" and "--output" not in words:
            assert exit_code_of(*words) == 0


def test_pages_have_commands() -> None:
    commands = {words[1] for text in PAGES.values() for words in commands_of(text)}
    assert commands == COMMANDS.keys()


def test_the_front_page_has_a_row_for_every_command_and_is_short() -> None:
    named = set(re.findall(r"^\| `minitrain (\w+) ", PAGES[FRONT], re.MULTILINE))
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} - COMMANDS.keys()
    assert named == COMMANDS.keys()
    assert scripts <= {*re.findall(r"`scripts/(\w+)\.py`", PAGES[FRONT])}
    prose = re.sub(r"```.*?```|\]\(.*?\)", "", PAGES[FRONT], flags=re.DOTALL)
    assert len(prose.split()) < 900, "three minutes of reading"


def test_the_core_is_a_numbered_list_and_every_room_has_a_row() -> None:
    """Every file and folder of the package is named."""
    named = re.findall(r"`(minitrain/[\w/]+(?:\.py|/))`", PAGES[CORE])
    package = ROOT / "minitrain"
    files = {f"minitrain/{path.name}" for path in package.glob("[!_]*.py")}
    rooms = {f"minitrain/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert files | rooms <= set(named)
    pattern = r"^(\d+)\. `minitrain/(\w+)\.py`"
    numbered = re.findall(pattern, PAGES[CORE], re.MULTILINE)
    assert [int(number) for number, _ in numbered] == [*range(1, 12)]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    """Files of the repository, whose paths begin at its top."""
    folders = "minitrain|experiments|scripts|tests"
    named = re.findall(rf"`((?:{folders})/[\w/.-]*)`", PAGES[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


def anchors_of(text: str) -> set[str]:
    """What links may point at in a page: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def links_of(page: str) -> list[tuple[str, str]]:
    """The files and anchors that a page points at, pictures among them."""
    found = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGES[page])
    here = ROOT / page
    paths = [(here.parent / path).resolve() if path else here for path, _ in found]
    return [
        (str(path.relative_to(ROOT)), anchor)
        for path, (_, anchor) in zip(paths, found, strict=True)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_picture_leads_somewhere(page: str) -> None:
    for path, anchor in links_of(page):
        assert (ROOT / path).is_file(), path
        assert not anchor or anchor in anchors_of(PAGES[path]), (path, anchor)


def test_every_page_is_reached_from_the_front_page_which_has_a_picture() -> None:
    reached = {path for path, _ in links_of(FRONT)}
    assert PAGES.keys() - {FRONT} <= reached
    pictures = {path for page in PAGES for path, _ in links_of(page) if "png" in path}
    folder = ROOT / "experiments"
    assert pictures == {f"experiments/{path.name}" for path in folder.glob("*.png")}
    assert any(path.endswith(".png") for path in reached)
