"""The data of an experiment: samples to train, to validate and to test on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitrain.batches import Batches
from minitrain.fingerprint import fingerprint
from minitrain.loading import DatasetBatches
from minitrain.randomness import number_of
from minitrain.samples import count, move, select
from minitrain.system.errors import DataError, SettingsError

NUM_HASHED = 64
"""Items of an indexable data set that its hash covers, evenly spread."""


@dataclass(frozen=True)
class Data:
    """What an experiment's `data` returns: samples to train and to test on.

    Samples are a tuple (inputs, targets), each of them a tensor or a nested tuple, list
    or dictionary of tensors with one first dimension; or anything indexable with a
    length, such as a `torch.utils.data.Dataset`, whose items are (input, target).

    >>> x, y = torch.zeros(8, 2), torch.arange(8)
    >>> Data(train=(x[2:], y[2:]), test=(x[:2], y[:2])).num_samples
    6
    """

    train: Any
    test: Any
    valid: Any = None
    """What the best model is chosen by, if there is any."""
    classes: Sequence[str] | None = None
    """Names of the classes, for pictures."""
    name: str = ""
    """By default that of the experiment."""

    @property
    def num_samples(self) -> int:
        """The samples to train on."""
        return num_samples_of(self.train)

    def parts(self) -> dict[str, Any]:
        """Return the samples by what they are for."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def on(self, device: torch.device) -> "Data":
        """Return the same data, with tensors in memory on a device."""
        parts = self.parts().items()
        moved = {k: move(x, device) if is_in_memory(x) else x for k, x in parts}
        return dataclasses.replace(self, **moved)

    def sha256(self) -> str:
        """Return a hash of the samples.

        Of tensors every bit counts; of an indexable data set its length and 64 of its
        items, evenly spread.
        """
        parts = self.parts().items()
        return fingerprint({name: _hashed(samples) for name, samples in parts})


def is_in_memory(samples: Any) -> bool:
    """Return whether samples are a tuple (inputs, targets) of tensors."""
    return isinstance(samples, tuple) and len(samples) == 2


def num_samples_of(samples: Any) -> int:
    """Return how many samples there are."""
    return count(samples) if is_in_memory(samples) else len(samples)


def check_data(data: Any, place: str) -> Data:
    """Make sure that what `data(...)` returned is data to train and to test on.

    Raises:
        DataError: It is not; the message says what is wrong, and where.
    """
    if not isinstance(data, Data):
        raise DataError(
            f"{place}: data(...) returned {type(data).__name__}: it must return "
            "minitrain.Data(train=..., test=...)"
        )
    for name, samples in data.parts().items():
        try:
            _check_samples(samples)
        except (ValueError, TypeError) as error:
            raise DataError(f"{place}: the samples of {name}: {error}") from error
    return data


def _check_samples(samples: Any) -> None:
    if is_in_memory(samples):
        inputs, targets = map(count, samples)
        if inputs != targets:
            raise ValueError(f"{inputs} inputs and {targets} targets")
        num = inputs
    elif isinstance(samples, Tensor) or not hasattr(samples, "__getitem__"):
        raise ValueError(
            f"{type(samples).__name__} is neither a tuple (inputs, targets) nor an "
            "indexable data set"
        )
    else:
        num = len(samples)
    if num == 0:
        raise ValueError("there are none")


def batches_of(
    samples: Any,
    batch_size: int,
    device: torch.device,
    *,
    seed: int | None = None,
    workers: int = 0,
) -> Batches | DatasetBatches:
    """Return samples in batches: tensors on the device, a data set by workers."""
    if is_in_memory(samples):
        inputs, targets = move(samples, device)
        return Batches(inputs, targets, batch_size, seed)
    pin_memory = device.type != "cpu"
    return DatasetBatches(samples, batch_size, seed, workers, pin_memory)


def hold_out(data: Data, share: float, seed: int) -> Data:
    """Return the data with a share of the training samples held out, by the seed.

    Raises:
        SettingsError: There are validation samples already, or none would be left.
    """
    if data.valid is not None:
        raise SettingsError(
            f"data.validation = {share}: the experiment's data has samples to validate "
            "on already; leave it out"
        )
    num_samples = data.num_samples
    num_valid = round(share * num_samples)
    if not 0 < num_valid < num_samples:
        raise SettingsError(
            f"data.validation = {share}: of {num_samples} samples that is {num_valid}; "
            "both parts need one"
        )
    generator = torch.Generator().manual_seed(number_of(f"validation, seed {seed}"))
    order = torch.randperm(num_samples, generator=generator)
    # Either part in the order in which the samples came.
    valid, train = (part.sort().values for part in order.tensor_split([num_valid]))
    return dataclasses.replace(
        data, train=_choose(data.train, train), valid=_choose(data.train, valid)
    )


def _choose(samples: Any, indices: Tensor) -> Any:
    if is_in_memory(samples):
        return select(samples, indices)
    return torch.utils.data.Subset(samples, indices.tolist())


def _hashed(samples: Any) -> Any:
    """Return what the hash of samples is taken over."""
    if is_in_memory(samples):
        return samples
    num, batches = len(samples), DatasetBatches(samples, batch_size=1)
    places = sorted({i * num // NUM_HASHED for i in range(NUM_HASHED)})
    return {"length": num, **{str(i): batches.choose([i]) for i in places}}
