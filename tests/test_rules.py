"""The rules of the house, read off the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# layer: what of the zoo it may import, what it may never import at its top
LAYERS = {
    "zoo.types": (set(), {"lightning", "hydra", "wandb"}),
    "zoo.chance": (set(), {"lightning", "hydra", "wandb"}),
    "zoo.nn": (
        {"zoo.types", "zoo.nn"},
        {"lightning", "hydra", "omegaconf", "wandb", "torchvision", "datasets"},
    ),
    "zoo.models": (
        {"zoo.types", "zoo.nn", "zoo.models"},
        {"lightning", "hydra", "omegaconf", "wandb", "torchvision", "datasets"},
    ),
    "zoo.data": (
        {"zoo.types", "zoo.data"},
        {"lightning", "hydra", "omegaconf", "wandb", "torchvision", "datasets", "PIL"},
    ),
    "zoo.evaluation": (
        {"zoo.types", "zoo.chance", "zoo.nn", "zoo.evaluation"},
        {"lightning", "hydra", "omegaconf", "wandb"},
    ),
    "zoo.training": (
        {"zoo.types", "zoo.chance", "zoo.nn", "zoo.evaluation", "zoo.training"},
        {"hydra", "wandb"},
    ),
    "zoo.runs": ({"zoo", "zoo.runs"}, {"torch", "lightning", "hydra", "omegaconf", "wandb", "numpy"}),
    "zoo.config": ({"zoo.config"}, {"torch", "lightning", "hydra", "omegaconf", "wandb", "numpy"}),
}
LATE = {
    ("zoo.config.explain", "zoo.types"),
    ("zoo.config.resolvers", "zoo.data.vocabulary"),
    ("zoo.config.command", "zoo.runs"),
    ("zoo.config.sweeps", "zoo.runs.sweep"),
}
FILES = sorted((ROOT / "zoo").rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "zoo" else [node.module]
            yield from ((name, node) for name in names)


def layer(name: str) -> str | None:
    return next(
        (key for key in sorted(LAYERS, key=len, reverse=True) if name == key or name.startswith(f"{key}.")),
        None,
    )


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_one_way(path):
    own = layer(module(path))
    if own is None:  # zoo itself, zoo.loading, zoo.jobs: they know all
        assert module(path).split(".")[:2] in (["zoo"], ["zoo", "loading"], ["zoo", "jobs"])
        return
    may, never = LAYERS[own]
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for name, node in imports(tree):
        if name.split(".")[0] == "zoo" and (module(path), name) not in LATE:
            target = layer(name) or name.rsplit(".", 1)[0]
            assert target in may or target == own, f"{module(path)}: {own} may not import {name}"
        if id(node) in top:
            assert name.split(".")[0] not in never, f"{module(path)}: {own} may not import {name} at its top"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_public_things_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{module(path)} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module(path)}.{node.name} has no docstring"


@pytest.mark.parametrize(
    "name", ["zoo", "zoo.config", "zoo.runs", "zoo.data", "zoo.data.vocabulary", "zoo.runs.table"]
)
def test_light_packages_import_no_torch(name):
    heavy = "{'torch', 'lightning', 'wandb', 'datasets'} & set(sys.modules)"
    code = f"import {name}, sys; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
