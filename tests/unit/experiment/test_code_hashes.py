"""The code that the rules of cheap stages name: all that decides their results."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "workflow" / "neural_collapse"
STAGES = "experiment/stages"
CLOSED_FORM = "training/closed_form.py"
RECIPE = "training/recipe.py"  # has methods that compute


def imported(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                found = [module / f"{name.name}.py", module.with_suffix(".py")]
                yield from [path for path in found if path.exists()][:1]


def files_behind(start: str) -> set[str]:
    """A module's file and those of all that it imports, also through others."""
    waiting, seen = [LIBRARY / start], set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imported(file)
    return {file.relative_to(LIBRARY).as_posix() for file in seen}


def hashed(rule: str) -> list[str]:
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    (body,) = re.findall(rf"^rule {rule}:\n(.*?)(?=^rule |\Z)", rules, re.MULTILINE | re.DOTALL)
    return ast.literal_eval(re.search(r"code_hash(\(.*?\))", body, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("rule", "module", "parts"),
    [
        ("compute_statistics", f"{STAGES}/measure.py", {"collapse", RECIPE}),
        ("collect_tables", f"{STAGES}/collect.py", {"results", CLOSED_FORM, RECIPE}),
        ("compare_with_paper", f"{STAGES}/collect.py", {"results", "collapse"}),
        ("plot_figures", f"{STAGES}/figures.py", {"figures", "results", "collapse"}),
        ("build_report", f"{STAGES}/figures.py", {"report", "figures", "results", "collapse"}),
    ],
)
def test_a_rule_hashes_the_modules_that_its_stage_imports(rule, module, parts):
    deciding = {path for path in files_behind(module) if {path, path.split("/")[0]} & parts}
    assert len(deciding) > 1
    deciding.add(module)
    given = hashed(rule)
    assert given
    lacking = {path for path in deciding if path not in given and path.split("/")[0] not in given}
    assert not lacking
