"""Findings: each rule with the readings that it is for, and without them."""

import json
import math
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from minitrain import tags
from minitrain.datasets.dataset import Dataset
from minitrain.experiment import Config, runner
from minitrain.instruments.findings import Findings
from minitrain.instruments.guessing import loss_of_guessing
from minitrain.instruments.panel import Panel
from minitrain.instruments.rules import ASIDE, CAUSES, RULES, START
from minitrain.instruments.truth import Slope
from minitrain.metrics import losses_by_class
from minitrain.runs.summary import Summary
from minitrain.training import NotFiniteError

HEALTHY: dict[str, float] = {
    "loss/train": 0.0,  # see below: it falls
    "grad_norm/global": 1.5,
    "grad_norm/a.weight": 1.0,
    "grad_norm/b.weight": 1.0,
    "update_norm/global": 0.01,
    "update_ratio/global": 1e-3,
    "zero_share/a.weight": 0.02,
    "zero_share/a.bias": 0.02,
    "zero_share/b.weight": 0.0,
    "zero_share/b.bias": 0.0,
    "audit/margin": 0.05,
    "noise/scale": 150.0,
    "noise/signal_share": 0.3,
}


def findings(**options: Any) -> Findings:
    usual = {"num_steps": 20, "batch_size": 64, "guessing": math.log(10)}
    return Findings(**{**usual, "num_classes": 10, **options})


def kinds_of(changes: dict[str, Any], **options: Any) -> list[str]:
    """What is found in a run whose readings differ so from healthy ones.

    A change is a value, or a function of the step.
    """
    run, kinds = findings(**options), []
    for step in range(1, 21):
        values: dict[str, Any] = HEALTHY | {"loss/train": 2.3 * 0.85 ** (step - 1)}
        for tag, change in changes.items():
            values[tag] = change(step) if callable(change) else change
        if step % 5 == 0:
            tests = {"loss/test": values.pop("loss/test", values["loss/train"])}
            kinds += run.note(step, tests | {"accuracy/test": 0.5})
        kinds += run.note(step, values)
    return [finding.kind for finding in kinds]


@pytest.mark.parametrize("start", [0.5, -1.6])
@pytest.mark.parametrize("guessing", [math.log(10), 0.0, -0.7, None])
def test_losses_that_fall_below_zero_are_not_judged_by_ratios(start, guessing) -> None:
    """As the likelihood of a density does: 1.5 times -2 is not above -2."""
    falling = {"loss/train": lambda step: start - 0.12 * step}
    assert kinds_of(falling, guessing=guessing, num_classes=None) == []
    assert kinds_of({**falling, "loss/test": lambda step: start - 0.1 * step}) == []


def test_a_loss_of_exactly_zero_has_not_risen() -> None:
    """Of a hinge loss, say, which every sample is beyond."""
    rest = {"loss/train": lambda step: max(0.0, 2.3 - step), "loss/test": 0.0}
    assert "overfitting" not in kinds_of(rest)


def test_a_healthy_run_gives_no_finding() -> None:
    assert kinds_of({}) == []
    assert kinds_of({"clip/fraction": 0.8}, clip_norm=1.0) == []
    assert kinds_of({"weight_decay/share": 0.1}, momentum=0.9) == []
    growing = {"weight_decay/share": lambda step: step / 20}
    assert kinds_of(growing) == [], "as it does where a run converges"
    one_is_high = {"loss/test": lambda step: 0.9 if step == 15 else 0.5}
    assert kinds_of(one_is_high) == []


STUCK = {"loss/train": 2.3}


def swinging(gain: float, back: float = 0.1) -> dict[str, Any]:
    """A loss that falls, jumps to 8 and stays above 3 for a while, thrice."""
    courses = [0.1, 8.0, 5.0, 4.0, 3.5, 3.0, back]

    def loss(step: int) -> float:
        return 2.3 if step == 1 else courses[(step - 2) % 7]

    left = {"audit/loss_after": lambda step: loss(step) - gain}
    return {"loss/train": loss, "audit/delivered": gain} | left


CASES = [
    ("learning rate too large", {"audit/margin": lambda step: 1.5 * (step > 3)}, {}),
    ("learning rate too large", {"loss/train": lambda step: 2.3 + step / 2}, {}),
    (
        "learning rate too large",
        {"zero_share/a.bias": lambda step: 0.9 * (step > 4)},
        {},
    ),
    ("learning rate too small", {"update_ratio/global": 1e-6} | STUCK, {}),
    ("learning rate too small", {"lr": lambda step: 0.1 * (step < 3)} | STUCK, {}),
    ("samples in order", swinging(gain=0.05), {}),
    ("momentum too large", {}, {"momentum": 0.999}),
    ("momentum too large", {"audit/margin": 2.0}, {"momentum": 0.99}),
    ("weight decay too large", {"weight_decay/share": 0.9} | STUCK, {}),
    ("gradient not reset", {"zero_grad/forgotten": 1.0, "audit/margin": 2.0}, {}),
    (
        "gradient clipped to almost nothing",
        {"clip/fraction": 1.0, "update_ratio/global": 1e-6} | STUCK,
        {"clip_norm": 1e-3},
    ),
    ("exploding gradient", {"loss/train": lambda step: 900 / step}, {}),
    ("exploding gradient", {"grad_norm/a.weight": 300.0}, {}),
    ("dead units", {"zero_share/a.bias": 0.9}, {}),
    ("vanishing gradient", {"grad_norm/a.weight": 1e-4}, {}),
    ("labels without signal", STUCK, {}),
    ("flat plateau", {"loss/train": 1.0, "grad_norm/global": 1e-3}, {}),
    ("flat plateau", {"loss/train": 2.3, "zero_share/a.weight": 1.0,
                      "zero_share/b.weight": 1.0}, {}),
    ("steep plateau", {"loss/train": 1.0}, {}),
    ("batch too small", {"noise/signal_share": 0.02}, {"batch_size": 2}),
    ("batch too large", {"noise/signal_share": 0.97}, {"batch_size": 4096}),
    ("overfitting", {"loss/test": lambda step: 0.5 + step / 20}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "options"), CASES)
def test_each_rule_finds_what_it_is_for_and_nothing_else(
    kind: str, changes: dict, options: dict
) -> None:
    if kind == "labels without signal":
        # 0.5 of accuracy would speak for the labels.
        run = findings()
        told = [
            found.kind
            for step in range(1, 21)
            for found in run.note(step, HEALTHY | {"loss/train": 2.3})
        ]
        assert told == [kind]
        return
    assert kinds_of(changes, **options) == [kind]


def test_every_rule_has_a_case_and_every_cause_is_a_kind() -> None:
    assert {kind for kind, _, _ in CASES} == set(RULES)
    named = {cause for causes in CAUSES.values() for cause in causes}
    kinds = {*RULES, *START, *ASIDE}
    assert named <= kinds and set(CAUSES) <= kinds


def test_an_order_of_samples_is_told_from_steps_that_are_too_long() -> None:
    """Both let the loss rise; a step that is too long raises that of its own batch."""
    assert kinds_of(swinging(gain=0.05)) == ["samples in order"]
    assert kinds_of(swinging(gain=-0.5)) == ["learning rate too large"]
    assert kinds_of(swinging(gain=0.05), batch_size=8) == ["learning rate too large"]
    never_low = swinging(gain=0.05) | {"loss/train": lambda step: 2.3 + step % 7}
    assert kinds_of(never_low) == ["learning rate too large"]


def test_without_audits_it_takes_several_swings_to_tell_of_an_order() -> None:
    """One rise of the loss may as well be that of a training that has diverged."""

    def once(step: int) -> float:
        return 2.3 * 0.5**step if step < 14 else 40.0 * (step - 13)

    assert kinds_of({"loss/train": once}) == ["learning rate too large"]
    again = {"loss/train": swinging(0.0)["loss/train"]}
    run, found = findings(num_steps=60), []
    for step in range(1, 61):
        loss = again["loss/train"](step)
        reads = {"update_norm/global": 0.1} if step > 30 else {}
        found += run.note(step, {"loss/train": loss} | reads)
    assert [each.kind for each in found] == ["samples in order"]


@pytest.mark.parametrize(
    ("mean", "std", "is_found"),
    [(0, 1, False), (0.13, 0.31, False), (33, 78, True), (0, 0.01, True), (9, 1, True)],
)
def test_inputs(mean: float, std: float, is_found: bool) -> None:
    run = findings()
    found = run.check_inputs(mean, std)
    assert bool(found) == is_found == bool(run.found)


@pytest.mark.parametrize(
    ("claimed", "measured", "kind", "advice"),
    [
        (2.0, 1.0, "wrong gradient", "zero_grad"),
        (65536.0, 1.0, "wrong gradient", "unscale"),
        (0.25, 1.0, "wrong gradient", "divisor"),
        (-1.0, 1.0, "wrong gradient", "hooks"),
        (0.0, 0.5, "block without gradient", "detach"),
    ],
)
def test_a_refuted_gradient_is_told_with_its_likely_origin(
    claimed: float, measured: float, kind: str, advice: str
) -> None:
    run = findings()
    slopes = {
        "global": Slope(1.0, 1.0, 0.0, is_wrong=False),
        "a.weight": Slope(claimed, measured, 1.0, is_wrong=True),
    }
    (found,) = run.check_slopes(7, slopes)
    assert (found.kind, found.step) == (kind, 7) and advice in found.advice
    assert "a.weight" in found.text
    assert run.check_slopes(8, slopes) == [], "once is enough"


def test_what_follows_from_a_finding_is_not_told() -> None:
    dead_and_diverging = {
        "audit/margin": 2.0,
        "zero_share/a.bias": 1.0,
        "grad_norm/a.weight": 0.0,
    }
    assert kinds_of(dead_and_diverging) == ["learning rate too large"]


def test_readings_of_a_panel_alone_are_enough_to_say_something() -> None:
    run = findings()
    for step in range(1, 21):
        run.note(step, {"update_norm/global": 1.0, "momentum/share": 1.0})
        run.note(step, {"update_norm/global": 1.0, "loss/train": 2.3})
    assert run.found[0].kind == "labels without signal"
    for step in range(21, 40):
        run.note(step, {"update_ratio/global": 1e-9, "weight_decay/share": 1.0})


@pytest.mark.parametrize("as_flags", [False, True])
def test_advice_names_arguments_in_a_loop_and_flags_in_the_runner(
    as_flags: bool,
) -> None:
    run = findings(as_flags=as_flags)
    (found,) = run.note_failure(3, "the step is not finite.")
    names = ("--optimizer.lr", "--clip-norm 1") if as_flags else ("lr", "clip_norm=1")
    assert found.advice == "Try a tenth of {}, or {}.".format(*names)
    for kind, changes, options in CASES:
        run = findings(as_flags=as_flags, **options)
        for step in range(1, 21):
            usual: dict[str, Any] = HEALTHY | {"loss/train": 2.3 * 0.85**step}
            for tag, change in changes.items():
                usual[tag] = change(step) if callable(change) else change
            run.note(step, usual)
        for found in run.found:
            assert as_flags or "--" not in found.advice, kind


def test_a_bad_sample_is_named_and_not_the_learning_rate() -> None:
    data = torch.zeros(30, 2)
    data[17, 1] = math.nan
    batch = data[10:20], torch.zeros(10)
    (found,) = findings().note_failure(4, "the loss is nan.", batch, data)
    assert found.kind == "samples not finite" and found.step == 4
    assert "sample 7 of the batch" in found.text and "they are 17" in found.text
    (found,) = findings().note_failure(4, "the loss is nan.", (data[:9], data[:9]))
    assert found.kind == "learning rate too large"


def regress(target_scale: float) -> list[str]:
    """What is found in the training of a small network on real targets."""
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    targets = target_scale * x @ torch.randn(5, 1) / 5**0.5
    model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    panel, loss_fn = Panel(model, optimizer), nn.functional.mse_loss
    guessing = loss_of_guessing(loss_fn, model(x), targets)
    assert guessing is not None
    run = Findings(num_steps=200, batch_size=256, guessing=guessing)
    run.check_inputs(x.mean().item(), x.std().item())
    loss = torch.tensor(torch.inf)
    for number in range(1, 201):
        optimizer.zero_grad()
        with panel.watch(number, lambda: loss_fn(model(x), targets)) as watch:
            loss = loss_fn(model(x), targets)
            loss.backward()
            optimizer.step()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        step = {"loss/train": loss.item(), "grad_norm/global": norm.item()}
        run.note(number, step | dict(watch.readings))
    assert loss.item() < 0.1 * guessing
    return [found.kind for found in run.found]


@pytest.mark.parametrize("target_scale", [1.0, 5.0])
def test_a_healthy_regression_gives_no_finding(target_scale: float) -> None:
    assert regress(target_scale) == []


def test_a_class_that_the_test_hardly_finds_is_named() -> None:
    counts = torch.full((5, 5), 2) + 100 * torch.eye(5, dtype=torch.int64)
    assert findings().check_confusion(9, counts) == []
    counts[3] = counts[3].roll(1)
    (found,) = findings().check_confusion(9, counts)
    assert (found.kind, found.step) == ("class not learned", 9)
    assert found.text.startswith("2% of class 3 are right in the test, and 93%")
    assert findings().check_confusion(9, counts // 10) == [], "too few to say"


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (2.5, "It is about that of guessing, 2.3. Look at the labels of this class: "
         "they seem to be random."),
        (9.0, "Look at the labels of this class, and at how many samples it has."),
    ],
)  # fmt: skip
def test_a_class_is_named_by_its_loss_and_random_labels_by_that_of_guessing(
    loss: float, told: str
) -> None:
    counts = torch.full((5, 5), 10) + 100 * torch.eye(5, dtype=torch.int64)
    losses = torch.tensor([0.4, 0.5, loss, 0.3, 0.4])
    (found,) = findings().check_confusion(9, counts, losses)
    assert found.kind == "class not learned"
    assert f"Their mean loss is {loss:.3g}, and 0.4 there." in found.text
    assert "of class 2 are right" in found.text
    assert f"{found.text} {found.advice}".endswith(told)
    unknown = findings(guessing=None)
    assert unknown.check_confusion(9, counts, losses) == [], "its recall is fine"


def test_a_class_that_is_only_harder_is_not_named() -> None:
    counts = torch.full((5, 5), 10) + 100 * torch.eye(5, dtype=torch.int64)
    for losses in ([0.4, 0.5, 1.5, 0.3, 0.4], [1.9, 2.0, 2.5, 2.1, 2.2]):
        assert findings().check_confusion(9, counts, torch.tensor(losses)) == []


def test_losses_by_class_are_means_over_their_samples() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 4), torch.randint(3, (40,))
    losses = losses_by_class(nn.functional.cross_entropy, logits, targets)
    each = nn.functional.cross_entropy(logits, targets, reduction="none")
    for number in range(3):
        mean = each[targets == number].double().mean().item()
        assert losses[number].item() == pytest.approx(mean, rel=1e-6)
    assert losses[3].isnan()


def test_unresolved_readings_are_passed_over() -> None:
    assert kinds_of({"audit/margin": math.nan, "noise/scale": math.nan}) == []


@pytest.mark.parametrize("at", [1, 5, 12, 19])
def test_a_run_that_is_continued_finds_what_it_would_have_found(at: int) -> None:
    """And does not tell again what was told before."""
    values = {
        step: HEALTHY
        | {"audit/margin": 1.5 * (step in (4, 15)), "loss/train": 1 / step}
        for step in range(1, 21)
    }
    whole = findings()
    for step, readings in values.items():
        whole.note(step, readings)
    assert [finding.step for finding in whole.found] == [15]
    first, second, told = findings(), findings(), []
    for step in range(1, at + 1):
        told += first.note(step, values[step])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(at + 1, 21):
        told += second.note(step, values[step])
    assert second.found == whole.found == told


# The runner


@pytest.fixture
def run(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Two epochs of ten steps on digits, with a reading at every step."""
    from harness.runs import PANEL, keep_few_digits

    keep_few_digits(tmp_path / "data")
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "data"))

    def run(**others: Any) -> Summary:
        few = {"epochs": 2, "data": {"name": "digits"}, "instruments": PANEL}
        few |= {"log": {"every": 1}, "run_dir": tmp_path / "run"}
        return runner.run(Config(**{**few, **others}))

    return run


def text_of(folder) -> str:
    events = EventAccumulator(str(folder)).Reload()
    (text,) = events.Tensors("run/findings/text_summary")
    return text.tensor_proto.string_val[0].decode()


def test_findings_stand_in_terminal_summary_and_tensorboard(
    run, tmp_path, capsys
) -> None:
    summary = run(clip_norm=1e-4)
    (found,) = summary.findings
    assert found["kind"] == "gradient clipped to almost nothing"
    out = capsys.readouterr().out
    assert (
        f"finding: gradient clipped to almost nothing at step {found['step']}: " in out
    )
    lines = out.splitlines()
    place = lines.index("found gradient clipped to almost nothing")
    assert "test accuracy" in lines[place + 1], "with the result"
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert kept["findings"] == [found]
    assert "**gradient clipped to almost nothing**" in text_of(tmp_path / "run")
    again = run(clip_norm=1e-4, epochs=3, resume=True, allow_changes=True)
    assert again.findings == [found], "told once"
    assert "finding: " not in capsys.readouterr().out
    assert "**gradient clipped to almost nothing**" in text_of(tmp_path / "run")


def test_a_step_that_is_not_finite_is_a_finding(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: x @ self.weight.T * torch.nan
    )
    with pytest.raises(NotFiniteError):
        run()
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [found["kind"] for found in kept["findings"]] == ["learning rate too large"]


def test_a_bad_sample_of_a_run_is_named(run, tmp_path, monkeypatch) -> None:
    inputs = Dataset.inputs

    def spoiled(self, *args: Any) -> torch.Tensor:
        images = inputs(self, *args)
        images[3] = torch.nan
        return images

    monkeypatch.setattr(Dataset, "inputs", spoiled)
    with pytest.raises(NotFiniteError) as error:
        run()
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [found["kind"] for found in kept["findings"]] == ["samples not finite"]
    (batch,) = error.value.batches
    assert batch[0].isnan().any()


def test_every_tag_with_a_name_is_one_that_a_run_logs(run, tmp_path) -> None:
    """The rules ask for no other: one that nobody writes would never speak."""
    run(clip_norm=1.0)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    texts = (tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"])
    logged = {*events.Tags()["scalars"], *events.Tags()["images"], *texts}
    quantities = {tag.partition("/")[0] for tag in logged}
    named = {name: value for name, value in vars(tags).items() if name.isupper()}
    assert len(named) > 20 and named.pop("WHOLE") == "global"
    for on_demand in (
        "LARGEST_EIGENVALUE", "STABLE_EIGENVALUE", "LEFT_OVER",
        "VALIDATION_LOSS", "VALIDATION_ACCURACY", "WAITING",
    ):  # fmt: skip
        named.pop(on_demand)
    named.pop("GRADIENT_SIZES")
    for name, tag in named.items():
        assert tag in (logged if "/" in tag else quantities), name


def test_nothing_found_is_said_too(run, tmp_path) -> None:
    assert run().findings == []
    assert "Nothing found." in text_of(tmp_path / "run")
