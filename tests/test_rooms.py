"""The floors of the design: imports point strictly down, imports inside functions included."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "implicit_reg"

# Floors from the ground up; within a floor a room may see those to its left.
FLOORS = (
    ("_types", "_callables", "_checks", "_files", "_tree", "_products", "_convolutions"),
    ("derivatives", "trajectory", "bseries"),
    ("problems", "losses", "transforms", "methods", "curvature"),
    ("descent", "flows"),
    ("orderings", "standstill", "slow_manifold", "compare", "predictions", "strength"),
    ("training", "experiments"),
    ("plots", "report", "cli"),
)
BLIND = {("descent", "flows"), ("flows", "descent")}  # their agreement is evidence only while they share nothing

EVERYWHERE = {"jax", "jaxtyping", "equinox", "numpy", "optax"}
THIRD_PARTIES = {  # beyond the standard library and EVERYWHERE
    "problems": {"flax", "sklearn"},
    "transforms": {"flax"},
    "losses": {"flax"},
    "curvature": {"scipy", "tqdm"},
    "flows": {"diffrax"},
    "training": {"flax", "sklearn", "orbax", "tqdm", "scipy"},
    "experiments": {"flax", "sklearn", "scipy"},
    "compare": {"scipy"},
    "predictions": {"scipy"},
    "plots": {"matplotlib"},
    "report": {"matplotlib"},
    "cli": {"tyro", "rich", "tqdm", "scipy", "sklearn", "flax"},
}

POSITION = {room: (floor, k) for floor, rooms in enumerate(FLOORS) for k, room in enumerate(rooms)}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from implicit_reg import flows` imports a room; `from implicit_reg.flows import x` names it already.
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "implicit_reg"
                else {node.module}
            )
    return found


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    (floor, k), (other_floor, other_k) = POSITION[importer], POSITION[imported]
    return (importer, imported) not in BLIND and (other_floor < floor or (other_floor == floor and other_k < k))


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) not in ("__init__", "__main__")], ids=str)
def test_imports_point_down(path):
    room = room_of(path)
    assert room in POSITION, f"{room} has no floor"
    for module in imported_modules(path):
        top, *rest = module.split(".")
        if top == "implicit_reg":
            assert rest, f"{path} imports the whole package"
            assert may_import(room, rest[0]), f"{path}: {room} must not import {module}"
        elif top in __import__("sys").stdlib_module_names:
            assert top not in {"pickle", "shelve", "marshal"}, f"{path} imports {module}"
        elif room == "bseries":
            raise AssertionError(f"{path}: bseries is exact and uses the standard library alone, got {module}")
        else:
            assert top in EVERYWHERE | THIRD_PARTIES.get(room, set()), f"{path}: {room} must not import {module}"


def test_the_floors_forbid_something():
    assert may_import("flows", "derivatives")
    assert not may_import("flows", "descent")
    assert not may_import("descent", "flows")
    assert not may_import("derivatives", "flows")
    assert not may_import("losses", "transforms")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unpickles_or_evaluates(path):
    """A results folder of somebody else must not run code here."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
            assert name not in {"eval", "exec"} or owner, f"{path} calls {name}"
            assert (owner, name) != ("joblib", "load")
            for keyword in node.keywords:
                assert not (keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is True), path


def test_every_file_fits_on_a_desk():
    long = {str(f.relative_to(PACKAGE)): n for f in FILES if (n := len(f.read_text().splitlines())) > 360}
    assert not long, f"a room is missing: {long}"
