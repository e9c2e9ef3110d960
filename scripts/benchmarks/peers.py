"""An MLP epoch that logs every step, by Lightning and by Keras on torch.

Both are optional: pip install -e '.[bench]'. They log the loss of every step to
TensorBoard, Lightning the gradient norms of every step as well, as ours does. Keras'
own callback for TensorBoard needs TensorFlow: torch's writer takes its place.
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
from torch.utils.tensorboard import SummaryWriter

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

    class Log(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            writer.add_scalar("loss/train", logs["loss"], batch)

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        model.fit(
            inputs.numpy(), labels.numpy(), 64, epochs=1, verbose=0, callbacks=[Log()]
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
        yield compare("MLP, every step logged", ours, name, theirs, rounds)


def _quietly(work: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        work()
