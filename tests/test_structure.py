"""The structure that the architecture promises, as far as import-linter does not check it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for file in sorted((SOURCE / "fluxexp").rglob("*.py")):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, names: set[str]) -> Iterator[str]:
    """Modules of the package that `tree` imports, anywhere in it: also inside functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in names:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)


def test_no_import_cycle_even_a_lazy_one() -> None:
    trees = modules()
    left = {name: set(imports(tree, set(trees))) - {name} for name, tree in trees.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these modules import each other, or something that does: {sorted(left)}"


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_two_modules_share_a_name() -> None:
    # An entry point and the package that it starts may share one.
    places = defaultdict(list)
    for name in modules():
        places[name.rpartition(".")[2]].append(name)
    shared = {name: where for name, where in places.items() if len(where) > 1 and name != "__main__"}
    assert shared == {}
