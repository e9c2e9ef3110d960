"""What is noted of a run while it goes on: on the board, the terminal and for the end.

None of it changes the run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minitrain import tags
from minitrain.batches import Batches
from minitrain.evaluation import Evaluation, evaluate, evaluating
from minitrain.experiment.drawing import draw_all, draw_layers, results_by_class
from minitrain.experiment.parts import Run
from minitrain.experiment.report import (
    EpochLine,
    epoch_line,
    progress,
    tell,
    tell_withheld,
)
from minitrain.experiment.sharing import find_waiting
from minitrain.instruments.preflight import preflight
from minitrain.instruments.readings import log2_counts
from minitrain.instruments.sharpness import sharpness
from minitrain.loading import DatasetBatches
from minitrain.randomness import undisturbed
from minitrain.runs.board import Board
from minitrain.runs.layers import LayerMaps
from minitrain.runs.points import read_points
from minitrain.runs.scalars import evaluation_scalars, guide_lines, step_scalars
from minitrain.runs.summary import Summary
from minitrain.samples import move, tensors_in
from minitrain.system.progress import tqdm
from minitrain.system.terminal import say
from minitrain.training import NotFiniteError, Step

LONG_SECONDS = 60
"""Of training, after which the layers of a run are drawn before its end, too."""


class Journal:
    """Takes notes of a run: every step, every epoch, and the pictures at the end."""

    def __init__(self, run: Run, summary: Summary, board: Board, bar: tqdm) -> None:
        self.run, self.summary, self.board, self.bar = run, summary, board, bar
        bar.update(summary.steps)
        self._num_samples, self._seconds, self._loss = 0, 0.0, 0.0  # made here
        self._waited = 0.0
        goes_on = summary.steps > 0 and run.group.rank == 0
        self._layers = LayerMaps(read_points(board.folder) if goes_on else ())
        self._next_drawing = max(LONG_SECONDS, 2 * summary.train_seconds)

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
            batch_size = run.config.data.batch_size * run.config.accumulate
            self.board.log(step.number, {**values, **guide_lines(values, batch_size)})
            self._layers.take(step.number, values)
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
        self._look_at_waiting(step.number)
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

    def _look_at_waiting(self, step: int) -> None:
        """Take in what of an epoch's steps was spent on other processes."""
        group, waited = self.run.group, self._waited
        if group.world_size == 1:
            return
        share, self._waited = (group.seconds - waited) / self._seconds, group.seconds
        self.board.log(step, {tags.WAITING: share})
        found = find_waiting(step, share, group.world_size)
        tell(self.summary, self.run.findings.take(found))

    def evaluate(
        self, step: int, part: str, batches: Batches | DatasetBatches
    ) -> Evaluation:
        """Evaluate on the test or the validation set, the averaged weights too.

        Returns:
            The evaluation of the averaged weights where there are any, else of theta.
        """
        run, summary = self.run, self.summary
        of_parts = (batches, run.loss_fn, run.metrics, run.shards)
        found = evaluate(run.model, *of_parts)
        values = evaluation_scalars(found, part)
        if part == "test":
            summary.note_test(found)
        if run.average is not None:
            with run.average.in_place():
                averaged = evaluate(run.model, *of_parts)
            values |= evaluation_scalars(averaged, f"{part}_average")
            summary.average_metrics = {"loss": averaged.loss, **averaged.metrics}
            found = averaged
        self.board.log(step, values)
        tell(summary, run.findings.note(step, values))
        return found

    def draw_epoch(self, step: Step) -> None:
        """Show the pictures after an epoch, where they are due."""
        every, is_first = self.run.config.log.pictures, self.run.group.rank == 0
        if is_first and every and step.epoch % every == 0:
            self.draw()
        elif is_first and self.summary.train_seconds >= self._next_drawing:
            self._next_drawing = 2 * self.summary.train_seconds  # ever more rarely
            self._show(draw_layers(self._layers, self.run.model))

    def conclude(self) -> None:
        """Look at what the trained model confuses, and show all pictures."""
        if self.run.group.rank:
            return  # nobody would see them
        results = results_by_class(self.run)
        if results is not None:
            found = self.run.findings.check_confusion(self.summary.steps, *results)
            tell(self.summary, found)
        self.draw(results and results[0])

    def draw(self, counts: Tensor | None = None) -> None:
        """Show the pictures of the model; drawing leaves no trace in the run."""
        run = self.run
        with undisturbed(run.model, run.device), torch.no_grad():
            run.model.eval()
            pictures = draw_all(run, counts)
        self._show({**pictures, **draw_layers(self._layers, run.model)})

    @contextmanager
    def drawing_a_failure(self) -> Iterator[None]:
        """Show the layers of a run whose loss or gradient is not finite any more."""
        try:
            yield
        except NotFiniteError:
            if self.run.group.rank == 0:
                self._show(draw_layers(self._layers, self.run.model))
            raise

    def _show(self, pictures: Mapping[str, Any]) -> None:
        """Show pictures and texts, by their tags."""
        for tag, picture in pictures.items():
            if isinstance(picture, str):
                self.board.text(tag, picture, self.summary.steps)
            else:
                self.board.image(tag, picture, self.summary.steps)

    def _epoch_readings(self) -> dict[str, float]:
        """Measure what is measured at the end of an epoch, besides the test."""
        run, readings = self.run, dict[str, float]()
        if run.group.rank:
            return readings
        if run.panel is not None:
            readings[tags.PANEL_COST] = run.panel.seconds / self.summary.train_seconds
        if run.config.instruments.sharpness:
            readings |= self._read_sharpness()
        return readings

    def _read_sharpness(self) -> dict[str, float]:
        run, withheld = self.run, self.summary.withheld
        if tags.LARGEST_EIGENVALUE in withheld:
            return {}
        inputs, targets = move(run.batches.first(512), run.device)
        try:
            with evaluating(run.model):
                value = sharpness(run.model, inputs, targets, run.loss_fn)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = f"the loss has no second derivative: {str(error).splitlines()[0]}"
            tell_withheld(self.summary, {tags.LARGEST_EIGENVALUE: reason})
            return {}
        lr = run.optimizer.param_groups[0]["lr"]
        return {tags.LARGEST_EIGENVALUE: value, tags.STABLE_EIGENVALUE: 2 / lr}

    def _draw_histograms(self, step: int) -> None:
        """Show how large the elements of each parameter's gradient are, as log2 |g|."""
        for name, parameter in self.run.model.named_parameters():
            if parameter.grad is not None:
                counts = log2_counts(parameter.grad).tolist()
                self.board.histogram(f"{tags.GRADIENT_SIZES}/{name}", counts, step)
