"""Which modules a test file needs that are not installed, by following what it imports."""

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "multilabel_softmax_loss"
OWN_FOLDERS = (ROOT, ROOT / "tests", ROOT / "examples" / "gradient_check")
# What is not imported but run.
ALONG_WITH = {
    "multilabel_softmax_loss.commands.terminal.progress_bar": "tqdm",
    "nbclient.NotebookClient": "ipykernel",
    "support.tiny_nets.make_run": "caffe",
    "support.tiny_nets.read_net": "caffe",
    "support.ranks.start_ranks": "mpi4py",
}


def missing_modules(path):
    """Names of modules, sorted; empty if the test file at `path` has all it needs."""
    needed = set()
    follow(Path(path), needed, set())
    return sorted(name for name in needed if not installed(name))


@lru_cache(maxsize=None)
def installed(name):
    return find_spec(name) is not None


def follow(path, needed, seen):
    """Add to `needed` what the source at `path` imports, and what the sources of this project do that it imports.

    In a test that is everything, in another source what is imported along with it: its functions may have another way.
    """
    if path in seen:
        return
    seen.add(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in imports(tree, inside_functions=path.name.startswith("test_")):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        else:
            names = [(absolute(node, path), alias.name) for alias in node.names]
        for module, attribute in names:
            needed.update(filter(None, [ALONG_WITH.get(f"{module}.{attribute}")]))
            found = list(own_sources(module, attribute))
            for source in found:
                follow(source, needed, seen)
            if not found:
                needed.add(module.partition(".")[0])


def imports(node, inside_functions):
    """The imports below a node; those for types alone are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif inside_functions or not isinstance(child, ast.FunctionDef):
            yield from imports(child, inside_functions)


def absolute(node, path):
    """The module that a `from` import names."""
    if not node.level:
        return node.module
    package = path.parents[node.level - 1].relative_to(ROOT).parts
    return ".".join([*package, node.module] if node.module else package)


def own_sources(module, attribute):
    """The files in this project of a module, and of its attribute where that is a module or is loaded on demand."""
    names = [module]
    if attribute is not None:
        names.append(f"{module}.{on_demand().get(attribute, attribute) if module == PACKAGE else attribute}")
    for name in names:
        for folder in OWN_FOLDERS:
            place = folder.joinpath(*name.split("."))
            yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())


def on_demand():
    import multilabel_softmax_loss

    return multilabel_softmax_loss.ON_DEMAND
