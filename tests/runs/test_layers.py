"""Maps of what every parameter does: which steps they keep, and how they are drawn."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from minitrain.pictures.layers import draw_grad_norms, draw_update_ratios
from minitrain.runs.layers import LayerMap, LayerMaps


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_a_map_keeps_steps_evenly_spread_and_the_last(most: int) -> None:
    """Whatever came, it is every 2^k-th step, for the smallest k that is few enough."""
    layers = LayerMap(most)
    for num in range(1, 70):
        layers.take(10 * num, {"weight": float(num)})
        indices = next(
            kept for k in range(9) if len(kept := range(0, num, 2**k)) <= most
        )
        expected = sorted({*indices, num - 1})
        assert layers.steps == [10 * (i + 1) for i in expected]
        assert layers.values.tolist() == [[float(i + 1) for i in expected]]


def test_a_parameter_may_come_late_or_stay_away() -> None:
    layers = LayerMap()
    layers.take(1, {"a": 1.0})
    layers.take(2, {"a": 2.0, "b": 3.0})
    layers.take(3, {"b": 4.0})
    expected = torch.tensor([[1.0, 2.0, math.nan], [math.nan, 3.0, 4.0]])
    assert layers.names == ["a", "b"]
    assert layers.values.isnan().equal(expected.isnan())
    assert layers.values.nan_to_num().equal(expected.nan_to_num())


def test_maps_take_what_is_of_a_parameter_and_nothing_else() -> None:
    values = {"loss/train": 1.0, "grad_norm/global": 5.0, "grad_norm/w": 3.0}
    maps = LayerMaps([(1, values)])
    maps.take(2, {"update_ratio/w": 0.5, "update_ratio/global": 0.1})
    assert (maps.grad_norms.names, maps.grad_norms.steps) == (["w"], [1])
    assert maps.grad_norms.values.tolist() == [[3.0]]
    assert (maps.update_ratios.steps, maps.update_ratios.names) == ([2], ["w"])


def test_the_color_is_the_logarithm_and_nothing_but_zero_is_black() -> None:
    values = torch.tensor([[1.0, 0.0, 100.0], [1e-4, math.nan, 1e-9]])
    for draw, range_ in ((draw_grad_norms, (-6, 2)), (draw_update_ratios, (-6, 0))):
        axes, _ = draw(["in", "out"], [1, 10, 20], values).axes
        mesh, black = axes.collections
        logs, zeros = (np.asarray(x.get_array(), dtype=float) for x in (mesh, black))
        assert_allclose(logs, [[0, np.nan, 2], [-4, np.nan, -9]])
        assert_allclose(zeros, [[np.nan, 0, np.nan], [np.nan] * 3])
        assert black.to_rgba(np.zeros(1))[0].tolist() == [0, 0, 0, 1]
        assert (mesh.norm.vmin, mesh.norm.vmax) == range_
        assert [label.get_text() for label in axes.get_yticklabels()] == ["in", "out"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"
        assert r"\log_{10}" in axes.get_title() and "black" in axes.get_title()


def test_a_deep_network_has_few_labels_and_a_bounded_height() -> None:
    names = [f"transformer.layers.{i}.attention.in_proj_weight" for i in range(161)]
    figure = draw_grad_norms(names, [1, 2], torch.ones(161, 2))
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    assert len(labels) <= 24 and max(map(len, labels)) <= 23
    assert figure.get_size_inches()[1] <= 9
