"""DeepFool against the closed form of linear networks and a plain one-image implementation."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

from neural_collapse.collapse.attacks import deepfool, robustness
from neural_collapse.io.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Linear(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def conv_net(classes=5, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(12 * 16, classes),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def plain_deepfool(network, x, candidates, overshoot, max_steps):
    """Algorithm 2, one input at a time, with the overshoot in the loop as in the authors' code."""
    logits = network(x[None])[0]
    order = logits.argsort(descending=True)[:candidates].tolist()
    original, r_total, steps = order[0], torch.zeros_like(x), 0
    point, label = x.clone(), order[0]
    while label == original and steps < max_steps:
        point = point.detach().requires_grad_()
        f = network(point[None])[0]
        gradients = {k: torch.autograd.grad(f[k], point, retain_graph=True)[0] for k in order}
        best = math.inf
        for k in order[1:]:
            w = gradients[k] - gradients[original]
            f_k = (f[k] - f[original]).abs().item()
            if f_k / w.norm().item() < best:
                best = f_k / w.norm().item()
                r = f_k / w.norm().item() ** 2 * w
        r_total = r_total + r
        point = x + (1 + overshoot) * r_total
        label = network(point[None])[0].argmax().item()
        steps += 1
    return (1 + overshoot) * r_total, steps, original, label


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 12), d=st.integers(1, 20))
def test_linear_classifier_has_the_distance_to_its_boundary(seed, classes, d):
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((classes, d)), rng.standard_normal(classes)
    x = rng.standard_normal((9, d))
    result = deepfool(Linear(torch.tensor(W), torch.tensor(b)), torch.tensor(x), candidates=classes)
    logits = x @ W.T + b
    for i in range(9):
        k0 = logits[i].argmax()
        others = [k for k in range(classes) if k != k0]
        distances = [
            abs(logits[i, k] - logits[i, k0]) / np.linalg.norm(W[k] - W[k0]) for k in others
        ]
        nearest = others[int(np.argmin(distances))]
        assert_allclose(result.perturbation[i].norm(), 1.02 * min(distances), rtol=1e-9)
        direction = (W[nearest] - W[k0]) / np.linalg.norm(W[nearest] - W[k0])
        assert_allclose(
            result.perturbation[i], 1.02 * min(distances) * direction, rtol=1e-9, atol=1e-12
        )
        # the overshoot may carry the input through a second boundary, close behind the first
        landed = x[i] + 1.02 * min(distances) * direction
        assert result.adversarial_class[i] == (landed @ W.T + b).argmax()
        assert result.original_class[i] == k0
    assert result.converged.all() and (result.steps == 1).all()


@pytest.mark.parametrize(
    "candidates, overshoot, max_steps", [(10, 0.02, 50), (3, 0.1, 50), (5, 0.02, 1)]
)
def test_deepfool_equals_a_plain_implementation(candidates, overshoot, max_steps):
    network = conv_net().double().eval()
    torch.manual_seed(1)
    inputs = torch.randn(12, 3, 8, 8, dtype=torch.float64)
    result = deepfool(
        network, inputs, candidates=candidates, overshoot=overshoot, max_steps=max_steps
    )
    for i, x in enumerate(inputs):
        r, steps, original, label = plain_deepfool(network, x, candidates, overshoot, max_steps)
        assert_allclose(result.perturbation[i], r, rtol=1e-8, atol=1e-12)
        assert (result.steps[i], result.original_class[i]) == (steps, original)
        assert (result.adversarial_class[i], result.converged[i]) == (label, label != original)
    if max_steps > 1:
        assert len(set(result.steps.tolist())) > 1 and result.converged.all()
    else:
        assert not result.converged.all()


def test_float32_perturbation_fools_as_it_is_returned():
    network = conv_net().eval()
    torch.manual_seed(2)
    inputs = torch.randn(30, 3, 8, 8)
    result = deepfool(network, inputs)
    with torch.no_grad():
        decisions = network(inputs + result.perturbation).argmax(1)
    assert result.perturbation.dtype == torch.float32 and result.converged.all()
    assert torch.equal(decisions, result.adversarial_class)
    assert not (decisions == result.original_class).any()


def test_an_input_does_not_depend_on_its_batch_and_runs_repeat():
    network = conv_net().double()
    torch.manual_seed(3)
    inputs = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    together = deepfool(network, inputs)
    assert all(torch.equal(a, b) for a, b in zip(together, deepfool(network, inputs), strict=True))
    for i in range(8):
        alone = deepfool(network, inputs[i : i + 1])
        assert_allclose(alone.perturbation[0], together.perturbation[i], rtol=1e-9, atol=1e-13)


def test_works_only_on_inputs_not_yet_fooled():
    network = conv_net().double()
    sizes = []
    network.register_forward_hook(lambda _m, args, _out: sizes.append(len(args[0])))
    torch.manual_seed(4)
    result = deepfool(network, torch.randn(10, 3, 8, 8, dtype=torch.float64))
    expected = [10]
    for step in range(1, int(result.steps.max()) + 1):
        expected += [int((result.steps >= step).sum())] * 2  # a gradient, then a decision
    assert sizes == expected


def test_state_is_restored_and_no_gradients_are_left():
    network = conv_net().train()
    network[1].eval()
    network[4].weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    requires = [p.requires_grad for p in network.parameters()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs = torch.randn(4, 3, 8, 8, requires_grad=True)
    result = deepfool(network, inputs)
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == requires
    assert all(p.grad is None for p in network.parameters()) and inputs.grad is None
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert not result.perturbation.requires_grad
    with torch.no_grad():  # a caller's no_grad does not disturb it
        again = deepfool(network, inputs)
    assert torch.equal(again.perturbation, result.perturbation)


# ------------------------------------------------------------------------------ degenerate cases


def test_deepfool_vanishing_gradients_do_not_converge():
    """Classes 0 and 1 share their weights: no direction leads from one to the other."""
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    result = deepfool(Linear(weight, torch.tensor([1.0, 0.0])), torch.randn(3, 2))
    assert not result.converged.any() and (result.steps == 0).all()
    assert (result.perturbation == 0).all()
    assert torch.equal(result.original_class, result.adversarial_class)
    # a third class gives one
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    result = deepfool(Linear(weight, torch.tensor([1.0, 0.0, 0.0])), torch.tensor([[1.0, 0.0]]))
    assert result.converged.all() and result.adversarial_class.tolist() == [2]
    assert_allclose(result.perturbation.norm(), 1.02 * 2 / math.sqrt(5), rtol=1e-6)


def test_one_hopeless_input_does_not_stop_the_others():
    class Clipped(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :1].clamp(max=1), torch.zeros_like(x[:, :1])], 1)

    result = deepfool(Clipped(), torch.tensor([[0.5], [5.0], [-0.5], [torch.nan]]))
    assert result.converged.tolist() == [True, False, True, False]
    assert_allclose(result.perturbation.flatten(), [-0.51, 0, 0.51, 0], rtol=1e-6)
    assert result.steps.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_gradients_whose_squares_leave_float32(scale):
    weight = scale * torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    result = deepfool(Linear(weight, torch.zeros(2)), torch.tensor([[3.0, 1.0]]))
    assert result.converged.all()
    assert_allclose(result.perturbation, [[-1.02, 1.02]], rtol=1e-5)


def test_steps_that_overflow_are_not_taken():
    network = Linear(torch.tensor([[1e-38, 0.0], [0.0, 1e-38]]), torch.tensor([1e10, 0.0]))
    result = deepfool(network, torch.ones(2, 2))
    assert not result.converged.any() and (result.perturbation == 0).all()


def test_an_input_on_the_boundary_moves_off_it():
    network = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    result = deepfool(network, torch.tensor([[2.0, 2.0]]))
    assert result.converged.all()
    assert 0 < result.perturbation.norm() < 1e-5


def test_deepfool_stops_after_max_steps():
    class Saturating(nn.Module):
        """The boundary x = 0 is approached and never crossed."""

        def forward(self, x):
            return torch.cat([x.abs() + 1e-3, torch.zeros_like(x)], 1)

    result = deepfool(Saturating(), torch.tensor([[1.0]]), max_steps=7)
    assert result.steps.tolist() == [7] and not result.converged.any()
    assert torch.isfinite(result.perturbation).all()
    result = deepfool(Saturating(), torch.tensor([[1.0]]), max_steps=0)
    assert result.steps.tolist() == [0] and (result.perturbation == 0).all()


def test_deepfool_wrong_input_is_one_sentence():
    network, x = conv_net(), torch.randn(2, 3, 8, 8)
    for changes in (dict(candidates=1), dict(overshoot=-0.1), dict(max_steps=-1)):
        with pytest.raises(UserError):
            deepfool(network, x, **changes)
    with pytest.raises(UserError, match="at least 2 classes"):
        deepfool(conv_net(classes=1), x)
    with pytest.raises(UserError, match="no inputs"):
        deepfool(network, x[:0])


# ----------------------------------------------------------------------------------- robustness


def uint8_images(n=11):
    return np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


def test_robustness_is_relative_to_the_normalised_input():
    network, images = conv_net().double(), uint8_images()
    ratios = robustness(network.float(), images, MEAN, STD, batch_size=4)
    x = images / 255.0 - np.array(MEAN)[:, None, None]
    x = torch.tensor(x / np.array(STD)[:, None, None])
    r = deepfool(network.double(), x).perturbation
    assert ratios.dtype == np.float64 and ratios.shape == (11,)
    assert_allclose(ratios, r.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1), rtol=1e-3)


def test_robustness_halves_its_batch():
    network, images = conv_net(), uint8_images()
    expected = robustness(network, images, MEAN, STD, batch_size=3)

    def limited(_module, args):
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError

    network.register_forward_pre_hook(limited)
    assert_allclose(robustness(network, images, MEAN, STD, batch_size=12), expected, rtol=1e-5)


def test_robustness_of_hopeless_images_is_nan_with_one_warning():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    nn.init.zeros_(network[1].weight)
    with pytest.warns(RuntimeWarning, match="11 of 11") as caught:
        ratios = robustness(network, uint8_images(), MEAN, STD, batch_size=4)
    assert len(caught) == 1 and np.isnan(ratios).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(robustness(conv_net(), uint8_images(), MEAN, STD)).all()
        assert robustness(network, uint8_images(0), MEAN, STD).shape == (0,)


def test_inside_inference_mode_it_is_the_same():
    network = conv_net()
    torch.manual_seed(7)
    inputs = torch.randn(4, 3, 8, 8)
    expected = deepfool(network, inputs)
    with torch.inference_mode():
        got = deepfool(network, inputs + 0.0)
        assert torch.is_inference_mode_enabled()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_model_output_with_logits_is_taken():
    network = Linear(torch.eye(3), torch.zeros(3))
    wrapped = nn.Module()
    wrapped.forward = lambda x: SimpleNamespace(logits=network(x))
    x = torch.tensor([[2.0, 1, 0]])
    assert torch.equal(deepfool(wrapped, x).perturbation, deepfool(network, x).perturbation)


@pytest.mark.parametrize(
    "output, sentence",
    [
        (lambda x: (x, x), "returned a tuple; DeepFool needs logits"),
        (lambda x: {"out": x}, "returned a dict; DeepFool needs logits"),
        (lambda x: x[:, None], r"a tensor of shape \(2, 1, 3\)"),
        (lambda x: x.detach(), "logits have no gradient"),
        (lambda x: x[:, :1], "at least 2 classes"),
    ],
)
def test_outputs_that_are_no_logits_are_named(output, sentence):
    network = nn.Module()
    network.forward = output
    with pytest.raises(UserError, match=sentence):
        deepfool(network, torch.eye(3)[:2])


def test_inputs_and_networks_without_gradients_are_named():
    network = Linear(torch.eye(3), torch.zeros(3))
    with pytest.raises(UserError, match=r"inputs are torch\.int64; a float tensor"):
        deepfool(network, torch.ones(2, 3, dtype=int))
    with torch.inference_mode():
        made_inside = nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"made inside torch\.inference_mode"):
        deepfool(made_inside, torch.eye(3))
