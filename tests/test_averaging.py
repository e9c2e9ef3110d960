"""The moving average of the weights, by its formula in float64."""

import torch
from harness.networks import Centered

from minitrain import SGD, Batches, train
from minitrain.averaging import WeightAverage


def test_what_a_pass_puts_in_the_place_of_a_buffer_is_averaged() -> None:
    model = Centered()
    model(inputs := torch.randn(8, 5))  # so that every buffer has a value
    average = WeightAverage(model, decay=0.75)
    expected = {k: x.double() for k, x in model.state_dict().items()}
    batches = Batches(inputs, torch.tensor([0, 1] * 4), batch_size=4)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in train(model, optimizer, batches, torch.nn.functional.cross_entropy):
        average.update()
        for name, own in model.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * own.double()
    own = {k: x.clone() for k, x in model.state_dict().items()}
    expected["num_passes"] = own["num_passes"]  # a counter is as it is now
    with average.in_place():
        for name, found in model.state_dict().items():
            assert torch.allclose(found.double(), expected[name].double(), atol=1e-6)
    assert all(torch.equal(x, own[name]) for name, x in model.state_dict().items())
