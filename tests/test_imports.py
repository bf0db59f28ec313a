"""The house rules that a machine can check: who may import whom, what may run at import time, how long things may be.

Everything is read from the source text; nothing of the package is imported here.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "megaswitch"

FLOORS = {
    "utils": 0,
    "config": 0,
    "topology": 1,
    "data": 1,
    "comm": 2,
    "params": 2,
    "ops": 2,
    "layers": 3,
    "model": 4,
    "pipeline": 5,
    "optim": 5,
    "checkpoint": 6,
    "train": 7,
    "dry_run": 8,
    "cli": 9,
    "__main__": 10,
}
"""A module imports from its own package and from lower floors."""
SAME_FLOOR = {("config", "utils")}
SIDE_TOWERS = {"data": {"utils", "config"}}
"""Packages that import these alone, whatever their floor."""
MAY_TALK = {"comm", "topology", "pipeline", "optim", "checkpoint"}
"""Packages that may call torch.distributed."""
WITHOUT_TORCH = ("cli", "__main__", "config", "data", "utils.errors", "utils.logging", "model.presets", "train.config")
"""What answers without torch, with all that it imports."""
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ruamel"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load"}
MOST_LINES = 400
MOST_FUNCTION_LINES = 80
LONG_FUNCTION_LINES = 40


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def modules() -> dict[str, Path]:
    """Source files by module name without the package's: "model.config", "comm" for its __init__, "" for the root."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return parse(modules()[name])


def scripts() -> list[Path]:
    return [p for folder in ("data_prep", "tools", "launch") for p in sorted((ROOT / folder).rglob("*.py"))]


def everything() -> list[tuple[str, ast.Module]]:
    own = [(str(path.relative_to(ROOT)), tree(name)) for name, path in modules().items()]
    return own + [(str(path.relative_to(ROOT)), parse(path)) for path in scripts()]


def package_of(name: str) -> str:
    return name.partition(".")[0]


def is_torch_free_config(name: str) -> bool:
    """Configuration dataclasses stand beside their code and may be imported from any floor."""
    return name.endswith(".config") or name == "model.presets"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are executed when a module is imported: not the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) or isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, child.args):
                yield part
                yield from at_import(part)
            continue
        yield child
        yield from at_import(child)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names that import statements name; `from a import b` gives a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that one can search for them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(names: Iterable[str]) -> set[str]:
    """Those of the package, as keys of `modules`: of megaswitch.a.b.name, the longest part that is a module."""
    found = set()
    for name in names:
        parts = name.split(".")[1:] if name.split(".")[0] == PACKAGE else []
        while parts and ".".join(parts) not in modules():
            parts.pop()
        if parts:
            found.add(".".join(parts))
    return found


@cache
def imports_of(name: str) -> frozenset[str]:
    """Modules of the package that a module imports when it is imported."""
    return frozenset(own_modules(imported(at_import(tree(name)))) - {name})


def uses_torch(name: str) -> bool:
    return any(n.split(".")[0] == "torch" for n in imported(at_import(tree(name))))


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def aliases(module: ast.Module) -> dict[str, str]:
    """What names stand for in a file: `import torch.distributed as dist` gives dist: torch.distributed."""
    found = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: start + alias.name for alias in node.names}
    return found


def calls(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is called by name."""
    known = aliases(module)
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            first, _, rest = name.partition(".")
            yield node.lineno, ".".join(filter(None, [known.get(first, first), rest]))


def functions(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def may_import(importer: str, target: str) -> bool:
    here, there = package_of(importer), package_of(target)
    if here == there or is_torch_free_config(target) or (here, there) in SAME_FLOOR:
        return True
    if here in SIDE_TOWERS:
        return there in SIDE_TOWERS[here]
    return FLOORS[there] < FLOORS[here]


def test_every_room_has_a_floor():
    assert {package_of(name) for name in modules()} - {""} <= set(FLOORS)


def test_imports_go_down():
    wrong = [
        f"{importer} imports {target}"
        for importer in modules()
        for target in sorted(own_modules(imported(ast.walk(tree(importer)))))
        if importer and not may_import(importer, target)
    ]
    assert wrong == []


def test_no_import_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " imports ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in imports_of(name):
                visit(target, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_what_answers_without_torch():
    def wrong(name: str, path: tuple[str, ...]) -> Iterator[str]:
        if uses_torch(name):
            yield " imports ".join([*path, name, "torch"])
        for target in imports_of(name):
            if target not in path:
                yield from wrong(target, (*path, name))

    roots = [n for n in modules() if n.startswith(tuple(f"{w}." for w in WITHOUT_TORCH)) or n in WITHOUT_TORCH]
    roots += [n for n in modules() if is_torch_free_config(n)]
    assert len(roots) > 10
    assert sorted({line for name in roots for line in wrong(name, ())}) == []


def test_initialisers_are_light():
    heavy = [n for n, path in modules().items() if path.name == "__init__.py" and (uses_torch(n) or imports_of(n))]
    assert heavy == []


def test_only_some_rooms_talk_to_other_processes():
    wrong = [
        f"{name}:{line} {called}"
        for name in modules()
        if package_of(name) not in MAY_TALK
        for line, called in calls(tree(name))
        if called.startswith("torch.distributed.")
    ]
    assert wrong == []


def test_no_gpu_is_touched_at_import():
    wrong = [
        f"{name}:{node.lineno}"
        for name in modules()
        for node in at_import(tree(name))
        if isinstance(node, ast.Attribute) and dotted(node).startswith("torch.cuda")
    ]
    assert wrong == []


def test_no_global_statement():
    assert [where for where, module in everything() for n in ast.walk(module) if isinstance(n, ast.Global)] == []


def test_nothing_unpickles_or_evaluates():
    wrong = []
    for where, module in everything():
        wrong += [f"{where} imports {n}" for n in imported(ast.walk(module)) if n.split(".")[0] in FORBIDDEN_IMPORTS]
        wrong += [f"{where}:{line} {called}" for line, called in calls(module) if called in FORBIDDEN_CALLS]
        wrong += [f"{where} allows pickles" for n in ast.walk(module) if allows_pickles(n)]
    assert wrong == []


def allows_pickles(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"


def test_files_are_short():
    paths = [*modules().values(), *scripts()]
    assert [(p.name, n) for p in paths if (n := len(p.read_text().splitlines())) > MOST_LINES] == []


def test_functions_are_short():
    lengths = [(where, name, n) for where, module in everything() for name, n in functions(module)]
    assert [entry for entry in lengths if entry[2] > MOST_FUNCTION_LINES] == []
    long = [entry for entry in lengths if entry[2] >= LONG_FUNCTION_LINES]
    assert len(long) <= len(lengths) / 10, long


def test_every_module_says_what_it_is():
    assert [name for name in modules() if not ast.get_docstring(tree(name))] == []


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("layers.linear", "params.spec", True),
        ("params.spec", "layers.linear", False),
        ("ops.reference.x", "comm.functions", False),
        ("data.dataset", "utils.errors", True),
        ("data.dataset", "topology.grid", False),
        ("topology.start", "train.config", True),
        ("config.load", "utils.errors", True),
        ("utils.errors", "config.load", False),
        ("pipeline.executor", "optim.adafactor", False),
    ],
)
def test_the_rule_itself(importer, target, allowed):
    assert may_import(importer, target) == allowed


def test_the_readers_see_what_they_should():
    source = """
import torch.distributed as dist
from torch.distributed import all_reduce
from torch import cuda
def f(x=torch.cuda.device_count()):
    import pickle
    dist.barrier()
    all_reduce(x)
if TYPE_CHECKING:
    import heavy
"""
    module = ast.parse(source)
    assert [name for _, name in calls(module)][-2:] == ["torch.distributed.barrier", "torch.distributed.all_reduce"]
    assert set(imported(ast.walk(module))) >= {"pickle", "heavy", "torch.distributed.all_reduce"}
    assert not set(imported(at_import(module))) & {"pickle", "heavy"}
    assert any(re.match(r"torch\.cuda", dotted(node)) for node in at_import(module))
