"""Who may import whom: each package imports those below it, never one above."""

import ast
from pathlib import Path

import neural_collapse

LIBRARY = Path(neural_collapse.__file__).parent
BELOW = {
    "io": set(),
    "data": {"io"},
    "networks": {"io"},
    "collapse": {"data", "networks", "io"},
    "adapters": {"collapse", "io"},
    "training": {"data", "networks", "io"},
    "results": {"collapse", "io"},
    "figures": {"results", "collapse", "io"},
    "report": {"figures", "results", "collapse", "io"},
}
BELOW["experiment"] = {*BELOW}
BELOW["inspect"] = {*BELOW}
BELOW["cli"] = {*BELOW}


def imported(file: Path) -> set[str]:
    """Packages of this library that a file imports when it is run, not for annotations alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    place = file.relative_to(LIBRARY).parts[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = place[: len(place) - (node.level - 1)]
            target = [*base, *(node.module.split(".") if node.module else [])]
            found |= {target[0]} if target else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("neural_collapse."):
            found.add(node.module.split(".")[1])
    return found & BELOW.keys() - {place[0]}


def test_packages_import_only_those_below_them():
    wrong = {}
    for package, allowed in BELOW.items():
        for file in (LIBRARY / package).rglob("*.py"):
            upward = imported(file) - allowed
            if upward:
                wrong[str(file.relative_to(LIBRARY))] = sorted(upward)
    assert wrong == {}


def test_every_package_has_a_place_in_the_order():
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert packages == BELOW.keys()
