"""The contracts' own few functions."""

import torch

from zoo.types import PAD, Density, Sampler, can, scored


def test_white_pixels_are_scored_and_padding_is_not():
    assert scored(torch.tensor([0, 255], dtype=torch.uint8)).all()  # as uint8, -1 is 255
    assert scored(torch.tensor([3, PAD, 0])).tolist() == [True, False, True]
    assert scored(torch.tensor([-1.0, 0.5])).all()


def test_abilities_are_methods_unless_a_model_of_parts_decides():
    class Plain:
        def sample(self, n, y=None):
            return n

    class Parts(Plain):
        kind = "exact"

        def log_prob(self, x, y=None):
            return x

        def can(self, contract):
            return contract is Sampler

    assert can(Plain(), Sampler)
    assert not can(Plain(), Density)
    assert can(Parts(), Sampler)
    assert not can(Parts(), Density)
