"""Two processes that share a batch learn what one learns from all of it: every model of configs/model."""

import pytest
from test_configs import MODELS, SPACES, made

from zoo.evaluation.checks.processes import in_turn
from zoo.nn import Independent

# what compares examples with each other, of which a process sees its share (docs/devices.md), and what does not
ALONE = {"ot_cfm": {"coupling": Independent()}}


def subject(name):
    """A small model of a config, in float64, and a batch of the first kind of data that it can be made for."""
    found = next(fit for space in SPACES if (fit := made(name, space)))
    for part, other in ALONE.get(name, {}).items():
        setattr(found.model, part, other)
    x = found.x.double() if found.x.is_floating_point() else found.x
    return found.model.double(), {"x": x} if found.y is None else {"x": x, "y": found.y}


@pytest.fixture(scope="module")
def findings():
    """What one pair of processes finds of all models."""
    return dict(zip(MODELS, in_turn([subject(name) for name in MODELS]), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_learn_what_one_learns(findings, name):
    """The loss, all gradients, and after a step all buffers: codebooks, running moments, what `prepare` measured."""
    assert findings[name].verdict == "ok", findings[name].words
