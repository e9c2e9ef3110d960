"""What is noted of a run while it goes on: on the board, the terminal and for the end.

None of it changes the run.
"""

from tqdm import tqdm

from minitrain import tags
from minitrain.evaluation import Evaluation, confusion_matrix, evaluating, predict
from minitrain.experiment.build import Run
from minitrain.experiment.builtin import draw_pictures
from minitrain.experiment.report import epoch_line, progress, tell, tell_withheld
from minitrain.instruments.preflight import preflight
from minitrain.instruments.readings import log2_counts
from minitrain.instruments.sharpness import sharpness
from minitrain.runs.board import Board
from minitrain.runs.scalars import epoch_scalars, step_scalars
from minitrain.runs.summary import Summary
from minitrain.system.terminal import say
from minitrain.training import Step


class Journal:
    """Takes notes of a run: every step, every epoch, and the pictures at the end."""

    def __init__(self, run: Run, summary: Summary, board: Board, bar: tqdm) -> None:
        self.run, self.summary, self.board, self.bar = run, summary, board, bar
        bar.update(summary.steps)
        self._num_samples, self._seconds = 0, 0.0  # of the epoch, as far as made here

    def note_inputs(self) -> None:
        """Look at some of the inputs, and at the model, before the first step."""
        run, sample = self.run, self.run.batches.inputs[:1000]
        size = sample.mean().item(), sample.std().item()
        tell(self.summary, run.findings.check_inputs(*size))
        if run.panel is not None:
            found = preflight(run.model, run.loss_fn, run.batches)
            tell(self.summary, run.findings.take(found))

    def note_step(self, step: Step, seconds: float) -> None:
        """Take in a step, and the seconds that it took."""
        run, summary = self.run, self.summary
        summary.note_step(step, seconds)
        self._num_samples += step.num_samples
        self._seconds += seconds
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

    def note_epoch(self, step: Step, test: Evaluation) -> None:
        """Take in the evaluation after the last step of an epoch."""
        run, summary = self.run, self.summary
        summary.note_test(step, test)
        values = epoch_scalars(test, self._num_samples / self._seconds)
        self.board.log(step.number, values)
        tell(summary, run.findings.note(step.number, values))
        if step.number == run.num_steps:
            self._check_classes(step.number)
        self.board.log(step.number, self._epoch_readings())
        if run.config.instruments.histograms:
            self._draw_histograms(step.number)
        say(epoch_line(step, summary, run.config.epochs, self._seconds))
        self._num_samples, self._seconds = 0, 0.0

    def draw(self) -> None:
        """Show the pictures of the trained model."""
        run = self.run
        pictures = draw_pictures(run.model, run.dataset, run.test_batches.inputs)
        for tag, png in pictures.items():
            self.board.image(tag, png, self.summary.steps)

    def _epoch_readings(self) -> dict[str, float]:
        """Measure what is measured at the end of an epoch, besides the test."""
        run, readings = self.run, dict[str, float]()
        if run.panel is not None:
            readings[tags.PANEL_COST] = run.panel.seconds / self.summary.train_seconds
        if run.config.instruments.sharpness:
            sample = run.batches.inputs[:512], run.batches.targets[:512]
            with evaluating(run.model):
                value = sharpness(run.model, *sample, run.loss_fn)
            readings[tags.LARGEST_EIGENVALUE] = value
            readings[tags.STABLE_EIGENVALUE] = 2 / run.optimizer.param_groups[0]["lr"]
        return readings

    def _check_classes(self, step: int) -> None:
        """Look at what the trained model confuses."""
        run, test = self.run, self.run.test_batches
        counts = confusion_matrix(predict(run.model, test.inputs), test.targets)
        tell(self.summary, run.findings.check_confusion(step, counts))

    def _draw_histograms(self, step: int) -> None:
        """Show how large the elements of each parameter's gradient are, as log2 |g|."""
        for name, parameter in self.run.model.named_parameters():
            if parameter.grad is not None:
                counts = log2_counts(parameter.grad).tolist()
                self.board.histogram(f"{tags.GRADIENT_SIZES}/{name}", counts, step)
