"""What is noted of a run while it goes on: on the board, the terminal and for the end.

None of it changes the run.
"""

import torch
from torch import Tensor

from minitrain import tags
from minitrain.batches import Batches
from minitrain.evaluation import Evaluation, evaluate, evaluating
from minitrain.experiment.drawing import confusion_of, draw_all
from minitrain.experiment.parts import Run
from minitrain.experiment.report import (
    EpochLine,
    epoch_line,
    progress,
    tell,
    tell_withheld,
)
from minitrain.instruments.preflight import preflight
from minitrain.instruments.readings import log2_counts
from minitrain.instruments.sharpness import sharpness
from minitrain.loading import DatasetBatches
from minitrain.randomness import undisturbed
from minitrain.runs.board import Board
from minitrain.runs.scalars import evaluation_scalars, step_scalars
from minitrain.runs.summary import Summary
from minitrain.samples import move, tensors_in
from minitrain.system.progress import tqdm
from minitrain.system.terminal import say
from minitrain.training import Step


class Journal:
    """Takes notes of a run: every step, every epoch, and the pictures at the end."""

    def __init__(self, run: Run, summary: Summary, board: Board, bar: tqdm) -> None:
        self.run, self.summary, self.board, self.bar = run, summary, board, bar
        bar.update(summary.steps)
        self._num_samples, self._seconds, self._loss = 0, 0.0, 0.0  # made here

    def note_inputs(self) -> None:
        """Look at some of the samples, and at the model, before the first step."""
        inputs, _ = self.run.batches.first(1000)
        real = [x for x in tensors_in(inputs) if x.is_floating_point()]
        if len(real) == 1:  # several may have scales of their own
            size = real[0].mean().item(), real[0].std().item()
            tell(self.summary, self.run.findings.check_inputs(*size))
        if self.run.panel is not None:
            run = self.run
            found = preflight(run.model, run.loss_fn, run.batches)
            tell(self.summary, run.findings.take(found))

    def note_step(self, step: Step, seconds: float) -> None:
        """Take in a step, and the seconds that it took."""
        run, summary = self.run, self.summary
        summary.note_step(step, seconds)
        self._num_samples += step.num_samples
        self._seconds += seconds
        self._loss += step.num_samples * step.loss
        if values := step_scalars(step):
            self.board.log(step.number, values)
            tell(summary, run.findings.note(step.number, values))
        if run.panel is not None:
            tell_withheld(summary, run.panel.withheld)
            if tags.TRUTH_WORST_ERROR in step.readings:
                tell(summary, run.findings.check_slopes(step.number, run.panel.slopes))
        self.board.beat()
        if self.bar.update():
            self.bar.set_postfix(progress(step, summary), refresh=False)

    def note_epoch(self, step: Step) -> None:
        """Evaluate after the last step of an epoch, and take in what is seen."""
        run, summary = self.run, self.summary
        summary.epochs = step.epoch
        self.board.log(
            step.number, {tags.THROUGHPUT: self._num_samples / self._seconds}
        )
        if run.valid_batches is None:  # nothing is chosen by it
            self.evaluate(step.number, "test", run.test_batches)
        else:
            valid = self.evaluate(step.number, "validation", run.valid_batches)
            summary.note_validation(step, valid)
        self.board.log(step.number, self._epoch_readings())
        if run.config.instruments.histograms:
            self._draw_histograms(step.number)
        line = EpochLine(step.epoch, run.config.epochs, step.number, self._seconds)
        say(epoch_line(line, self._loss / self._num_samples, summary))
        self._num_samples, self._seconds, self._loss = 0, 0.0, 0.0

    def evaluate(
        self, step: int, part: str, batches: Batches | DatasetBatches
    ) -> Evaluation:
        """Evaluate on the test or the validation set, the averaged weights too.

        Returns:
            The evaluation of the averaged weights where there are any, else of theta.
        """
        run, summary = self.run, self.summary
        found = evaluate(run.model, batches, run.loss_fn, run.metrics)
        values = evaluation_scalars(found, part)
        if part == "test":
            summary.note_test(found)
        if run.average is not None:
            with run.average.in_place():
                averaged = evaluate(run.model, batches, run.loss_fn, run.metrics)
            values |= evaluation_scalars(averaged, f"{part}_average")
            summary.average_metrics = {"loss": averaged.loss, **averaged.metrics}
            found = averaged
        self.board.log(step, values)
        tell(summary, run.findings.note(step, values))
        return found

    def draw_epoch(self, step: Step) -> None:
        """Show the pictures after an epoch, where they are due."""
        every = self.run.config.log.pictures
        if every and step.epoch % every == 0:
            self.draw()

    def conclude(self) -> None:
        """Look at what the trained model confuses, and show all pictures."""
        counts, step = confusion_of(self.run), self.summary.steps
        if counts is not None:
            tell(self.summary, self.run.findings.check_confusion(step, counts))
        self.draw(counts)

    def draw(self, counts: Tensor | None = None) -> None:
        """Show the pictures of the model; drawing leaves no trace in the run."""
        run = self.run
        with undisturbed(run.model, run.device), torch.no_grad():
            run.model.eval()
            pictures = draw_all(run, counts)
        for tag, picture in pictures.items():
            if isinstance(picture, str):
                self.board.text(tag, picture, self.summary.steps)
            else:
                self.board.image(tag, picture, self.summary.steps)

    def _epoch_readings(self) -> dict[str, float]:
        """Measure what is measured at the end of an epoch, besides the test."""
        run, readings = self.run, dict[str, float]()
        if run.panel is not None:
            readings[tags.PANEL_COST] = run.panel.seconds / self.summary.train_seconds
        if run.config.instruments.sharpness:
            inputs, targets = move(run.batches.first(512), run.device)
            with evaluating(run.model):
                value = sharpness(run.model, inputs, targets, run.loss_fn)
            readings[tags.LARGEST_EIGENVALUE] = value
            readings[tags.STABLE_EIGENVALUE] = 2 / run.optimizer.param_groups[0]["lr"]
        return readings

    def _draw_histograms(self, step: int) -> None:
        """Show how large the elements of each parameter's gradient are, as log2 |g|."""
        for name, parameter in self.run.model.named_parameters():
            if parameter.grad is not None:
                counts = log2_counts(parameter.grad).tolist()
                self.board.histogram(f"{tags.GRADIENT_SIZES}/{name}", counts, step)
