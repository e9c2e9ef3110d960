"""What is refused before the first step of a training, each in a sentence."""

import functools
import inspect
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from minitrain.epochs import has_epochs
from minitrain.vector import Theta

P = ParamSpec("P")
T = TypeVar("T")


def check_training(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Any,
    *,
    lr: Any,
    clip_norm: float | None,
    start: int,
    **at_least_1: int,
) -> None:
    """Make sure that `minitrain.train` can begin with these arguments.

    Raises:
        TypeError: One is of another kind than is wanted.
        ValueError: One is out of range, or two do not belong together.
    """
    for name, value in at_least_1.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm = {clip_norm}: must be positive")
    if start < 0:
        raise ValueError(f"start = {start}: must be at least 0")
    if lr is not None and not callable(lr):
        raise TypeError(
            f"lr = {lr!r}: it is a function of the number of completed updates; a "
            "constant one is the optimizer's own: leave lr out"
        )
    check_optimizer(model, optimizer)
    check_passes(optimizer)
    check_batches(batches, start)


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Make sure that an optimizer updates parameters of a model.

    Raises:
        ValueError: It updates none, or there are none.
    """
    own = {*model.parameters()}
    if not own:
        raise ValueError("the model has no parameters: there is nothing to train")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    is_torchs = type(optimizer).__module__.startswith("torch.optim")
    if is_torchs and any(isinstance(param, Theta) for param in params):
        raise ValueError(
            f"{type(optimizer).__name__} cuts a ParameterVector off from its module "
            "when it resets gradients: give it model.parameters(); a vector is for "
            "minitrain.SGD"
        )
    if not any(parameter in own for parameter in parameters_of(optimizer)):
        raise ValueError(
            "the optimizer updates no parameter of the model: make it from "
            "model.parameters() or ParameterVector(model), after the model was built "
            "and moved"
        )


def check_passes(optimizer: Optimizer) -> None:
    """Make sure that one forward and one backward pass are enough for a step.

    Raises:
        TypeError: `optimizer.step` needs a closure that makes them.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{type(optimizer).__name__}.step needs a closure, by which it makes "
            "several passes in a step: train makes one. Call it in a loop of your own"
        )


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield what an optimizer updates; of a vector the parameters that live in it."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if isinstance(param, Theta):
                yield from param.vector.parameters
            else:
                yield param


def check_batches(batches: Any, start: int = 0) -> None:
    """Make sure that batches are no data set, and known where `start` passes some over.

    Raises:
        TypeError: They are a data set, which has samples.
        ValueError: Those after the first `start` ones may be others each time.
    """
    if has_epochs(batches):
        return
    if isinstance(batches, Dataset):
        raise TypeError(
            f"batches = {type(batches).__name__}: the items of a Dataset are samples; "
            "give DatasetBatches(dataset, batch_size) or a DataLoader"
        )
    if start and not isinstance(batches, list | tuple):
        raise ValueError(
            f"start = {start}: the batches of a {type(batches).__name__} may be others "
            "each time, and the run would go on with the wrong ones; give Batches or "
            "DatasetBatches, whose order is a function of the epoch, or a list"
        )


def check_loss(loss: Any) -> None:
    """Make sure that a loss is one number.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = type(loss).__name__
        if isinstance(loss, Tensor):
            what = f"a tensor of shape {tuple(loss.shape)}"
        raise ValueError(
            f"the loss is {what}: it must be a tensor of one number, the mean over "
            "the samples of the batch; reduction='none' gives one for each"
        )


def check_dependence(has_gradient: bool) -> None:
    """Make sure that there is a gradient to walk against.

    Raises:
        ValueError: There is none.
    """
    if not has_gradient:
        raise ValueError(
            "the loss depends on no parameter that the optimizer updates: compute it "
            "from the outputs of the model, without torch.no_grad, detach or item, and "
            "with requires_grad of the parameters on"
        )


def warn_of_evaluation_mode(stacklevel: int = 4) -> None:
    """Tell that a whole model was left in evaluation mode.

    Args:
        stacklevel: How far up the loop is that asks for the steps.
    """
    warnings.warn(
        "the model is in evaluation mode: dropout and batch normalization do not train "
        "from here on; call model.train() after model.eval()",
        stacklevel=stacklevel,
    )


def warn_if_unused(make: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Have a generator function tell where its generator is thrown away unasked.

    Nothing happens in a generator before it is asked for its first value.
    """

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return _Told(make(*args, **kwargs), make.__name__)

    return wrapper


class _Told(Iterator[T]):
    def __init__(self, values: Iterator[T], name: str) -> None:
        self._values, self._name, self._is_used = values, name, False

    def __next__(self) -> T:
        self._is_used = True
        return next(self._values)

    def close(self) -> None:
        """End the generator, as its own method does."""
        self._is_used = True
        cast(Generator[T], self._values).close()

    def __del__(self) -> None:
        if not self._is_used:
            warnings.warn(
                f"{self._name}(...) did nothing: it is a generator, which works as far "
                f"as a loop asks it to: for step in {self._name}(...)",
                stacklevel=2,
            )
