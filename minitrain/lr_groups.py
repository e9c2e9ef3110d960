"""The learning rates of several groups, which stay in proportion."""

from torch import Tensor
from torch.optim import Optimizer


def keep_lr_ratios(optimizer: Optimizer, start: int) -> None:
    """Note in each group its learning rate over that of the first, where they differ.

    It becomes a part of the optimizer's state, and a run that is continued finds it
    there, whatever a schedule has made of the learning rates.

    Raises:
        ValueError: The learning rate of the first group is 0, and another's is not.
    """
    groups = optimizer.param_groups
    if start and any("lr_ratio" in group for group in groups):
        return
    first, *_ = lrs = [float(group["lr"]) for group in groups]
    if first == 0 and any(lrs):
        raise ValueError(
            "the learning rate of the first group is 0: with lr=... those of the other "
            "groups are kept in proportion to it"
        )
    for group, lr in zip(groups, lrs, strict=True):
        group.pop("lr_ratio", None)
        if lr != first:
            group["lr_ratio"] = lr / first


def set_lrs(optimizer: Optimizer, lr: float) -> None:
    """Give the first group this learning rate, and the others theirs in proportion."""
    for group in optimizer.param_groups:
        group_lr = lr * group.get("lr_ratio", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group_lr)
        else:
            group["lr"] = group_lr
