"""The rules of CONTRIBUTING.md that a program can see, and proof that each catches a violation."""

import ast
import configparser
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import EllipsisType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = "tests/nbval_sanitize.cfg"
READING_PATH = ["config", "routing", "embed", "visibility", "attention", "multiway", "model"]
READING_PATH_LINES = 500
NOTEBOOK_BYTES = 600_000

# What is not named here is in layer 4, explore/ and lab/ are layer 5.
LAYERS = (
    {"config", "routing", "cache", "checks", "storage", "data.paths", "data.sample"},
    {"embed", "visibility", "attention", "multiway", "init"},
    {"model", "released", "backbones", "capture", "pruned", "vocabulary", "float8"},
    {"masking", "text_tokenizer", "visual_tokenizer", "codebook", "teacher", "objective", "losses"},
)
TOP_LAYER = 5
TOP_ONLY = {"matplotlib", "ipywidgets", "anywidget", "IPython"}


def layer(module: str) -> int:
    """Layer of `minibeit3.<module>`, named by its dotted path below the package."""
    head = module.split(".")[0]
    if head in ("explore", "lab"):
        return TOP_LAYER
    named = (level for level, names in enumerate(LAYERS) if names & {head, module})
    return next(named, TOP_LAYER - 1)


@cache
def package_files(root: Path) -> list[tuple[str, Path, ast.Module]]:
    """(dotted module below the package, file, syntax tree) of every file of the package."""
    package = root / "minibeit3"
    files = sorted(package.rglob("*.py"))
    parts = [file.relative_to(package).with_suffix("").parts for file in files]
    modules = [".".join(names).removesuffix("__init__").rstrip(".") for names in parts]
    trees = [ast.parse(file.read_text()) for file in files]
    return list(zip(modules, files, trees, strict=True))


def imported(module: str, is_package: bool, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, those inside functions too."""
    here = ["minibeit3", *filter(None, module.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = len(here) - node.level + is_package
            base = ".".join([*(here[:up] if node.level else []), *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def import_direction(root: Path) -> list[str]:
    """A file imports from its own layer or a lower one, and a mode from no other mode."""
    modules = {module for module, _, _ in package_files(root)}
    found = []
    for module, file, tree in package_files(root):
        for line, name in imported(module, file.name == "__init__.py", tree):
            where = f"{file.relative_to(root)}:{line}"
            head, _, target = name.partition(".")
            if head in TOP_ONLY and layer(module) < TOP_LAYER:
                found.append(f"{where} imports {head}: only explore/ and lab/ may")
            if head != "minibeit3":
                continue
            if target not in modules:  # a name in a module: `model.BEiT3` is in `model`
                target = target.rpartition(".")[0]
            if layer(target) > layer(module):
                found.append(f"{where} imports {target or 'the package'} from a higher layer")
            is_mode = module.startswith("modes.")
            if is_mode and target.split(".")[0] == "modes" and target != module:
                found.append(f"{where} imports {target}: a mode imports no other mode")
    return found


def reading_path_length(root: Path) -> list[str]:
    """The files of the reading path stay short together."""
    files = [root / "minibeit3" / f"{name}.py" for name in READING_PATH]
    lines = {file.name: len(file.read_text().splitlines()) for file in files if file.exists()}
    total = sum(lines.values())
    too_long = total >= READING_PATH_LINES
    return [f"{total} lines, not under {READING_PATH_LINES}: {lines}"] if too_long else []


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """What needs a docstring: module, public classes, functions and methods.

    `forward` and methods of one statement may leave it to their class.
    """
    yield "module", tree
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if not isinstance(method, Documented) or len(method.body) == 1:
                    continue
                if not method.name.startswith("_") and method.name != "forward":
                    yield method.name, method


def docstrings(root: Path) -> list[str]:
    """Modules, public functions and classes, and public methods say what they do."""
    return [
        f"{file.relative_to(root)}:{getattr(node, 'lineno', 1)} {name} has no docstring"
        for _, file, tree in package_files(root)
        for name, node in documented(tree)
        if not ast.get_docstring(node)
    ]


def forbidden_code(root: Path) -> list[str]:
    """No print, nothing that runs a file's content, no silent except."""
    return [
        f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)} {message}"
        for _, file, tree in package_files(root)
        for node in ast.walk(tree)
        for message in forbidden_here(node)
    ]


def forbidden_here(node: ast.AST) -> Iterator[str]:
    """What is wrong with this one node of a syntax tree."""
    match node:
        case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
            yield f"{name}() runs text as code"
        case ast.Call(func=ast.Name(id="print")):
            yield "print() in the package: return the text (the command line has its console)"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=given):
            if not any(k.arg == "weights_only" for k in given):
                yield "torch.load without weights_only=True"
        case ast.Attribute(attr="add_safe_globals") | ast.alias(name="add_safe_globals"):
            yield "add_safe_globals holds for the whole process"
        case ast.Import(names=names) if {a.name for a in names} & {"pickle", "dill", "joblib"}:
            yield "pickle runs code from the file"
        case ast.ImportFrom(module="pickle" | "dill" | "joblib"):
            yield "pickle runs code from the file"
        case ast.ExceptHandler(body=[ast.Pass() | ast.Expr(ast.Constant(EllipsisType()))]):
            yield "except: pass hides an error"
        case ast.keyword(arg="weights_only", value=value):
            if not (isinstance(value, ast.Constant) and value.value is True):
                yield "weights_only is not True"
        case ast.keyword(arg="allow_pickle", value=value):
            if not (isinstance(value, ast.Constant) and value.value is False):
                yield "allow_pickle is not False"


def notebook_contract(root: Path) -> list[str]:
    """No widget state, small outputs, and every cell that is compared has something to compare."""
    found = []
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(file.read_text())
        if "widgets" in notebook["metadata"]:
            found.append(f"{file.name}: widget state in the metadata")
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        size = sum(len(json.dumps(cell["outputs"])) for cell in cells)
        if size > NOTEBOOK_BYTES:
            found.append(f"{file.name}: outputs of {size} bytes, the limit is {NOTEBOOK_BYTES}")
        for cell in cells:
            tagged = "nbval-check-output" in cell["metadata"].get("tags", [])
            if tagged and not (cell["outputs"] and cell["execution_count"]):
                found.append(f"{file.name}: tagged cell without output: {''.join(cell['source'])}")
    return found


def sanitize_rules(root: Path) -> list[str]:
    """nbval would drop a rule that it cannot read, and compare less or more than we think."""
    rules = configparser.RawConfigParser()
    try:
        rules.read_string((root / SANITIZE).read_text())
        for name in rules.sections():
            rule = dict(rules[name])
            re.compile(rule.pop("regex"))
            rule.pop("replace")
            if rule:
                return [f"{SANITIZE}: [{name}] has more than regex and replace: {sorted(rule)}"]
    except (configparser.Error, re.error, KeyError) as error:
        return [f"{SANITIZE}: {error!r}"]
    return [] if rules.sections() else [f"{SANITIZE} holds no rule"]


Rule = Callable[[Path], list[str]]
CODE = "minibeit3/config.py"
NOTEBOOK = "notebooks/00_start_here.ipynb"
DOC = '"""Sizes."""\n\n\n'


def one_cell(tags: tuple[str, ...] = (), output: str = "", **metadata: object) -> str:
    """A notebook of one code cell."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
    cell = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": ["1"]}
    cell |= {"outputs": outputs, "execution_count": 1}
    return json.dumps({"metadata": metadata, "cells": [cell]})


VIOLATIONS: list[tuple[Rule, str, str]] = [
    (import_direction, CODE, "from minibeit3.model import BEiT3"),
    (import_direction, CODE, "from minibeit3 import model"),
    (import_direction, CODE, "from .embed import Embed"),
    (import_direction, CODE, "def f():\n    import minibeit3.embed"),
    (import_direction, CODE, "from minibeit3 import BEiT3Config"),
    (import_direction, "minibeit3/data/a.py", "from ..lab import start"),
    (import_direction, "minibeit3/train.py", "import matplotlib.pyplot as plt"),
    (import_direction, "minibeit3/cli.py", "from IPython.display import HTML"),
    (import_direction, "minibeit3/modes/fusion.py", "from minibeit3.modes.dual import Retriever"),
    (import_direction, "minibeit3/modes/fusion.py", "from .dual import Retriever"),
    (import_direction, "minibeit3/modes/fusion.py", "from . import dual"),
    (reading_path_length, CODE, "x = 1\n" * READING_PATH_LINES),
    (docstrings, CODE, DOC + "def count():\n    return 1"),
    (docstrings, CODE, DOC + "class Config:\n    x = 1"),
    (
        docstrings,
        CODE,
        DOC + 'class C:\n    """A."""\n\n    def f(self):\n        x = 1\n        return x',
    ),
    (docstrings, CODE, "x = 1"),
    (forbidden_code, CODE, "print(1)"),
    (forbidden_code, CODE, "x = eval('1')"),
    (forbidden_code, CODE, "exec('1')"),
    (forbidden_code, CODE, "import pickle"),
    (forbidden_code, CODE, "from pickle import load"),
    (forbidden_code, CODE, "torch.load('a.pth')"),
    (forbidden_code, CODE, "torch.load('a.pth', weights_only=False)"),
    (forbidden_code, CODE, "load = partial(torch.load, weights_only=not True)"),
    (forbidden_code, CODE, "numpy.load('a.npy', allow_pickle=True)"),
    (forbidden_code, CODE, "torch.serialization.add_safe_globals([])"),
    (forbidden_code, CODE, "from torch.serialization import add_safe_globals"),
    (forbidden_code, CODE, "try:\n    x = 1\nexcept ValueError:\n    pass"),
    (forbidden_code, CODE, "try:\n    x = 1\nexcept ValueError:\n    ..."),
    (notebook_contract, NOTEBOOK, one_cell(widgets={})),
    (notebook_contract, NOTEBOOK, one_cell(output="x" * NOTEBOOK_BYTES)),
    (notebook_contract, NOTEBOOK, one_cell(tags=("nbval-check-output",))),
    (sanitize_rules, SANITIZE, "[a]\nregex: (\nreplace: b"),
    (sanitize_rules, SANITIZE, "[a]\nregex: b"),
    (sanitize_rules, SANITIZE, "regex: a\nreplace: b"),
    (sanitize_rules, SANITIZE, "[a]\nregex: b\nreplace: c\nregexp: d"),
    (sanitize_rules, SANITIZE, ""),
]

LAWFUL: list[tuple[Rule, str, str]] = [
    (import_direction, "minibeit3/model.py", "from minibeit3.config import BEiT3Config"),
    (import_direction, "minibeit3/explore/core.py", "import matplotlib"),
    (import_direction, "minibeit3/__init__.py", "from minibeit3.model import BEiT3"),
    (import_direction, "minibeit3/modes/__init__.py", "from minibeit3.modes.dual import Retriever"),
    (docstrings, CODE, DOC + "def _count():\n    return 1"),
    (forbidden_code, CODE, "model.eval()\ntorch.load('a.pth', weights_only=True)"),
    (forbidden_code, "minibeit3/cli.py", "console.print(1)"),
    (notebook_contract, NOTEBOOK, one_cell(tags=("nbval-check-output",), output="(2, 3)")),
    (sanitize_rules, SANITIZE, "[a]\nregex: b\nreplace: c"),
]


def small_tree(root: Path, file: str, text: str) -> Path:
    """A checkout with empty files to import from, and one file with the given text."""
    for name in ("__init__", "config", "embed", "model", "lab/__init__", "modes/dual"):
        empty = root / "minibeit3" / f"{name}.py"
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.write_text('"""Nothing."""\n')
    target = root / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(textwrap.dedent(text))
    return root


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in VIOLATIONS))
def test_this_checkout_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "file", "text"), VIOLATIONS)
def test_a_violation_is_found(tmp_path: Path, rule: Rule, file: str, text: str) -> None:
    assert len(rule(small_tree(tmp_path, file, text))) == 1


@pytest.mark.parametrize(("rule", "file", "text"), LAWFUL)
def test_lawful_files_pass(tmp_path: Path, rule: Rule, file: str, text: str) -> None:
    assert rule(small_tree(tmp_path, file, text)) == []
