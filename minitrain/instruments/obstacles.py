"""Which instruments cannot work with a model and its optimizer, and why."""

from torch import nn

from minitrain import tags
from minitrain.data_parallel import groups_of
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.observation import OF_ONE_RULE, OF_SGD_ALONE, Parameters
from minitrain.sharded import are_sharded


def find_obstacles(model: nn.Module, parameters: Parameters) -> dict[str, str]:
    """Return the reasons by instruments, or by the tags of single readings.

    Args:
        model: The model.
        parameters: What its optimizer updates.
    """
    found = {}
    if difference := parameters.difference_of_groups():
        found |= dict.fromkeys(OF_ONE_RULE, difference)
    if departure := parameters.departure_from_sgd():
        found |= dict.fromkeys(OF_SGD_ALONE, departure)
    if obstacle := parameters.decay_obstacle():
        found[tags.DECAY_SHARE] = obstacle
    if sharded := [n for n, p in model.named_parameters() if are_sharded([p])]:
        reason = (
            f"{sharded[0]} is a DTensor, of which each process holds a part, and the "
            "panel reads whole tensors"
        )
        found |= dict.fromkeys((*Cadence._fields, tags.LEFT_OVER), reason)
    elif groups_of(model):
        found["noise"] = (
            "DistributedDataParallel averages the gradient over processes, and each of "
            "them sees its own samples alone"
        )
    return found
