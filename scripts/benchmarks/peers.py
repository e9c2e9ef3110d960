"""An MLP epoch that logs every step, by Lightning and by Keras on torch.

Both are optional: pip install -e '.[bench]'. They log the loss of every step to
TensorBoard, Lightning the gradient norms of every step as well, as ours does.
"""

import contextlib
import functools
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.compare import Row, compare
from benchmarks.loop import LOSS, OPTIONS, logged_epoch
from torch import Tensor

from minitrain.models import MLP


def lightning_epoch(inputs: Tensor, labels: Tensor) -> None:
    import lightning  # pyright: ignore[reportMissingImports]
    from lightning.pytorch import loggers  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = MLP()

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = LOSS(self.model(batch[0]), batch[1])
            self.log("loss/train", loss)
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            norms = {
                f"grad_norm/{name}": parameter.grad.norm()
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None
            }
            self.log_dict(norms)
            self.log("grad_norm/global", torch.stack([*norms.values()]).norm())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), **OPTIONS)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=loggers.TensorBoardLogger(folder),
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
        trainer.fit(Module(), loader)


def keras_epoch(inputs: Tensor, labels: Tensor) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # pyright: ignore[reportMissingImports]

    layers = keras.layers
    model = keras.Sequential(
        [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )
    model.compile(
        keras.optimizers.SGD(0.05, 0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    with tempfile.TemporaryDirectory() as folder:
        board = keras.callbacks.TensorBoard(folder, update_freq="batch")
        model.fit(
            inputs.numpy(), labels.numpy(), 64, epochs=1, verbose=0, callbacks=[board]
        )


def rows(rounds: int) -> Iterator[Row]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    inputs, labels = torch.randn(60_000, 1, 28, 28), torch.randint(10, (60_000,))
    ours = functools.partial(logged_epoch, MLP, inputs, labels, 1)
    for name, epoch in {"lightning": lightning_epoch, "keras": keras_epoch}.items():
        if importlib.util.find_spec(name) is None:
            print(
                f"{name} is not installed, and was skipped: pip install -e '.[bench]'"
            )
            continue
        theirs = functools.partial(_quietly, functools.partial(epoch, inputs, labels))
        try:
            yield compare("MLP, every step logged", ours, name, theirs, rounds)
        except ImportError as error:
            print(f"{name} was skipped: {error}")


def _quietly(work: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        work()
