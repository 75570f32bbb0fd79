"""The house keeps its plan: which room may import which, and how long its parts may be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "multilabel_softmax_loss"
SOURCES = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}

# A room, or a module that stands alone, and what of the package it may import besides itself.
LEAVES = {"errors", "files", "param_str"}
ARROWS = {
    "__init__": set(),  # loads on demand
    "__main__": {"commands", "errors", "parallel"},
    "commands": {"gradient_check", "nets", "data", "parallel", *LEAVES},
    "gradient_check": {"nets", "errors"},
    "layers": {"losses", "data", "parallel", *LEAVES},
    "prototxt": {"losses", "data", "param_str"},  # the options that it writes tables of
    "nets": LEAVES,
    "data": {"nets", *LEAVES},
    "parallel": LEAVES,
    "losses": {"kernels", "errors", "param_str"},
    "kernels": set(),
    "errors": set(),
    "files": {"errors"},
    "param_str": set(),
}
CORE = ("report", "slopes", "settling", "judgement", "diagnosis", "function")  # of the gradient checker
NUMPY_ONLY = ("losses/", *(f"gradient_check/{name}" for name in CORE))
NOT_NUMPY = {"caffe", "numba", "llvmlite", "scipy", "sklearn", "h5py", "lmdb", "cv2"}
COMMANDS = {"train", "evaluate", "predict", "deploy", "check_gradient", "snippet", "convert", "migrate"}


def imports(path):
    """What a source imports: (None, "numpy") of others, ("losses", "softmax") of this package."""
    package, tree = path.parent.parts, SOURCES[path]
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    never = {inner for node in for_types for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in never:
            continue
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split(".")))
            yield from ((*base, alias.name, "")[:2] for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom):
            yield None, node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted(SOURCES), ids=str)
def test_arrows(path):
    room = path.with_suffix("").parts[0]
    wrong = [f"{path} -> {target}" for target, _ in imports(path) if target and target not in {room, *ARROWS[room]}]
    if path.with_suffix("").as_posix().startswith(NUMPY_ONLY):
        wrong += [f"{path} -> {module}" for target, module in imports(path) if target is None and module in NOT_NUMPY]
    if room == "commands":
        others = COMMANDS - {path.stem}
        wrong += [f"{path} -> {module}" for target, module in imports(path) if target == room and module in others]
    assert wrong == []


def last_line(node):
    return max(getattr(inner, "end_lineno", None) or getattr(inner, "lineno", 0) for inner in ast.walk(node))


@pytest.mark.parametrize("path", sorted(SOURCES), ids=str)
def test_budgets(path):
    """Lines of modules, classes and functions; positional arguments of calls."""
    in_kernels = path.parts[0] == "kernels"
    tree = SOURCES[path]
    too_long = [str(path)] if last_line(tree) > 400 else []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            most = 250 if isinstance(node, ast.ClassDef) else 80 if in_kernels else 60
            too_long += [f"{path}: {node.name}"] if last_line(node) - node.lineno + 1 > most else []
        elif isinstance(node, ast.Call) and len(node.args) > 7 and not in_kernels:
            too_long.append(f"{path}: call of {ast.dump(node.func)[:60]}")
    assert too_long == []
