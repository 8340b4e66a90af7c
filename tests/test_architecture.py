"""The house of docs/architecture.md, read off the import statements of the source."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "lowbit"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 320

FLOORS = [
    {"errors", "scheme", "recipe"},
    {"packing", "outliers", "strategies"},
    {"qtensor"},
    {"kernels", "nn"},
    {"arch"},
    {"plan", "budget", "calibration", "quantize", "checkpoint"},
    {"hf"},
    {"data", "metrics", "losses", "loop"},
    {"adapter", "scoring"},
    {"tuning", "zeroshot", "evaluation", "inspection", "runtime", "export"},
    {"bench", "report"},
    {"cli"},
]
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}
SIBLINGS = {
    ("scheme", "errors"),
    ("recipe", "errors"),
    ("recipe", "scheme"),
    ("nn", "kernels"),
    ("budget", "plan"),
    ("budget", "calibration"),
    ("quantize", "plan"),
    ("quantize", "budget"),
    ("quantize", "checkpoint"),
    ("quantize", "calibration"),
    ("checkpoint", "plan"),
    ("bench", "report"),
}
JOINERS = {"cli", "bench"}  # what may also use the public face
PUBLIC_FACE = "the public face"  # files in the package root that are on no floor: __init__, __main__, api, hub, demo


def unit_of(module):
    """The unit of the house that a dotted module name inside the package belongs to."""
    name = module.split(".")[0]
    return name if name in FLOOR else PUBLIC_FACE


def imported_modules(source, path):
    """Dotted names below ``lowbit`` that a file imports, wherever in the file; relative imports resolved."""
    package = ["lowbit", *path.parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lowbit":
                yield name.removeprefix("lowbit").lstrip(".")


def violations(source, path):
    """What the file ``path`` (relative to the package) imports and may not."""
    unit = unit_of(path.with_suffix("").as_posix().replace("/", "."))
    if unit == PUBLIC_FACE:
        return []
    return [
        f"{unit} imports {target or 'lowbit'}"
        for target in imported_modules(source, path)
        if not may_import(unit, unit_of(target))
    ]


def may_import(unit, target):
    if target == PUBLIC_FACE:
        return unit in JOINERS
    return unit == target or FLOOR[target] < FLOOR[unit] or (unit, target) in SIBLINGS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_down(path):
    assert violations(path.read_text(encoding="utf-8"), path.relative_to(SOURCE)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_is_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split the file by what it does"


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(FLOOR)


@pytest.mark.parametrize(
    ("path", "source", "allowed"),
    [
        ("scheme.py", "from lowbit.errors import SchemeError", True),
        ("errors.py", "from lowbit.scheme import Scheme", False),
        ("strategies/mse.py", "from lowbit.strategies.grid import encode", True),
        ("strategies/mse.py", "from ..scheme import Scheme", True),
        ("strategies/mse.py", "from .grid import encode", True),
        ("strategies/mse.py", "from lowbit.outliers import select", False),
        ("strategies/mse.py", "from .. import outliers", False),
        ("strategies/__init__.py", "from .grid import encode", True),
        ("packing.py", "import lowbit.qtensor as q", False),
        ("packing.py", "import lowbitter.qtensor", True),
        ("packing.py", "def f():\n    from lowbit import cli", False),
        ("nn/linear.py", "from lowbit.kernels import matmul", True),
        ("kernels/cpu.py", "from lowbit.nn import QuantLinear", False),
        ("quantize.py", "from lowbit import plan, checkpoint", True),
        ("checkpoint/read.py", "from lowbit.plan import Plan", True),
        ("plan.py", "from lowbit.checkpoint import read", False),
        ("tuning/outliers.py", "from lowbit.evaluation import evaluate", False),
        ("tuning/outliers.py", "import lowbit", False),
        ("cli/tune.py", "import lowbit", True),
        ("cli/tune.py", "from lowbit import tuning", True),
        ("bench/quality.py", "from lowbit.report import page", True),
        ("report/page.py", "from lowbit.bench import quality", False),
        ("api.py", "from lowbit import cli", True),
        ("__init__.py", "from lowbit.api import quantize", True),
    ],
)
def test_the_rules_themselves(path, source, allowed):
    assert (violations(source, Path(path)) == []) is allowed
