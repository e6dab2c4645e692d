"""Prints how large the source is, and fails where a module, a function or a repetition is larger than agreed."""

import ast
import subprocess
import sys
from pathlib import Path

MODULE, FUNCTION, REPEATED = 400, 60, 8  # lines
SOURCE = Path(__file__).parent.parent / "src"


def main() -> int:
    """Print the figures; returns the exit code."""
    modules = {path: path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    lines = {path: len(text.splitlines()) for path, text in modules.items()}
    functions = {
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}": 1 + (node.end_lineno or node.lineno) - node.lineno
        for path, text in modules.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    code = sum(_code_lines(text) for text in modules.values())
    print(
        f"{len(modules)} modules, {sum(lines.values())} lines, of them {code} of code without docstrings and comments"
    )
    print(f"longest module: {max(lines.values())} lines (at most {MODULE})")
    print(f"longest function: {max(functions.values())} lines (at most {FUNCTION})")
    too_long = [f"{path.relative_to(SOURCE)}: {count} lines" for path, count in lines.items() if count > MODULE]
    too_long += [f"{name}: {count} lines" for name, count in functions.items() if count > FUNCTION]
    print(*too_long, sep="\n")
    options = ["--disable=all", "--enable=duplicate-code", f"--min-similarity-lines={REPEATED}"]
    ignored = [f"--ignore-{what}=y" for what in ("imports", "docstrings", "comments", "signatures")]
    repeated = subprocess.run([sys.executable, "-m", "pylint", "--score=n", *options, *ignored, SOURCE / "cityseg"])
    return 1 if too_long or repeated.returncode else 0


def _code_lines(text: str) -> int:
    """Lines that hold a statement, other than a docstring."""
    tree = ast.parse(text)
    held: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.lineno = node.value.end_lineno = 0  # its other lines hold no node
        elif isinstance(node, ast.expr | ast.stmt | ast.arg | ast.keyword) and not isinstance(node, ast.Expr):
            held |= {node.lineno, node.end_lineno or node.lineno}
    return len(held - {0})


if __name__ == "__main__":
    sys.exit(main())
