"""The packages of src/polyp import one another in one direction only."""

import ast
from pathlib import Path

import polyp

SOURCE = Path(polyp.__file__).parent

# From the bottom up: a unit imports units of lower levels only, for typing too.
LEVELS = (
    ("errors",),
    ("files", "processors", "settings", "terminal"),
    ("images",),
    ("metrics", "report"),
    ("data",),
    ("model",),
    ("runs",),
    ("inference",),
    ("training",),
    ("commands",),
    ("cli", "api"),
)
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}


def find_imports(file: Path) -> set[str]:
    """The units of polyp that a file imports anywhere, in functions and for typing too."""
    units = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "polyp":
            units |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyp."):
            units.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            units |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("polyp.")}
    return units & LEVEL.keys()


def test_units_import_lower_levels_only() -> None:
    wrong = []
    for file in SOURCE.rglob("*.py"):
        unit = file.relative_to(SOURCE).with_suffix("").parts[0]
        if unit == "__init__":  # the public API, which is on top of all
            continue
        imports = find_imports(file) - {unit}
        wrong += [f"{file.relative_to(SOURCE)}: {other}" for other in imports if LEVEL[other] >= LEVEL[unit]]
    assert not wrong


def test_every_unit_has_a_level_and_packages_say_what_they_hold() -> None:
    units = {
        path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert units - {"__init__"} == LEVEL.keys()
    for package in (path for path in SOURCE.iterdir() if (path / "__init__.py").exists()):
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        assert "May import" in docstring, package
