"""Any model measured from its loaders, against its features taken by hand."""

import errno
import random
import tempfile
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neural_collapse as nc
from neural_collapse.collapse.model import last_layer_of


class Classifier(nn.Module):
    """Convolution, batch norm, dropout, two linear layers."""

    def __init__(self, classes=3, bias=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes, bias=bias)

    def features(self, x):
        return self.hidden(self.stem(x).mean((2, 3))).tanh()

    def forward(self, x):
        return self.fc(self.drop(self.features(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)

    def split(count):
        labels = torch.from_numpy(rng.permutation(np.arange(count) % 3))
        noise = torch.from_numpy(rng.standard_normal((count, 1, 5, 5))).float()
        return TensorDataset(noise + labels[:, None, None, None], labels)

    return split(40), split(23)


def by_hand(model, data):
    model.eval()
    with torch.no_grad():
        return model.features(data.tensors[0]), data.tensors[1]


def test_both_splits_are_those_of_features_taken_by_hand(model, splits):
    train, test = splits
    result = nc.measure_model(model, DataLoader(train, 7, shuffle=True), DataLoader(test, 9))
    layer = model.fc
    expected = nc.measure(*by_hand(model, train), layer.weight, layer.bias)
    assert result.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)
    means = expected.moments.class_means
    of_test = nc.measure(*by_hand(model, test), layer.weight, layer.bias, train_means=means)
    assert result.test.to_dict() == pytest.approx(of_test.to_dict(), rel=1e-4)
    assert "train" in str(result).splitlines()[0] and "test" in str(result).splitlines()[0]


def test_several_layers_and_pooled_maps(model, splits):
    loader = DataLoader(splits[0], 7)
    results = nc.measure_model(model, loader, layer=["hidden", "fc"])
    assert list(results) == ["hidden", "fc"]
    assert "nc3_self_duality" in results["fc"] and "nc3_self_duality" not in results["hidden"]
    assert results["hidden"].moments.feature_dim == 4
    pooled = nc.measure_model(model, loader, layer="stem.2", pool="mean")
    flat = nc.measure_model(model, loader, layer="stem.2", pool="flatten")
    assert (pooled.moments.feature_dim, flat.moments.feature_dim) == (4, 100)


def test_measure_model_batches_that_are_dicts_are_taken(model, splits):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, pixel_values, scale=1.0):
            return self.inner(pixel_values * scale)

    images, labels = splits[0].tensors
    expected = nc.measure_model(model, [(images, labels)]).to_dict()
    named = [{"pixel_values": images, "labels": labels}]
    assert nc.measure_model(Named(), named).to_dict() == expected
    keys = {"inputs_key": "image", "labels_key": "y"}
    assert nc.measure_model(model, [{"image": images, "y": labels}], **keys).to_dict() == expected
    with pytest.raises(nc.UserError, match="no 'labels' but image, y; name inputs_key"):
        nc.measure_model(model, [{"image": images, "y": labels}])


def test_measure_model_ignored_positions_are_left_out(splits):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5))
    tokens = torch.randint(0, 11, (4, 30))
    labels = torch.where(torch.rand(4, 30) < 0.3, -100, torch.randint(0, 5, (4, 30)))
    result = nc.measure_model(model, [(tokens, labels)], ignore_index=-100)
    kept = labels != -100
    features = model[0](tokens)[kept]
    expected = nc.measure(features, labels[kept], model[1].weight, model[1].bias)
    assert result.to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)


def test_features_beyond_the_limit_go_to_a_file(model, splits, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    loader = DataLoader(splits[0], 7)
    expected = nc.measure_model(model, loader).to_dict()
    for limit in (0, 300):
        found = nc.measure_model(model, loader, memory_limit_bytes=limit)
        assert found.to_dict() == expected
    assert list(tmp_path.iterdir()) == []


def test_a_test_set_that_lacks_a_class_keeps_nc4(model, splits):
    images, labels = splits[1].tensors
    kept = labels != 1
    with pytest.warns(
        nc.UndefinedStatisticWarning, match="on the test split .*no example of class 1"
    ) as caught:
        result = nc.measure_model(model, DataLoader(splits[0], 40), [(images[kept], labels[kept])])
    assert len(caught) == 1
    assert 0 <= result.test.nc4 <= 1 and np.isnan(result.test.nc1)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_looked_into(model, splits, wrap):
    loader = DataLoader(splits[0], 40)
    expected = nc.measure_model(model, loader).to_dict()
    found = nc.measure_model(wrap(model), loader).to_dict()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "compiled in place"])
def test_a_model_that_ran_compiled_is_measured(model, splits, in_place):
    expected = nc.measure_model(model, DataLoader(splits[0], 40)).to_dict()
    model.eval()
    if in_place:
        model.compile(backend="eager")
    compiled = model if in_place else torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(splits[0].tensors[0])
    for _ in range(2):
        found = nc.measure_model(compiled, DataLoader(splits[0], 40)).to_dict()
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_model_may_flatten_by_view(splits):
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = conv, fc

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 36))

    x, labels = splits[0].tensors
    model, batch = Model(), (x.repeat(1, 3, 1, 1), labels)
    expected = nc.measure_model(nn.Sequential(conv, nn.Flatten(), fc), [batch])
    assert nc.measure_model(model, [batch]).to_dict() == pytest.approx(expected.to_dict())
    assert nc.deepfool(model, batch[0][:5]).perturbation.shape == (5, 3, 5, 5)


def test_a_layer_that_works_in_place_leaves_its_input():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    with nc.watch(network, "1") as features:
        network(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    assert features.value.min() < 0


def test_a_model_in_bfloat16_is_measured_in_bfloat16():
    images, labels = torch.randn(30, 5), torch.arange(30) % 3
    network = nn.Linear(5, 3).bfloat16()
    found = nc.measure_model(network, [(images, labels)], layer="")
    weight, bias = network.weight, network.bias
    assert found == nc.measure(images.bfloat16(), labels, weight, bias)


def test_inputs_of_a_dtype_that_the_model_has_are_left_as_they_are():
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).bfloat16()
    network.register_parameter("temperature", nn.Parameter(torch.ones((), dtype=torch.float64)))
    images, labels = torch.randn(30, 5).bfloat16(), torch.arange(30) % 3
    assert nc.measure_model(network, [(images, labels)]).moments.num_examples == 30


def test_a_models_own_train_is_called(splits):
    class Merging(Classifier):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    network = Merging()
    nc.measure_model(network, DataLoader(splits[0], 40))
    assert network.training and not network.merged


def test_watch_gives_the_newest_input_until_the_block_ends(model, splits):
    images, labels = splits[0].tensors
    metric = nc.CollapseMetric(3, 6)
    with nc.watch(model) as features:
        with pytest.raises(nc.UserError, match="'fc' has not been called"):
            _ = features.value
        loss = nn.functional.cross_entropy(model(images), labels)
        metric.update(features.value, labels)
        loss.backward()
    assert features.name == "fc" and not features.value.requires_grad
    assert metric.compute(model.fc.weight).nc1 > 0
    model(images[:2])
    assert len(features.value) == 40  # no longer watched


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"layer": "head"}, "Classifier has no layer 'head'; it has hidden, fc"),
        ({"layer": nn.Linear(2, 2)}, "Linear is not part of the model"),
        ({"train_loader": []}, "yields no batches"),
        ({"train_loader": [torch.zeros(2, 1, 5, 5)]}, "yields Tensor; pairs"),
        ({"train_loader": [(0, 1, 2)]}, r"yields tuple of 3 parts; pairs .* \(\(x, y\) for"),
        ({"train_loader": TensorDataset(torch.zeros(2, 1))}, "is a dataset; give DataLoader"),
        (
            {"train_loader": [(torch.zeros(2, 1, 5, 5), torch.eye(3)[:2])]},
            r"labels of shape \(2, 3\) do not fit.*One-hot .* \.argmax\(1\)",
        ),
        ({"model": nn.Conv2d(1, 1, 1)}, "Conv2d has no nn.Linear; name the layer"),
        ({"model": nn.Sequential(nn.ReLU())}, "layer=..., such as '0'"),
        ({"model": torch.nn.functional.relu}, "The model is a function; an nn.Module"),
        (
            {"model": nn.Linear(2, 2, device="meta"), "train_loader": [(torch.ones(1, 2), [0])]},
            "The model is on the device 'meta'",
        ),
        ({"model": nn.Linear(2, 2, device="meta"), "device": "cpu"}, "on the device 'meta'"),
        ({"layer": []}, "layer is an empty list"),
        ({"num_classes": 3.0}, "num_classes is 3.0; a whole number"),
        ({"train_loader": [(torch.zeros(2, 1, 5, 5), ["cat", "dog"])]}, "number them: numpy.uniq"),
        ({"test_loader": [(torch.zeros(2, 1, 5, 5), [0, 3])]}, "of the test split run from 0 to 3"),
        (
            {"train_loader": [(torch.zeros(2, 1, 5, 5), [0, -100])]},
            "out .ignore_index=-100",
        ),
    ],
)
def test_measure_model_wrong_input_is_one_sentence(model, splits, arguments, sentence):
    given = {"model": model, "train_loader": DataLoader(splits[0], 40)} | arguments
    with pytest.raises(nc.UserError, match=sentence):
        nc.measure_model(**given)


def test_measure_model_last_linear_that_is_not_called_names_layer(model, splits):
    model.unused = nn.Linear(2, 3)
    with pytest.raises(nc.UserError, match=r"'unused' has not been called: .*layer=\.\.\."):
        nc.measure_model(model, DataLoader(splits[0], 40))


@pytest.mark.parametrize("classes, bias", [(2, True), (3, False), (9, True)])
def test_measure_model_classifier_of_any_kind_is_found(splits, classes, bias):
    torch.manual_seed(2)
    images = splits[0].tensors[0]
    labels = torch.arange(40) % classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.ReducedRankWarning)  # nine classes in six dimensions
        result = nc.measure_model(Classifier(classes, bias), [(images, labels)])
    assert set(result.absent) == {"vci"} and np.isfinite(list(result.values())).all()


def test_a_layer_that_does_not_compute_w_h_plus_b_is_no_classifier(splits):
    class Cosine(nn.Linear):
        def forward(self, h):
            return 9 * super().forward(nn.functional.normalize(h))

    model = Classifier()
    model.fc = Cosine(6, 3)
    result = nc.measure_model(model, DataLoader(splits[0], 16))
    assert np.isfinite(result.nc1) and "logits W h + b" in result.absent["network_accuracy"]


def test_a_network_of_one_output_has_two_classes():
    torch.manual_seed(0)
    batch = torch.randn(20, 4), torch.arange(20.0) % 2
    result = nc.measure_model(nn.Linear(4, 1), [batch])
    assert result.nc1 == pytest.approx(nc.measure(*batch).nc1, rel=1e-12)
    assert "one row per class" in result.absent["nc3_self_duality"]


def test_a_hidden_layer_is_not_taken_for_the_classifier(splits):
    class Functional(Classifier):
        """Its logits come from no nn.Linear."""

        def __init__(self):
            super().__init__()
            self.fc, self.centres = nn.Identity(), nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            return super().forward(x) @ self.centres.T

    loader = DataLoader(splits[0], 16)
    sentence = r"'hidden', has 6 outputs, but the model has 3; .*layer="
    with pytest.raises(nc.UserError, match=sentence):
        nc.measure_model(Functional(), loader)
    named = nc.measure_model(Functional(), loader, layer="hidden", num_classes=3)
    assert np.isfinite(named.nc1)


@pytest.mark.parametrize(
    "outputs, form",
    [
        (3, lambda logits: logits.transpose(1, 2)),  # as torch's cross-entropy takes them
        (3, lambda logits: logits.flatten(1)),
        (3, lambda logits: logits.mean(1)),
        (1, lambda logits: logits.squeeze(-1)),
    ],
    ids=["transposed", "flattened", "averaged", "squeezed"],
)
def test_logits_of_tokens_may_have_any_form(outputs, form):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, outputs)

        def forward(self, x):
            return form(self.head(x))

    torch.manual_seed(0)
    x, labels = torch.randn(8, 7, 6), torch.arange(56).reshape(8, 7) % max(outputs, 2)
    result = nc.measure_model(Tokens(), [(x, labels)])
    assert result.nc1 == pytest.approx(nc.measure(x, labels).nc1, rel=1e-12)


def test_weights_that_hooks_fill_in_are_measured():
    """As those that accelerate offloads: between passes they are on the device meta."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    batch = torch.randn(20, 4), torch.arange(20) % 2
    expected = nc.measure_model(model, [batch])
    layer, weight = model[1], model[1].weight
    offloaded = nn.Parameter(weight.detach().to("meta"))
    layer.weight = offloaded
    layer.register_forward_pre_hook(lambda *_: setattr(layer, "weight", weight))
    layer.register_forward_hook(lambda *_: setattr(layer, "weight", offloaded))
    assert nc.measure_model(model, [batch]) == expected


def test_weights_that_are_quantised_or_tied():
    layer = nn.Linear(6, 5)
    quantised = torch.ao.nn.quantized.dynamic.Linear.from_float
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    weight, bias = last_layer_of(quantised(layer))
    assert_allclose(weight, layer.weight.detach(), atol=0.01)
    assert torch.equal(bias, layer.bias)
    embedding = nn.Embedding(5, 6)
    layer.weight = embedding.weight
    assert torch.equal(last_layer_of(layer)[0], embedding.weight)
    assert last_layer_of(embedding) == last_layer_of(nn.ReLU()) == (None, None)


@pytest.mark.parametrize("own", [False, True], ids=["torch's", "the loader's own"])
def test_measuring_does_not_change_random_states(own, model, splits):
    generator = torch.Generator() if own else None
    loader = DataLoader(splits[0], 10, shuffle=True, generator=generator)
    draws = []
    for measured in (False, True):
        torch.manual_seed(1)
        if own:
            generator.manual_seed(1)
        if measured:
            nc.measure_model(model, loader)
        draws.append([labels.tolist() for _, labels in loader])
    assert draws[0] == draws[1]


def test_measuring_does_not_change_the_draws_of_augmentations(model, splits):

    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return len(splits[0])

        def __getitem__(self, index):
            image, label = splits[0][index]
            return image + random.random() + np.random.rand(), label

    draws = []
    for measured in (False, True):
        random.seed(1)
        np.random.seed(1)
        if measured:
            nc.measure_model(model, DataLoader(Augmented(), 10))
        draws.append((random.random(), np.random.rand()))
    assert draws[0] == draws[1]


def test_features_that_do_not_fit_on_the_disk_are_one_sentence(monkeypatch, tmp_path):
    class Full:
        def __init__(self, prefix):
            pass

        def write(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):  # which writes what is buffered
            self.write()

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(nc.UserError, match=f"{tmp_path} has no room .*No space left.*TMPDIR"):
        nc.measure_model(nn.Linear(3, 2), batches, memory_limit_bytes=0)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_batches_of_unlike_features_are_one_sentence(limit):
    """Flattened maps of images of two sizes."""
    layers = [nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)]
    batches = [(torch.ones(2, 1, side, side), torch.tensor([0, 1])) for side in (2, 4)]
    options = {"layer": "0", "pool": "flatten", "memory_limit_bytes": limit}
    with pytest.raises(nc.UserError, match="16 columns in one batch and 4 in another"):
        nc.measure_model(nn.Sequential(*layers), batches, **options)
