"""The directions of imports between the rooms, as the files of the tree have them."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = "train prepare evaluate recommend serve export plan report sweep".split()
TOP = ("cli", "planning", "serving", "reporting", "tuning", *COMMANDS)
# A room, and the rooms that nothing in it imports, also not inside a function.
FORBIDDEN = {
    "pallas_kernels": ("gr_jax", "experiments", "tests"),
    "gr_jax.config": ("gr_jax.data", "gr_jax.models", "gr_jax.training"),
    "gr_jax.hardware": ("gr_jax.data", "gr_jax.models", "gr_jax.training"),
    "gr_jax.errors": ("gr_jax.config", "gr_jax.data", "gr_jax.models", "gr_jax.training"),
    "gr_jax.files": ("gr_jax.data", "gr_jax.models", "gr_jax.training"),
    "gr_jax.folders": ("gr_jax.data", "gr_jax.models", "gr_jax.training"),
    "gr_jax.data.log": ("gr_jax.data.batches", "gr_jax.data.beam"),
    "gr_jax.data.batches": ("gr_jax.data.log", "gr_jax.data.beam"),
    "gr_jax.data": ("gr_jax.models", "gr_jax.training", *(f"gr_jax.{room}" for room in TOP)),
    "gr_jax.baselines": (
        "gr_jax.models",
        "gr_jax.training",
        "gr_jax.data.log",
        *(f"gr_jax.{room}" for room in TOP),
    ),
    "gr_jax.models": ("gr_jax.training", *(f"gr_jax.{room}" for room in TOP)),
    "gr_jax.training": tuple(f"gr_jax.{room}" for room in TOP),
}
# (file, module): imports against the direction that are still to go.
EXCEPTIONS: set[tuple[str, str]] = set()


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(file): file
    for room in ("gr_jax", "pallas_kernels")
    for file in sorted((ROOT / room).rglob("*.py"))
}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(file: Path, *, module_level: bool = False) -> set[str]:
    """Modules that a file imports: anywhere, or when it is imported itself."""
    found = set()
    nodes = list(ast.parse(file.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
        elif module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If):
            is_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            nodes += node.orelse if is_types else node.body * isinstance(node, ast.If)
        else:
            nodes += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_nothing_from_above(room):
    wrong = {
        (module, other)
        for module, file in FILES.items()
        if is_in(module, room)
        for other in imports(file)
        if any(is_in(other, above) for above in FORBIDDEN[room])
    }
    assert not wrong - EXCEPTIONS


def test_no_file_imports_a_command():
    commands = [f"gr_jax.{name}" for name in COMMANDS]
    assert all(name in FILES for name in commands)
    wrong = {
        (module, other)
        for module, file in FILES.items()
        for other in imports(file)
        if other in commands and module != other
    }
    assert not wrong - EXCEPTIONS


def test_modules_do_not_import_one_another_in_a_circle():
    graph = {
        module: {other for other in imports(file, module_level=True) if other in FILES} - {module}
        for module, file in FILES.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_every_exception_is_still_there():
    there = {(module, other) for module, file in FILES.items() for other in imports(file)}
    assert there >= EXCEPTIONS


def test_imports_are_found_wherever_they_stand(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import a.b\nfrom gr_jax.data import dataset\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import c\nelse:\n    import d\n"
        "def f():\n    from gr_jax.data.log import parse\n"
    )
    top = {"a.b", "gr_jax.data.dataset", "typing", "d"}
    assert imports(file, module_level=True) == top
    assert imports(file) == top | {"c", "gr_jax.data.log.parse"}
