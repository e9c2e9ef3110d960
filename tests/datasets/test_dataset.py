"""What a model sees of a data set: inputs of mean 0 and standard deviation 1."""

import pytest
import torch
from harness.small_sets import random_examples

from minitrain.datasets.dataset import Dataset


def test_inputs_have_mean_0_and_standard_deviation_1_over_the_training_set():
    train, test = random_examples(50, seed=0), random_examples(20, seed=1)
    train.images[:, :14] //= 3  # not all random: the mean is not simply 127.5
    dataset = Dataset("random", tuple("0123456789"), train, test)
    originals = train.images.clone(), test.images.clone()

    std, mean = torch.std_mean(train.images.double(), correction=0)
    assert dataset.mean_std == pytest.approx((mean.item(), std.item()), rel=1e-12)
    inputs = dataset.inputs(train)
    assert inputs.shape == (50, 1, 28, 28) and inputs.dtype == torch.float32
    torch.testing.assert_close(
        torch.std_mean(inputs.double(), correction=0),
        (torch.tensor(1.0).double(), torch.tensor(0.0).double()),
        rtol=0,
        atol=1e-6,  # inputs are rounded to float32
    )
    expected = (test.images.double() - mean) / std  # the training set's, not its own
    torch.testing.assert_close(dataset.inputs(test), expected.unsqueeze(1).float())
    assert torch.equal(train.images, originals[0])
    assert torch.equal(test.images, originals[1])
