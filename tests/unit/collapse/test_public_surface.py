"""What `import neural_collapse` offers: its names, its signatures, their examples, and its cost."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import neural_collapse as nc
from neural_collapse import collapse
from neural_collapse.collapse.registry import PAPER

SURFACE = {
    "CollapseCurve": "()",
    "CollapseMetric": "(num_classes, dim, scatter='full', *, device=None, ignore_index=None, "
    "pool=None)",
    "CollapseResult": "(values, absent, moments)",
    "DeepFoolResult": "(perturbation, steps, converged, original_class, adversarial_class)",
    "LayerInput": "(name, layer)",
    "REGISTRY": None,
    "ReducedRankWarning": None,
    "Statistic": f"(name, what, formula, tends_to='0', source={PAPER!r}, figure=None, alias=None, "
    "needs=('class_means',), compute=None, unbalanced=False)",
    "UndefinedStatistic": None,
    "UndefinedStatisticWarning": None,
    "UserError": None,
    "deepfool": "(network, inputs, *, candidates=10, overshoot=0.02, max_steps=50)",
    "functional": None,
    "measure": "(features, labels, weight=None, bias=None, *, train_means=None, num_classes=None, "
    "scatter='projected', ignore_index=None, pool=None)",
    "measure_model": "(model, train_loader, test_loader=None, *, layer=None, device=None, "
    "inputs_key=None, labels_key='labels', num_classes=None, scatter='projected', pool=None, "
    "ignore_index=None, memory_limit_bytes=8589934592)",
    "simplex_etf": "(classes, dim, *, generator=None)",
    "watch": "(model, layer=None)",
}
FUNCTIONAL = {
    "bias_collapse": "(weight_CD, bias_C, global_mean_D)",
    "centred_class_means": "(class_means_CD, counts_C=None)",
    "class_distance_normalized_variance": "(class_means_CD, variances_C)",
    "cosine_duality": "(weight_CD, centred_CD)",
    "equiangularity": "(vectors_CD)",
    "equinorm": "(vectors_CD)",
    "etf_error": "(left_CD, right_CD)",
    "expected_calibration_error": "(calibration_B3)",
    "hyperspherical_uniformity": "(vectors_CD)",
    "maximal_angle": "(vectors_CD)",
    "mean_cosine": "(vectors_CD)",
    "mse_decomposition": "(class_means_CD, scatter_DD, weight_CD, bias_C, weight_decay)",
    "mismatch": "(decisions_N, others_N)",
    "project_scatter": "(scatter_DD, class_means_CD)",
    "self_duality": "(weight_CD, centred_CD)",
    "separation_fuzziness": "(counts_C, class_means_CD, scatter_projected_CC)",
    "simplex_etf": "(classes, dim, *, generator=None)",
    "span_of_means": "(class_means_CD)",
    "sum_of_rows": "(weight_CD)",
    "trace_ratio": "(counts_C, variances_C, centred_CD)",
    "variability_collapse_index": "(class_means_CD, scatter_DD)",
    "within_class_variability": "(class_means_CD, scatter_projected_CC)",
}
MODULES = [f"{collapse.__name__}.{m.name}" for m in pkgutil.iter_modules(collapse.__path__)]


def signature(function) -> str:
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(bare))


def public_functions(module) -> dict:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_names_and_signatures_are_these():
    assert sorted(nc.__all__) == sorted(SURFACE) and set(SURFACE) <= set(dir(nc))
    for name, expected in SURFACE.items():
        if expected is not None:
            assert signature(getattr(nc, name)) == expected, name
    found = {name: signature(f) for name, f in public_functions(nc.functional).items()}
    assert found == FUNCTIONAL
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nc.nonsense


def test_everything_public_has_an_example():
    callables = {name: getattr(nc, name) for name, expected in SURFACE.items() if expected}
    told_elsewhere = {"DeepFoolResult", "LayerInput", "Statistic"}
    for name, value in {**callables, **public_functions(nc.functional)}.items():
        assert inspect.getdoc(value), name
        assert ">>>" in inspect.getdoc(value) or name in told_elsewhere, name


@pytest.mark.parametrize("module", ["neural_collapse", *MODULES])
def test_examples_give_what_they_say(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_importing_the_package_loads_neither_torch_nor_numpy():
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    for statement in ("import neural_collapse", "from neural_collapse import REGISTRY"):
        code = f"import sys; {statement}; print({heavy})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "set()", done.stderr


WITHOUT_OTHERS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "safetensors", "pandas", "scipy", "PIL",
                                      "matplotlib", "yaml", "sklearn", "torchvision"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import neural_collapse as nc
import torch
from torch import nn

model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
batches = [(torch.randn(30, 1, 4, 4), torch.arange(30) % 3) for _ in range(2)]
result = nc.measure_model(model, batches, batches)
assert result.nc1 > 0 and "nc4" in str(result) and 0 <= result.test.nc4 <= 1
metric = nc.CollapseMetric(3, 8)
with nc.watch(model) as features:
    model(batches[0][0])
    metric.update(features.value, batches[0][1])
assert metric.compute()["vci"] > 0
assert nc.deepfool(model, batches[0][0]).converged.all()
nc.CollapseCurve().log(1, result)
assert nc.functional.maximal_angle(nc.simplex_etf(4, 5)) < 1e-15
"""


def test_measuring_needs_only_torch_and_numpy():
    done = subprocess.run([sys.executable, "-c", WITHOUT_OTHERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_line_without_a_package_names_it():
    code = (
        "import sys; sys.modules['rich_argparse'] = None;"
        "from neural_collapse.cli.main import main; sys.exit(main(['measure', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install '.[pipeline]'" in done.stderr


def test_every_statistic_has_a_description():
    for name, entry in nc.REGISTRY.items():
        assert entry.name == name and entry.what and entry.tends_to
        assert entry.formula.count("{") == entry.formula.count("}")
        assert entry.source.doi.startswith("10.") and entry.source.year >= 2016
