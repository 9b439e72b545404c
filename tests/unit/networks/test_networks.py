"""The three families against torchvision, the papers' parameter counts and plain arithmetic."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neural_collapse.io.errors import UserError
from neural_collapse.networks.build import build_network, construct_without_weights
from neural_collapse.networks.network import mean_over_image
from neural_collapse.networks.registry import resolve_network
from neural_collapse.networks.vgg import pooled

SMALL = {
    "vgg": {
        "family": "vgg",
        "convolutions": [1, 1, 2, 2],
        "width": 16,
        "hidden_width": 32,
    },
    "resnet": {"family": "resnet", "block": "basic", "blocks": [1, 1, 1, 1], "width": 8},
    "resnet bottleneck": {
        "family": "resnet",
        "block": "bottleneck",
        "blocks": [1, 2],
        "width": 4,
        "stem": "imagenet",
    },
    "densenet": {"family": "densenet", "blocks": [4, 4, 4], "growth": 6},
    "densenet bc": {
        "family": "densenet",
        "blocks": [2, 3],
        "growth": 4,
        "bottleneck": True,
        "compression": 0.5,
        "initial_width": 8,
        "stem": "imagenet",
    },
}


def build(spec, *, channels=3, num_classes=10, image_size_px=32, seed=0):
    return build_network(
        resolve_network(spec),
        channels=channels,
        num_classes=num_classes,
        image_size_px=image_size_px,
        seed=seed,
    )


def count(spec, *, channels=3, num_classes=10, image_size_px=32):
    network = construct_without_weights(
        resolve_network(spec),
        channels=channels,
        num_classes=num_classes,
        image_size_px=image_size_px,
    )
    return sum(parameter.numel() for parameter in network.parameters())


def torchvision_count(name):
    with torch.device("meta"):
        return sum(p.numel() for p in getattr(torchvision.models, name)().parameters())


# Sizes


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        # Counted by many (kuangliu/pytorch-cifar's ResNet18 among them).
        ({"name": "resnet18"}, 11_173_962),
        # osmr/imgclsmob's table of CIFAR-10 models; "15.3M" in table 2 of Huang et al. 2017.
        ({"name": "densenet250"}, 15_324_406),
    ],
)
def test_published_parameter_counts_on_cifar10(spec, published):
    assert count(spec) == published


def test_densenet40_parameter_count_equals_one_by_hand():
    total, width = 3 * 16 * 9, 16
    for block in range(3):
        for _ in range(12):
            total += 2 * width + width * 12 * 9
            width += 12
        total += 2 * width  # norm of the transition, or the last one
        if block < 2:
            total += width * width
    assert width == 448
    assert count({"name": "densenet40"}) == total + width * 10 + 10


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet201"],
)
def test_parameter_counts_of_torchvision_at_224_px(name):
    spec = {"name": name, "stem": "imagenet"}
    assert count(spec, num_classes=1000, image_size_px=224) == torchvision_count(name)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_parameter_counts_of_vgg_are_torchvisions_and_two_norms(name):
    found = count({"name": name, "pooled_size_px": 7}, num_classes=1000, image_size_px=224)
    assert found == torchvision_count(f"{name}_bn") + 2 * (4096 + 4096)


# torchvision's weights and outputs


TORCHVISION_NAMES = {
    "resnet50": lambda key: key.replace("classifier.", "fc."),
    "densenet121": lambda key: key.replace("body.", "features."),
}


@torch.no_grad()
def assert_same_function(ours, theirs, shape):
    """In float64, where two orders of summation differ by little."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.double()(x), theirs.double()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_imagenet_form_is_torchvisions_weights_and_outputs(name):
    """Not only the same function of the same weights: the same seed draws the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = getattr(torchvision.models, name)(num_classes=7)
    ours = build({"name": name, "stem": "imagenet"}, num_classes=7, image_size_px=64, seed=5)
    rename = TORCHVISION_NAMES[name]
    renamed = {rename(key): value for key, value in ours.state_dict().items()}
    assert list(renamed) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(renamed[key], value), key
    assert_same_function(ours, theirs, (2, 3, 64, 64))
    assert_same_function(ours.eval(), theirs.eval(), (2, 3, 64, 64))


@pytest.mark.parametrize("image_size_px", [32, 96])
def test_vgg_is_torchvisions_but_for_dropout(image_size_px):
    """Same weights from the same seed; in eval mode fresh norms divide by sqrt(1 + eps) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        # torchvision's own parts, with the small head: 1x1 pooling, 64 hidden units.
        convolutions = torchvision.models.vgg.make_layers(
            torchvision.models.vgg.cfgs["B"], batch_norm=True
        )
        theirs = torchvision.models.VGG(convolutions, num_classes=7, init_weights=False)
        theirs.avgpool = nn.AdaptiveAvgPool2d(1)
        theirs.classifier[0] = nn.Linear(512, 64)
        theirs.classifier[3] = nn.Linear(64, 64)
        theirs.classifier[6] = nn.Linear(64, 7)
    ours = build(
        {"name": "vgg13", "hidden_width": 64}, num_classes=7, image_size_px=image_size_px, seed=5
    )
    names = {"classifier.0": "hidden.0", "classifier.3": "hidden.3", "classifier.6": "classifier"}
    state = ours.state_dict()

    def ours_of(key):
        layer, kind = key.rsplit(".", 1)
        return f"{names.get(layer, layer.replace('features', 'convolutions'))}.{kind}"

    theirs.load_state_dict({key: state[ours_of(key)] for key in theirs.state_dict()})
    left = set(state) - {ours_of(key) for key in theirs.state_dict()}
    assert {key.rsplit(".", 1)[0] for key in left} == {"hidden.2", "hidden.5"}
    shrink = (1 + 1e-5) ** -0.5
    with torch.no_grad():
        x = torch.randn(2, 3, image_size_px, image_size_px)
        ours.eval()
        theirs.eval()
        for index in (3, 6):
            theirs.classifier[index].weight *= shrink
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-7)


def test_vgg_draws_torchvisions_weights():
    """At 224 px, with torchvision's 4096 units: the whole initialisation, bit for bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = torchvision.models.vgg11_bn(num_classes=7)
    ours = build({"name": "vgg11", "pooled_size_px": 7}, num_classes=7, image_size_px=224, seed=5)
    assert torch.equal(ours.convolutions[0].weight, theirs.features[0].weight)
    assert torch.equal(ours.convolutions[-4].weight, theirs.features[-4].weight)
    assert torch.equal(ours.hidden[0].weight, theirs.classifier[0].weight)
    assert torch.equal(ours.hidden[3].weight, theirs.classifier[3].weight)
    assert torch.equal(ours.classifier.weight, theirs.classifier[6].weight)


def test_small_resnet18_is_the_notebooks():
    """The authors' notebook: resnet18(num_classes=10), conv1 and maxpool replaced."""
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(1, 64, kernel_size=3, stride=1, padding=1, bias=False)
    theirs.maxpool = nn.MaxPool2d(kernel_size=1, stride=1, padding=0)
    ours = build({"name": "resnet18"}, channels=1)
    theirs.load_state_dict(
        {key.replace("classifier.", "fc."): value for key, value in ours.state_dict().items()}
    )
    assert_same_function(ours, theirs, (3, 1, 32, 32))


# What every network promises


@pytest.mark.parametrize("image_size_px", [8, 28, 96])
@pytest.mark.parametrize("name", SMALL)
def test_network_of_any_image_size_has_features_and_classifier(name, image_size_px):
    channels = 1 if image_size_px < 32 else 3
    network = build(SMALL[name], channels=channels, num_classes=5, image_size_px=image_size_px)
    assert network.training
    network.eval()
    x = torch.randn(2, channels, image_size_px, image_size_px)
    with torch.no_grad():
        h, logits = network.features(x), network(x)
    assert type(network.classifier) is nn.Linear
    assert h.shape == (2, network.classifier.in_features)
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()
    by_hand = h @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(logits, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_network_in_training_mode_has_no_dropout(name):
    network = build(SMALL[name])
    assert not [m for m in network.modules() if "dropout" in type(m).__name__.lower()]
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(x), network(x))  # in training mode


@pytest.mark.parametrize("name", SMALL)
def test_network_backward_reaches_every_parameter(name):
    network = build(SMALL[name])
    loss = nn.functional.cross_entropy(network(torch.randn(8, 3, 32, 32)), torch.arange(8))
    loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        # A shift before a norm's mean is taken away changes nothing: VGG's convolution biases.
        if not (key.startswith("convolutions") and key.endswith("bias")):
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_seed_decides_the_weights_and_nothing_else_is_touched(name):
    first = build(SMALL[name], seed=3).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    second = build(SMALL[name], seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = build(SMALL[name], seed=4).state_dict()
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_random_state_outlives_an_error():
    before = torch.get_rng_state()
    with pytest.raises(UserError):
        build({"name": "densenet40"}, image_size_px=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_come_from_the_cpu_whatever_the_default_device():
    expected = build(SMALL["resnet"]).classifier.weight
    with torch.device("meta"):
        found = build(SMALL["resnet"]).classifier.weight
    assert torch.equal(expected, found)


@pytest.mark.parametrize("pixels", [1, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_mean_over_the_image_is_poolings(pixels, memory_format):
    x = torch.randn(5, 7, pixels, pixels).contiguous(memory_format=memory_format)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    weights = torch.randn(5, 7)
    means = mean_over_image(found), nn.functional.adaptive_avg_pool2d(expected, 1).flatten(1)
    assert torch.equal(*means)
    for mean in means:
        (mean * weights).sum().backward()
    assert torch.equal(found.grad, expected.grad)


def test_the_gradient_of_every_stage_is_channels_last():
    """What mixes memory formats is many times slower."""
    network = build(SMALL["resnet"]).to(memory_format=torch.channels_last)
    formats = []

    def watch(module, inputs, outputs):
        outputs.register_hook(
            lambda gradient: formats.append(
                gradient.is_contiguous(memory_format=torch.channels_last)
            )
        )

    for number in range(1, 5):
        getattr(network, f"layer{number}").register_forward_hook(watch)
    x = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network(x).sum().backward()
    assert formats == [True] * 4


@pytest.mark.parametrize("name", SMALL)
def test_network_memory_formats_give_the_same_logits(name):
    network = build(SMALL[name]).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        wide = [p for p in network.parameters() if p.ndim == 4 and min(p.shape) > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
        found = network(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        network.to(memory_format=torch.contiguous_format)
        assert torch.equal(network(x), expected)


# What GPUs can do

# Of torch.use_deterministic_algorithms' list, those that a network of images might meet.
NOT_DETERMINISTIC_ON_GPUS = {
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "cumsum", "median", "put_"),
    *("upsample_bilinear2d_backward", "reflection_pad2d_backward", "replication_pad2d_backward"),
}


class Watched(TorchDispatchMode):
    """Names of the operators that are called within the block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


PAPERS_FORMS = {
    **{name: (spec, 32) for name, spec in SMALL.items()},
    "vgg of ImageNet": (SMALL["vgg"] | {"pooled_size_px": 7}, 112),
    "vgg, cells side by side": (SMALL["vgg"] | {"pooled_size_px": 2}, 64),
    "vgg, cells that overlap": (SMALL["vgg"] | {"pooled_size_px": 2}, 48),
}


@pytest.mark.parametrize("name", PAPERS_FORMS)
def test_every_gradient_has_a_deterministic_kernel_on_gpus(name):
    spec, image_size_px = PAPERS_FORMS[name]
    network = build(spec, image_size_px=image_size_px)
    x = torch.randn(4, 3, image_size_px, image_size_px, requires_grad=True)
    with Watched() as watched:
        nn.functional.cross_entropy(network(x).double(), torch.arange(4)).backward()
    assert "convolution_backward" in watched.names
    assert not watched.names & NOT_DETERMINISTIC_ON_GPUS


def test_torchs_own_pooling_would_be_found():
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    with Watched() as watched:
        nn.AdaptiveAvgPool2d(7)(x).sum().backward()
    assert watched.names & NOT_DETERMINISTIC_ON_GPUS


@pytest.mark.parametrize(
    ("px", "size"), [(1, 1), (7, 7), (4, 1), (4, 2), (12, 3), (3, 2), (7, 3), (7, 5), (9, 8)]
)
def test_pooling_of_any_size_equals_torchs(px, size):
    x = torch.randn(2, 5, px, px, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, size, size, dtype=torch.float64)
    found, expected = pooled(x, size), nn.AdaptiveAvgPool2d(size)(x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)


# Checkpointed dense blocks


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["densenet", "densenet bc"])
def test_memory_efficient_dense_blocks_compute_the_same(name, mixed):
    """In bfloat16 autocast and channels-last as well."""
    layout = torch.channels_last if mixed else torch.contiguous_format
    plain = build(SMALL[name]).to(memory_format=layout)
    efficient = build(SMALL[name] | {"memory_efficient": True}).to(memory_format=layout)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (plain, efficient)]
    for step in range(3):
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        x = x.contiguous(memory_format=layout)
        for network, optimizer in zip((plain, efficient), optimizers, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                logits = network(x)
            nn.functional.cross_entropy(logits.float(), torch.arange(4)).backward()
            optimizer.step()
        for (key, p), q in zip(plain.named_parameters(), efficient.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), key
        # Weights, running statistics and num_batches_tracked (moved once a step, not twice).
        for key, value in plain.state_dict().items():
            assert torch.equal(value, efficient.state_dict()[key]), key
    assert efficient.body.denseblock1.denselayer1.norm1.num_batches_tracked == 3


@pytest.mark.parametrize("name", ["densenet", "densenet bc"])
def test_memory_efficient_gradients_of_images_in_eval_mode(name):
    """What measure_robustness asks for."""
    grads = []
    for memory_efficient in (False, True):
        network = build(SMALL[name] | {"memory_efficient": memory_efficient})
        network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        before = {key: value.clone() for key, value in network.state_dict().items()}
        x = torch.ones(2, 3, 32, 32).mul_(0.3).requires_grad_()
        network.eval()(x)[:, 0].sum().backward()
        grads.append(x.grad)
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert torch.equal(*grads)


def test_memory_efficient_graph_serves_several_backward_passes():
    """DeepFool asks one graph for the gradient of every class."""
    rows = []
    for memory_efficient in (False, True):
        network = build(SMALL["densenet bc"] | {"memory_efficient": memory_efficient}).eval()
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logits = network(x).sum(0)
        rows.append([torch.autograd.grad(logits[k], x, retain_graph=True)[0] for k in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True))


def test_memory_efficient_dense_blocks_store_less():
    def stored_bytes(memory_efficient):
        spec = {"name": "densenet121", "memory_efficient": memory_efficient, "growth": 4}
        network = build(spec)
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(8, 3, 32, 32))
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    assert stored_bytes(True) < stored_bytes(False) / 3


# Images too small


@pytest.mark.parametrize(
    ("spec", "image_size_px", "said"),
    [
        ({"name": "densenet40"}, 3, "images of 3 px are too small for the 3 blocks of DenseNet40"),
        ({"name": "densenet121"}, 7, "or larger images"),
        ({"name": "densenet201", "stem": "imagenet"}, 28, "or set stem: small"),
        ({"name": "vgg11", "pooled_size_px": 7}, 32, "set pooled_size_px to 1 or less"),
        ({"name": "vgg11", "pooled_size_px": 4}, 96, "leave 3 px of images of 96 px"),
        ({"name": "vgg11"}, 0, "at least 1 channel, 1 px and 2 classes"),
    ],
)
def test_too_small_images_are_refused(spec, image_size_px, said):
    with pytest.raises(UserError) as error:
        build(spec, image_size_px=image_size_px)
    assert said in str(error.value)
    with pytest.raises(UserError):
        count(spec, image_size_px=image_size_px)


@pytest.mark.parametrize(
    ("spec", "smallest_px"),
    [
        ({"name": "resnet18", "width": 4}, 1),
        ({"name": "vgg11", "width": 4, "hidden_width": 8}, 1),
        ({"name": "densenet40", "growth": 4}, 4),
        ({"name": "densenet121", "growth": 4}, 8),
        ({"name": "densenet121", "growth": 4, "stem": "imagenet"}, 29),
    ],
)
def test_smallest_images_that_are_accepted_do_pass(spec, smallest_px):
    network = build(spec, image_size_px=smallest_px).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, smallest_px, smallest_px)).shape == (2, 10)
    if smallest_px > 1:
        with pytest.raises(UserError):
            build(spec, image_size_px=smallest_px - 1)
