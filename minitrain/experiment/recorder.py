"""A loop of one's own with all that a run of minitrain has: board, panel, checkpoints.

A `Recorder` watches and keeps; what a step does stays the loop's own business.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

import torch
from torch import nn

from minitrain import tags
from minitrain.experiment.recorder_folder import opened
from minitrain.experiment.recorder_network import Network, ReadingPlan
from minitrain.experiment.recorder_notes import Notes
from minitrain.experiment.recorder_parts import Parts
from minitrain.experiment.recorder_step import RecordedStep
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.recompute import LossOf
from minitrain.runs.saver import Saver, Stateful
from minitrain.runs.summary import Summary


class Recorder:
    """Gives a loop of any kind what a run has, in the folder of the run.

    That is a board for TensorBoard with loss, learning rate, norms of gradient and
    update, and the readings of the instrument panel; what is found in them, printed and
    kept; checkpoints, from which the loop goes on as if it had never stopped; and a
    `summary.json`.

    >>> import tempfile
    >>> model, x = nn.Linear(2, 1), torch.ones(4, 2)
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> parts = {"model": model, "optimizer": optimizer}
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with Recorder(folder, parts, num_steps=3) as run:  # doctest: +ELLIPSIS
    ...     for number in run.steps():
    ...         loss_of = lambda: model(x).square().mean()
    ...         with run.step(model, optimizer, loss_of, num_samples=4) as step:
    ...             optimizer.zero_grad()
    ...             step.loss().backward()
    ...             optimizer.step()
    saved checkpoint step=0 ...
    no readings of momentum/share, ...: Adam does not follow the rule of SGD
    saved checkpoint step=3 ...

    Started again with the same folder, the loop goes on after its last checkpoint:
    `steps` begins there, and parts and random states are what they were. For that it
    must take the same samples at step n, whenever it is started: the order of `Batches`
    and `DatasetBatches` is a function of the epoch, and `torch.randint` draws from a
    random state that is kept. Options of an optimizer come from the checkpoint, too.

    Args:
        folder: The run directory, new or that of an earlier start.
        parts: All that the loop depends on and that has a `state_dict`, by name:
            models, optimizers, schedulers, averages. Their states must be of tensors,
            numbers, strings, lists and dictionaries.
        num_steps: The steps of the whole loop, from 1.
        settings: What else is to be known of the run; shown on the board, and compared
            when the run goes on.
        log_every: Steps between two that are logged; the first and last one are.
        save_every: Steps between two checkpoints; the first and last step have one.
        keep: How many of the newest checkpoints are kept.
        budget: The share of the steps' own time that the panel may take. What a reading
            costs is measured once, at the first step.
        cadence: How often the panel reads, to be given in the place of a budget.
        guessing: The loss of guessing, as `loss_of_guessing` gives it; findings about
            learning are surer with it.
        resume: Whether a run in the folder goes on; otherwise it is refused.

    Raises:
        TypeError: A part has no state that could be kept.
        ValueError: No part is a model with parameters, or a number is out of range.
    """

    def __init__(
        self,
        folder: Path | str,
        parts: Mapping[str, Stateful],
        *,
        num_steps: int,
        settings: Mapping[str, bool | float | str] | None = None,
        log_every: int = 10,
        save_every: int = 1000,
        keep: int = 2,
        budget: float = 0.02,
        cadence: Cadence | None = None,
        guessing: float | None = None,
        resume: bool = True,
    ) -> None:
        counts = {"num_steps": num_steps, "log_every": log_every}
        for name, value in (counts | {"save_every": save_every, "keep": keep}).items():
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if not 0 < budget < math.inf:
            raise ValueError(f"budget = {budget}: must be positive; see cadence, too")
        self.folder, self.num_steps = Path(folder), num_steps
        self.number = 0
        """The step that is made, from 1, or else the last one that was."""
        self._settings = {"num_steps": num_steps, **(settings or {})}
        self._log_every, self._save_every, self._keep = log_every, save_every, keep
        self._plan = ReadingPlan(cadence, budget, unit=log_every)
        self._guessing, self._may_resume = guessing, resume
        self._parts = Parts(parts)
        summary = Summary(self.folder.name, torch.initial_seed())
        self._notes = Notes(self._parts.networks, summary)
        self._steps: list[RecordedStep] = []
        self._began: float | None = None
        """When the present step began; None between two."""
        self._saver: Saver | None = None
        self._exit: ExitStack | None = None

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps, from 1 or after the last checkpoint.

        What is logged of a step is written, and a checkpoint saved where one is due,
        when the next step is asked for.
        """
        self._check_open()
        for number in range(self.number + 1, self.num_steps + 1):
            self.number, self._began = number, time.perf_counter()
            yield number
            self._end_step()

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: LossOf,
        *,
        num_samples: int = 0,
        name: str = "",
        autocast: torch.dtype | None = None,
    ) -> RecordedStep:
        """Return a step of a network, to be entered by `with`.

        The block holds the loop's own statements for it: the forward pass, the backward
        pass and the update. `step.loss()` there is `loss_of()`, and goes to the board;
        `step.clip(max_norm)` clips.

        Args:
            model: The model that is updated.
            optimizer: Updates it.
            loss_of: Computes the mean loss of the batch of this step. The panel calls
                it again, without a graph; it draws no new batch, and the random numbers
                that it draws are the first ones in the block.
            num_samples: In the batch; without it there is no noise scale.
            name: Stands before the tags, where a loop has several networks. Give it
                then: how their losses go is not evidence, as each moves the others.
            autocast: The dtype of the loop's own forward pass, where it is another.

        Raises:
            RuntimeError: The recorder is not open, or the loop is not in a step.
            ValueError: A checkpoint would lack the model or the optimizer, or the name
                is that of another network.
        """
        self._check_open()
        if self._began is None:
            raise RuntimeError(
                "a step is made in the loop `for number in run.steps():`, and not "
                "before or after it"
            )
        if not callable(loss_of):
            raise TypeError(
                f"loss_of is of {type(loss_of).__name__}: it must be a function that "
                "computes the loss, such as lambda: loss_fn(model(x), y)"
            )
        network = self._parts.networks.get(name)
        if network is None:
            network = self._add_network(name, model, optimizer, num_samples)
        if network.model is not model or network.optimizer is not optimizer:
            raise ValueError(
                f"name = {name!r}: is that of another model or optimizer: give each "
                "network of the loop a name of its own"
            )
        number, is_last = self.number, self.number == self.num_steps
        is_logged = is_last or number == 1 or number % self._log_every == 0
        what = network, loss_of, num_samples, autocast
        self._steps.append(RecordedStep(*what, is_logged=is_logged, is_last=is_last))
        return self._steps[-1]

    def log(self, values: Mapping[str, SupportsFloat]) -> None:
        """Show numbers on the board, at the present step.

        Those under `loss/train` and `loss/test` are looked at for findings, too. Of
        networks with names they are not: what one of them learns moves the others'.
        """
        self._check_open()
        self._notes.log(values)

    def show(self, name: str, picture: Any) -> None:
        """Show a picture on the board, at the present step, or a text in Markdown.

        Args:
            name: Its tag.
            picture: A matplotlib figure, the bytes of a PNG file, a uint8 tensor, or a
                string.
        """
        self._check_open()
        self._notes.show(name, picture)

    def __enter__(self) -> Self:
        if self._exit is not None:
            raise RuntimeError("the recorder is open already")
        with ExitStack() as stack:
            opening = opened(
                self.folder,
                self._parts,
                self._notes,
                self._settings,
                keep=self._keep,
                may_resume=self._may_resume,
            )
            self.number, self._saver = stack.enter_context(opening)
            stack.push(self._conclude)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._exit is not None:
            stack, self._exit = self._exit, None
            stack.__exit__(kind, error, traceback)

    def _add_network(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        num_samples: int,
    ) -> Network:
        """Make the panel and the findings of a network, at its first step."""
        self._parts.check_kept(model, optimizer)
        findings = Findings(
            num_steps=self.num_steps,
            batch_size=num_samples,
            guessing=self._guessing,
            momentum=optimizer.param_groups[0].get("momentum"),
        )
        beside = [each for each in self._parts.models.values() if each is not model]
        network = Network(name, model, optimizer, findings, self._plan, beside)
        self._parts.networks.add(network)
        return network

    def _end_step(self) -> None:
        """Note what was read and logged of a step, and save what is due."""
        now, summary = time.perf_counter(), self._notes.summary
        summary.train_seconds += now - (self._began or now)
        self._began, steps, self._steps = None, self._steps, []
        values: dict[str, float] = {}
        for step in steps:
            if not step.is_entered:
                raise RuntimeError(
                    f"the step {step.network.name!r} was made and never entered: write "
                    "`with run.step(...) as step:` around its statements"
                )
            if own := step.values():
                values |= step.network.tagged(own)
        summary.steps = self.number
        is_last = self.number == self.num_steps
        is_due = is_last or self.number % self._save_every == 0
        if is_due:
            panels = [network.panel.seconds for network in self._parts.networks]
            values[tags.PANEL_COST] = sum(panels) / summary.train_seconds
        if values:
            self._notes.log(values)
        self._notes.write(self.number)
        if is_due:
            self._save(must_succeed=is_last)

    def _save(self, must_succeed: bool) -> None:
        if self._saver is not None:
            self._notes.sync()
            self._saver.save(must_succeed)

    def _conclude(self, kind: type[BaseException] | None, *_: object) -> None:
        """Note and save what is not yet, when the loop is over or broke off."""
        if kind is None and self._began is not None:
            self._end_step()
        if kind is None and self._saver and self._saver.last_saved != self.number:
            self._save(must_succeed=True)
        self._notes.write(self.number)

    def _check_open(self) -> None:
        if self._exit is None:
            raise RuntimeError(
                "the recorder is not open: use it in a `with Recorder(...) as run:`"
            )
