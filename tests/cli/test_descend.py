"""The command that walks down a function: what it prints, keeps and refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from harness.commands import ROOT, exit_code_of, in_a_process
from harness.pictures import assert_is_a_picture
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minitrain.cli import descend
from minitrain.descent import descend as walk_down
from minitrain.functions import EXAMPLES
from minitrain.pictures.png import Picture

SCRIPT = ROOT / "scripts" / "descend.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Run the command in this process, in an empty folder; return the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda arguments: exit_code_of("descend", *arguments.split())


def test_names_are_those_of_the_functions():
    """Also in the words of the help."""
    assert get_args(descend.Name) == tuple(EXAMPLES)
    told = descend.Walk.model_fields["function"].description or ""
    assert re.findall(r"\w+", told)[: len(EXAMPLES) + 1] == [
        *list(EXAMPLES)[:-1],
        "or",
        list(EXAMPLES)[-1],
    ]


def test_a_whole_run(tmp_path: Path):
    command = ["paraboloid", "--start", "3", "4", "--lr", "0.1", "--steps", "30"]
    done = in_a_process(SCRIPT, *command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "step          x          y       value      df/dx      df/dy    |grad|",
        "   0     3.0000     4.0000      25.000     6.0000     8.0000    10.000",
        "   1     2.4000     3.2000      16.000     4.8000     6.4000    8.0000",
    ]
    assert len({len(line) for line in lines[:32]}) == 1 and len(lines[0]) <= 80
    assert lines[33].startswith("Arrived near the minimum (0, 0) after 30 steps")

    (folder,) = (tmp_path / "walks").iterdir()
    assert re.fullmatch(r"descend-paraboloid-\d{8}-\d{6}", folder.name)
    png = (folder / "descent.png").read_bytes()
    assert_is_a_picture(png)
    assert all(
        str(path.relative_to(tmp_path)) in done.stdout for path in folder.iterdir()
    )

    events = EventAccumulator(str(folder)).Reload()
    values = [(event.step, event.value) for event in events.Scalars("value")]
    norms = [event.value for event in events.Scalars("grad_norm/global")]
    assert values[:2] == [(0, 25), (1, 16)] and norms[:2] == [10, 8]
    assert len(values) == len(norms) == 31
    assert events.Images("descent")[0].encoded_image_string == png
    (text,) = events.Tensors("run/equation/text_summary")
    (markdown,) = text.tensor_proto.string_val
    assert "    g <- grad f(theta)\n    theta <- theta - lr * g  " in markdown.decode()
    assert "(2.4, 3.2) = (3, 4) - 0.1 * (6, 8)" in markdown.decode()


def test_divergence_is_told_with_all_that_is_finite(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("paraboloid --lr 1.1 --run-dir here") == 6
    out, err = capsys.readouterr()
    assert "Diverged at step 10: lr = 1.1 is too large" in err
    assert len(out.splitlines()) == 1 + 10 + 2 and "inf" not in out
    assert_is_a_picture((tmp_path / "here" / "descent.png").read_bytes())
    assert run("paraboloid --lr 1e300 --run-dir there") == 6
    assert run("saddle --steps 1000") == 6
    assert "falls forever" in capsys.readouterr().err


def test_every_run_has_a_folder_of_its_own(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("bowl --steps 3") == run("bowl --steps 3 --lr 0.1 --start 0 1") == 0
    first, second = (tmp_path / "walks").iterdir()
    out = capsys.readouterr().out
    assert out.count("Not arrived after 3 steps") == 2
    assert "Try more --steps" in out and "Try a smaller --lr" in out
    assert run(f"bowl --steps 3 --run-dir {first}") == 7
    assert "is not empty" in capsys.readouterr().err
    assert len(list(first.iterdir())) == len(list(second.iterdir())) == 2
    (tmp_path / "file").touch()
    assert run("bowl --steps 3 --run-dir file") == 5
    assert "is a file" in capsys.readouterr().err


def test_equation_is_the_first_step_for_all_options(
    run: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
):
    texts: list[str] = []
    monkeypatch.setattr(
        descend,
        "keep",
        lambda _, *walk: texts.append(descend.describe(*walk[:3])),
    )
    run("paraboloid --momentum 0.5 --nesterov --steps 1")
    assert "    g <- g + 0.5 * b\n    theta <- theta - lr * g  " in texts[0]
    assert "(2.1, 2.8) = (3, 4) - 0.1 * (9, 12)" in texts[0]
    run("paraboloid --momentum 0.5 --steps 1")
    assert "    b <- 0.5 * b + g  " in texts[1] and "theta - lr * b  " in texts[1]
    assert "(2.4, 3.2) = (3, 4) - 0.1 * (6, 8)" in texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required"),
        ("plane", "function = 'plane': must be one of paraboloid, bowl, rosenbrock"),
        ("bow", "or an expression of variables, such as"),
        ("beal", "; did you mean beale?"),
        ("x^2", "function = 'x^2': 'x ^ 2' is not understood: a power is written **"),
        ("x**2", "start: must be given for an expression: one number, x, such as"),
        ("x*y --start 1", "start: (1.0,) must be two numbers, x and y"),
        ("x*y*z --start 1", "start: (1.0,) must be three numbers, x, y and z"),
        ("log(x) --start -1", "start = [-1.0]: f or its gradient is not finite"),
        ("bowl --output walk.jpg", "output: walk.jpg must end with .png, or .gif"),
        ("bowl --lr 0.1 0", "lr = 0.0: must be greater than 0"),
        ("bowl --momentum", "make 0 walks: there must be between 1 and 12"),
        ("bowl --lr 1 2 3 4 5 --momentum 0 0.1 0.2", "make 15 walks"),
        ("bowl --momentum 0.9 0 --nesterov", "nesterov: needs momentum > 0"),
        ("bowl --speed 3", "--speed"),
        ("bowl --start 3", "start: (3.0,) must be two numbers"),
        ("bowl --start 3 4 5", "start: (3.0, 4.0, 5.0) must be two numbers"),
        ("bowl --start", "start: () must be two numbers"),
        ("bowl --start 3 nan", "start.1 = nan: must be a finite number"),
        ("bowl --start inf 3", "start.0 = inf: must be a finite number"),
        ("bowl --start 1e300 0", "start = [1e+300, 0.0]: f or its gradient"),
        ("bowl --lr 0", "lr = 0.0: must be greater than 0"),
        ("bowl --lr -0.1", "lr = -0.1: must be greater than 0"),
        ("bowl --lr nan", "lr = nan: must be a finite number"),
        ("bowl --lr inf", "lr = inf: must be a finite number"),
        ("bowl --lr fast", "lr = 'fast': must be a valid number"),
        ("bowl --momentum 0 fast", "momentum = 'fast': must be a valid number"),
        ("bowl --steps 0", "steps = 0: must be greater than or equal to 1"),
        ("bowl --steps 2.5", "'2.5'"),
        ("bowl --momentum -1", "momentum = -1.0: must be greater than or equal to 0"),
        ("bowl --nesterov", "nesterov: needs momentum > 0"),
    ],
)
def test_bad_settings_end_with_2_and_leave_no_trace(
    arguments: str,
    message: str,
    run: Callable[[str], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert run(f"{arguments} --run-dir new") == 2
    out, err = capsys.readouterr()
    assert out == "" and message in " ".join(err.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_in_a_process(tmp_path: Path):
    done = in_a_process(SCRIPT, "bowl", "--lr", "-1", cwd=tmp_path)
    message = "error: lr = -1.0: must be greater than 0\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


def test_an_expression_is_walked_as_its_python_is(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    expression = "x**2+3*y**2"
    assert run(f"{expression} --start 3 4 --lr 0.1 --steps 40 --run-dir here") == 0
    out = capsys.readouterr().out
    seen = walk_down(lambda x, y: x**2 + 3 * y**2, (3, 4), lr=0.1, steps=40)
    rows = [line.split() for line in out.splitlines()[1:42]]
    for row, point, value in zip(rows, seen.points, seen.values, strict=True):
        assert row[1:4] == [f"{number:#.5g}" for number in (*point.tolist(), value)]
    assert f"Arrived at ({3 * 0.8**40:.5g}, " in out and "where f is nearly flat" in out
    assert run(f"{expression} --start 3 4 --steps 2") == 0
    assert "|grad| is still" in capsys.readouterr().out
    (fresh,) = (tmp_path / "walks").iterdir()
    assert fresh.name.startswith("descend-expression-")


@pytest.mark.parametrize(
    ("expression", "start", "header"),
    [
        ("t**2", "1", "step t value df/dt |grad|"),
        ("a*a+b*b+c*c", "1 2 3", "step a b c value df/da df/db df/dc |grad|"),
        ("x1**2+x2**2+x3**2+x4**2", "1 2 3 4", "step value |grad|"),
    ],
)
def test_tables_name_the_variables(
    expression: str,
    start: str,
    header: str,
    run: Callable[[str], int],
    capsys: pytest.CaptureFixture[str],
):
    assert run(f"{expression} --start {start} --steps 2") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == header.split()


def test_every_combination_is_a_walk_of_its_own(
    run: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """In one table, one picture and one animation, each with a run in TensorBoard."""
    options = "--lr 0.05 0.2 --momentum 0 0.9 --steps 12 --start 3 4"
    assert run(f"paraboloid {options} --run-dir all --output out/walk.gif") == 0
    lines = capsys.readouterr().out.splitlines()
    labels = [
        "lr = 0.05",
        "lr = 0.05, momentum = 0.9",
        "lr = 0.2",
        "lr = 0.2, momentum = 0.9",
    ]
    assert re.split(r"  +", lines[0].strip()) == labels
    assert lines[1].split() == ["step", *["value", "|grad|"] * 4]
    for row in (line.split() for line in lines[2:15]):
        step, values = int(row[0]), [float(x) for x in row[1::2]]
        assert values[0] == pytest.approx(25 * 0.9 ** (2 * step), rel=1e-4)
        assert values[2] == pytest.approx(25 * 0.6 ** (2 * step), rel=1e-4)
    assert all(any(x.startswith(f"{label}: ") for x in lines) for label in labels)
    folders = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert folders == ["descent.png", *(x.replace(" ", "") for x in labels)]
    events = EventAccumulator(str(tmp_path / "all" / "lr=0.2")).Reload()
    assert [event.value for event in events.Scalars("value")][:2] == [25, 9]
    with Image.open(tmp_path / "out" / "walk.gif") as image:
        assert getattr(image, "n_frames", 1) == 13
    assert (tmp_path / "out" / "walk.gif").stat().st_size < 2_000_000


def test_what_walks_share_stands_in_the_title(
    run: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
):
    titles = []

    def draw(walks: object, title: str, **_: object) -> Picture:
        titles.append((title, list(walks) if isinstance(walks, dict) else 1))
        return Picture((5, 5))

    monkeypatch.setattr("minitrain.pictures.descent.draw_descent", draw)
    run("bowl --lr 0.01 --momentum 0 0.9 --steps 2")
    run("bowl --lr 0.01 0.02 --steps 2")
    run("bowl --lr 0.01 0.02 --momentum 0.9 --nesterov --steps 2")
    run("bowl --lr 0.5 --output walk.png")
    formula = "$f(x, y) = x^2 + 10 y^2$"
    assert titles == [
        (f"{formula}\nlr = 0.01", ["momentum = 0", "momentum = 0.9"]),
        (formula, ["lr = 0.01", "lr = 0.02"]),
        (f"{formula}\nNesterov momentum = 0.9", ["lr = 0.01", "lr = 0.02"]),
        (f"{formula}\nlr = 0.5, diverged at step 10", 1),
    ]
    assert Path("walk.png").read_bytes().startswith(b"\x89PNG")


def test_one_of_several_that_diverges_is_told(
    run: Callable[[str], int], capsys: pytest.CaptureFixture[str]
):
    assert run("paraboloid --lr 0.1 1.1 --steps 20") == 6
    out, err = capsys.readouterr()
    assert err.strip().startswith("lr = 1.1: Diverged at step 10")
    assert "lr = 0.1: Arrived" in out and "diverged" not in out.lower()
