"""The streaming metric: exact whatever the batches, their order, and how parts are joined."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import distributed
from torch._subclasses import FakeTensorMode

from neural_collapse.collapse.arrays import flat_examples
from neural_collapse.collapse.measure import measure
from neural_collapse.collapse.metric import CollapseMetric
from neural_collapse.io.errors import UserError

CLASSES, DIM = 5, 12


def near_collapse(rng, within, norm=1.0, dtype=torch.float64, counts=(40, 3, 61, 1, 30)):
    """Features of a given norm whose spread is `within` of it, in random order."""
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    means = torch.from_numpy(rng.standard_normal((len(counts), DIM)))
    means = norm * (means / means.norm(dim=1, keepdim=True))
    noise = torch.from_numpy(rng.standard_normal((len(labels), DIM)))
    return (means[labels] + within * norm * noise).to(dtype), labels


def exact(features, labels):
    """Class means, mean squared distances, and Sigma_W in 80-bit floats, rounded to float64."""
    h, c = features.double().numpy().astype(np.longdouble), labels.numpy()
    classes = range(c.max() + 1)
    means = np.stack([h[c == k].sum(0) / (c == k).sum() for k in classes])
    deviations = h - means[c]
    variances = np.array([(deviations[c == k] ** 2).sum(1).mean() for k in classes])
    scatter = deviations.T @ deviations / len(h)
    return means.astype(float), variances.astype(float), scatter.astype(float)


def in_batches(metric, features, labels, size):
    for h, c in zip(features.split(size), labels.split(size), strict=True):
        metric.update(h, c)
    return metric


def compare(metric, features, labels, rtol=1e-12):
    m = metric.moments()
    means, variances, scatter = exact(features, labels)
    assert_allclose(m.class_means, means, rtol=4e-16, atol=4e-16 * np.abs(means).max())
    assert_allclose(m.class_variances, variances, rtol=rtol, atol=rtol * variances.max())
    assert_allclose(m.scatter, scatter, rtol=0, atol=rtol * scatter.max())


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "within, norm, dtype",
    [
        (1.0, 1.0, torch.float64),
        (1e-5, 1e3, torch.float64),
        (1e-5, 1e3, torch.float32),
        (1e-2, 1e3, torch.float16),
        (1e-1, 1e3, torch.bfloat16),
        (1e-12, 1e3, torch.float64),
    ],
)
def test_sums_in_any_batches_equal_longdouble_ones(within, norm, dtype, size):
    features, labels = near_collapse(np.random.default_rng(0), within, norm, dtype)
    metric = in_batches(CollapseMetric(CLASSES, DIM), features, labels, size)
    compare(metric, features, labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_statistics_do_not_depend_on_batches_order_or_merging(dtype):
    """NC1 = 1e-10 at norm 1e3 where the dtype can hold it; 1e-12 relative for every way."""
    within = {torch.float64: 1e-5, torch.float32: 1e-5}.get(dtype, 1e-2)
    rng = np.random.default_rng(1)
    features, labels = near_collapse(rng, within, 1e3, dtype)
    weight = rng.standard_normal((CLASSES, DIM))
    whole = CollapseMetric(CLASSES, DIM)
    whole.update(features, labels)
    expected = whole.compute(weight).to_dict()
    if within == 1e-5:
        assert 1e-11 < expected["nc1_within_class_variability"] < 1e-9
    for size in (1, 3, 16):
        order = torch.from_numpy(rng.permutation(len(labels)))
        metric = in_batches(CollapseMetric(CLASSES, DIM), features[order], labels[order], size)
        parts = [CollapseMetric(CLASSES, DIM) for _ in range(4)]
        for i, part in enumerate(parts):
            in_batches(part, features[order][i::4], labels[order][i::4], size)
        left = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
        for found in (metric, left):
            values = found.compute(weight).to_dict()
            assert_allclose(list(values.values()), list(expected.values()), rtol=1e-12)


def test_both_passes_equal_features_measured_whole():
    rng = np.random.default_rng(2)
    features, labels = near_collapse(rng, 0.3)
    weight, bias = rng.standard_normal((CLASSES, DIM)), rng.standard_normal(CLASSES)
    expected = measure(features, labels, weight, bias).to_dict()
    for scatter in ("projected", "full"):
        metric = in_batches(CollapseMetric(CLASSES, DIM, scatter), features, labels, 9)
        metric.second_pass(weight, bias)
        found = in_batches(metric, features, labels, 9).compute()
        assert [found[name] for name in expected] == pytest.approx([*expected.values()], rel=1e-12)
        assert set(found) - set(expected) == ({"vci"} if scatter == "full" else set())


def test_parts_of_a_second_pass_are_merged():
    rng = np.random.default_rng(3)
    features, labels = near_collapse(rng, 0.3)
    weight = rng.standard_normal((CLASSES, DIM))
    whole = in_batches(CollapseMetric(CLASSES, DIM, "projected"), features, labels, 50)
    first, second = whole.sync(), whole.sync()
    for part, rows in ((first, slice(None, 60)), (second, slice(60, None))):
        part.second_pass(weight)
        part.update(features[rows], labels[rows])
    with pytest.raises(UserError, match="second pass has seen 60 examples and the first 135"):
        first.compute()
    merged = first.merge(second).compute().to_dict()
    assert merged == pytest.approx(measure(features, labels, weight).to_dict(), rel=1e-12)
    with pytest.raises(UserError, match="same num_classes, dim, scatter and pass"):
        first.merge(whole)


def test_missing_input_makes_statistics_absent_with_a_reason():
    features, labels = near_collapse(np.random.default_rng(4), 0.3, counts=[27] * CLASSES)
    metric = CollapseMetric(CLASSES, DIM, "projected")
    metric.update(features, labels)
    result = metric.compute(bias=np.ones(CLASSES))  # of which nothing follows without a weight
    assert set(result) == {
        "nc2_equinorm_means",
        "nc2_equiangularity_means",
        "nc2_maximal_angle_means",
        "within_between_trace_ratio",
        "cdnv",
        "etf_error_means",
        "gnc2_hyperspherical_uniformity_means",
    }
    with pytest.raises(AttributeError, match=r"nc1_\w+ is absent: .*second pass"):
        _ = result.nc1
    with pytest.raises(
        KeyError, match=r"nc3_self_duality is absent: it needs the last layer's weight"
    ):
        _ = result["nc3"]
    assert "absent" in str(result)
    with pytest.raises(AttributeError, match="'nc2'; there are nc2_equinorm_means, nc2_equi"):
        _ = result.nc2
    with pytest.raises(KeyError, match="'cdvn'; did you mean 'cdnv'"):
        result["cdvn"]
    assert 3 not in result and result.get(None) is None
    assert repr(result).endswith(f"examples, C = {CLASSES}, d = {DIM}>")  # neither NC1 nor NC3


def test_metric_after_reset_or_load_equals_a_fresh_one():
    features, labels = near_collapse(np.random.default_rng(5), 0.3)
    metric = in_batches(CollapseMetric(CLASSES, DIM), features, labels, 20)
    restored = CollapseMetric(CLASSES, DIM)
    restored.load_state_dict(metric.state_dict())
    assert restored.compute().to_dict() == metric.compute().to_dict()
    restored.reset()
    restored.update(features, labels)
    assert restored.compute().to_dict() == pytest.approx(metric.compute().to_dict(), rel=1e-12)
    with pytest.raises(UserError, match="other num_classes, dim or scatter"):
        CollapseMetric(CLASSES, DIM, "none").load_state_dict(metric.state_dict())


@pytest.mark.parametrize(
    "features, labels",
    [
        (lambda h: h, lambda c: c[:, None]),
        (lambda h: h, lambda c: c.to(torch.int32)),
        (lambda h: h, lambda c: c.to(torch.float32)),
        (lambda h: h.T.contiguous().T, lambda c: c),
        (lambda h: h.clone().requires_grad_(), lambda c: c),
        (lambda h: h.numpy().astype(">f8"), lambda c: c.numpy().astype(">i4")),
        (lambda h: np.asfortranarray(h.numpy()), lambda c: c.tolist()),
        (lambda h: h.reshape(27, 5, DIM), lambda c: c.reshape(27, 5)),
    ],
)
def test_any_form_of_batches_gives_the_same_bits(features, labels):
    h, c = near_collapse(np.random.default_rng(6), 0.3)
    expected, found = CollapseMetric(CLASSES, DIM), CollapseMetric(CLASSES, DIM)
    expected.update(h, c)
    found.update(features(h), labels(c))
    state = found.state_dict()
    assert all(torch.equal(state[name], t) for name, t in expected.state_dict().items())
    assert not any(t.requires_grad for t in state.values())


def test_maps_are_pooled_as_asked():
    rng = np.random.default_rng(7)
    maps = torch.from_numpy(rng.standard_normal((20, 3, 2, 2)))
    labels = torch.arange(20) % 2
    with pytest.raises(UserError, match='pool="mean" or pool="flatten"'):
        measure(maps, labels)
    for pool, rows in (("mean", maps.mean((2, 3))), ("flatten", maps.flatten(1))):
        metric = CollapseMetric(2, rows.shape[1], pool=pool)
        metric.update(maps, labels)
        expected = measure(rows, labels)["cdnv"]
        assert metric.compute()["cdnv"] == pytest.approx(expected, rel=1e-12)
        assert measure(maps, labels, pool=pool)["cdnv"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3)])
def test_unknown_pool_is_refused_whatever_the_shape(shape):
    rows, labels = torch.ones(shape), torch.arange(4) % 2
    for refused in (
        lambda: CollapseMetric(2, 3, pool="max"),
        lambda: measure(rows, labels, pool="max"),
        lambda: flat_examples(rows, labels, "max"),
    ):
        with pytest.raises(UserError, match="pool is 'max'"):
            refused()


def test_ignored_rows_leave_no_trace():
    rng = np.random.default_rng(8)
    features, labels = near_collapse(rng, 0.3)
    weight = rng.standard_normal((CLASSES, DIM))
    padded = torch.cat([features, torch.full((7, DIM), torch.nan, dtype=torch.float64)])
    marked = torch.cat([labels, torch.full((7,), -100)])
    order = torch.from_numpy(rng.permutation(len(marked)))
    metric = CollapseMetric(CLASSES, DIM, ignore_index=-100)
    in_batches(metric, padded[order], marked[order], 11)
    metric.second_pass(weight)
    found = in_batches(metric, padded[order], marked[order], 11).compute().to_dict()
    expected = measure(features, labels, weight, scatter="full").to_dict()
    assert found == pytest.approx(expected, rel=1e-12)
    given = measure(padded, marked, weight, scatter="full", ignore_index=-100)
    assert given.to_dict() == pytest.approx(expected, rel=1e-12)


def test_rare_classes_are_left_out_by_count():
    features, labels = near_collapse(np.random.default_rng(9), 0.3)
    metric = CollapseMetric(CLASSES + 2, DIM, "none")
    metric.update(features, labels)
    with pytest.warns(RuntimeWarning, match="no example of class 5, 6"):
        assert np.isnan(metric.compute()["cdnv"])
    kept = torch.isin(labels, torch.tensor([0, 2, 4]))
    renamed = labels[kept] // 2
    expected = measure(features[kept], renamed, scatter="none")["cdnv"]
    assert metric.compute(min_count=30)["cdnv"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UserError, match="No class has 1000 examples"):
        metric.compute(min_count=1000)
    full = CollapseMetric(CLASSES + 2, DIM)
    full.update(features, labels)
    with pytest.raises(UserError, match="sums over all classes"):
        full.compute(min_count=30)


@pytest.mark.parametrize(
    "features, labels, sentence",
    [
        (torch.zeros(3, DIM), torch.tensor([0, 1, 5]), r"1 labels are not integers in 0\.\.4"),
        (torch.zeros(3, DIM), torch.tensor([0, 1, 0.5]), "1 labels are not integers"),
        (torch.full((2, DIM), torch.nan), torch.zeros(2), "2 examples have NaN"),
        (torch.zeros(3, DIM), torch.zeros(2), r"shape \(3, 12\) and labels of shape \(2,\)"),
        (torch.zeros(3, DIM + 1), torch.zeros(3), "13 columns, but dim is 12"),
        (torch.zeros(3, 2, DIM), torch.zeros(3), "tokens"),
        (torch.zeros(3, DIM, dtype=torch.complex64), torch.zeros(3), "complex"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_leaves_no_trace(features, labels, sentence):
    good, of_good = near_collapse(np.random.default_rng(10), 0.3)
    metric = CollapseMetric(CLASSES, DIM)
    metric.update(good, of_good)
    before = metric.compute().to_dict()
    with pytest.raises(UserError, match=sentence):
        metric.update(features, labels)
    assert metric.compute().to_dict() == before


def test_mistakes_of_construction_and_passes():
    with pytest.raises(UserError, match="scatter is 'all', not one of projected, full, none"):
        CollapseMetric(2, 2, "all")
    for wrong in (0, -1, 2.0, "2", None):
        with pytest.raises(UserError, match=r"num_classes is .*; a whole number of at least 1"):
            CollapseMetric(wrong, 2)
        with pytest.raises(UserError, match=r"dim is .*; a whole number of at least 1"):
            CollapseMetric(2, wrong)
    with pytest.raises(UserError, match="mps does not support float64"):
        CollapseMetric(2, 2, device="mps")
    metric = CollapseMetric(2, 2)
    with pytest.raises(UserError, match="weight has shape"):
        metric.compute(np.zeros((2, 3)))
    metric.second_pass()
    with pytest.raises(UserError, match="already begun"):
        metric.second_pass()


def test_a_weight_that_the_second_pass_lacked_is_refused():
    features, labels = near_collapse(np.random.default_rng(4), 0.3)
    metric = CollapseMetric(CLASSES, DIM)
    for _ in range(2):
        metric.update(features, labels)
        if metric._second is None:
            metric.second_pass()
    with pytest.raises(UserError, match=r"not second_pass\(\)"):
        metric.compute(np.eye(CLASSES, DIM))
    assert "nc4_ncc_mismatch" in metric.compute().absent


def test_compute_with_another_weight_than_the_second_pass_is_refused():
    features, labels = near_collapse(np.random.default_rng(4), 0.3)
    weight, bias = np.eye(CLASSES, DIM), np.arange(CLASSES)
    metric = CollapseMetric(CLASSES, DIM)
    metric.update(features, labels)
    metric.second_pass(weight, bias)
    metric.update(features, labels)
    assert metric.compute(weight, bias).to_dict() == metric.compute().to_dict()
    for other in ((2 * weight, bias), (weight, None)):
        with pytest.raises(UserError, match="another weight or bias than second_pass"):
            metric.compute(*other)


def test_an_update_mixes_no_devices_and_waits_for_none():
    """A fake CUDA device refuses both: tensors of two devices, and reading a value."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for scatter in ("full", "none"):
            metric = CollapseMetric(CLASSES, DIM, scatter, device="cuda", ignore_index=-1)
            features = torch.randn(9, DIM, device="cuda", dtype=torch.bfloat16)
            metric.update(features, torch.zeros(9, dtype=torch.int64, device="cuda"))
            assert metric.class_means.device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gpu_measures_what_the_cpu_does(dtype):
    rng = np.random.default_rng(12)
    features, labels = near_collapse(rng, 1e-2, 1e3, dtype)
    weight = rng.standard_normal((CLASSES, DIM))
    found = []
    for device in ("cpu", "cuda"):
        metric = CollapseMetric(CLASSES, DIM, device=device)
        in_batches(metric, features.to(device), labels.to(device), 16)
        metric.second_pass(weight)
        found.append(in_batches(metric, features.to(device), labels.to(device), 16).compute())
    assert found[0].to_dict() == pytest.approx(found[1].to_dict(), rel=1e-9)
    whole = measure(features.cuda(), labels.cuda(), torch.from_numpy(weight).cuda())
    assert {name: found[0][name] for name in whole} == pytest.approx(whole.to_dict(), rel=1e-9)


def measure_share(rank, folder):
    """What each of two processes does with an uneven share, in which it alone has one class."""
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    features, labels, weight = torch.load(folder / "given.pt")
    mine = ((labels == 2) | (torch.arange(135) % 3 == 0)) == bool(rank)
    metric = CollapseMetric(CLASSES, DIM, "projected")
    metric.update(features[mine], labels[mine])
    total = metric.sync()
    assert int(metric.counts.sum()) == mine.sum() and int(total.counts.sum()) == 135
    total.second_pass(weight)
    total.update(features[mine], labels[mine])
    torch.save(total.sync().compute().to_dict(), folder / f"found-{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    rng = np.random.default_rng(11)
    features, labels = near_collapse(rng, 1e-5, 1e3)
    weight = torch.from_numpy(rng.standard_normal((CLASSES, DIM)))
    torch.save((features, labels, weight), tmp_path / "given.pt")
    torch.multiprocessing.spawn(measure_share, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    assert first == second  # to the last bit
    assert first == pytest.approx(measure(features, labels, weight).to_dict(), rel=1e-12)
