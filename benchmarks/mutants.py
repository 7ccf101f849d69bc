"""Mutants: small faults put into a module, and whether the tests that import it see them.

    python benchmarks/mutants.py hf_unlearn/targets.py tests/test_targets.py --out benchmarks/results/mutants

Comparisons are turned, numbers and operators changed, conditions negated. Every mutant is a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
import torch  # noqa: F401  once, for all mutants
import transformers  # noqa: F401

TURNED = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
TURNED |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
TURNED |= {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


def is_mutable(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in TURNED
    if isinstance(node, ast.BinOp | ast.BoolOp):
        return type(node.op) in TURNED
    is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return is_number or isinstance(node, ast.If | ast.IfExp)


def mutate(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = TURNED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = TURNED[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value += 1
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)


def survives(path: Path, tree: ast.Module, tests: list[str], seconds: int) -> bool:
    """Whether the tests pass with this module in place of the one at `path`."""
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        load = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader, name):
            is_mutant = Path(loader.path).resolve() == path.resolve()
            return compile(tree, str(path), "exec") if is_mutant else load(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code
        os._exit(int(pytest.main(["-q", "-x", "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests])))
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=60, help="for the tests of a mutant")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    started, tree = time.monotonic(), ast.parse(options.module.read_text(encoding="utf-8"))
    assert survives(options.module, tree, options.tests, options.seconds), "the tests fail without a mutant"
    numbers = [i for i, node in enumerate(ast.walk(tree)) if is_mutable(node)]
    tried, survivors = 0, []
    for number in random.Random(0).sample(numbers, min(options.count, len(numbers))):
        if time.monotonic() - started > options.limit:
            break
        mutant = copy.deepcopy(tree)
        node = list(ast.walk(mutant))[number]
        before, line = ast.unparse(node), node.lineno
        mutate(node)
        tried += 1
        if survives(options.module, mutant, options.tests, options.seconds):
            survivors.append({"line": line, "was": before[:200], "is": ast.unparse(node)[:200]})
    results = {"module": str(options.module), "tests": options.tests, "places": len(numbers), "mutants": tried}
    results |= {"killed": tried - len(survivors), "survivors": sorted(survivors, key=lambda entry: entry["line"])}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.module.stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{options.module}: {results['killed']} of {tried} mutants killed", file=sys.stderr)


if __name__ == "__main__":
    main()
