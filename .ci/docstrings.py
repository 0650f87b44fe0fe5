"""Docstrings can be read alone, and those of long signatures explain their parameters.

Prints each that does not, and exits with 1 if there is one. The first line is a noun in the field's
terms, or a verb: one that begins with "What" or "Of those" needs the code to be understood.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("mmray", "jobs", "cluster")
RIDDLE = re.compile(
    r"(What|How|Whether|Of|Those|That|With what|As|Where|Which|Who|Whose|It|The same|From what)\b"
)
MANY = 6  # parameters, from which on a section explains them


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """Line and complaint for each docstring of a module that breaks a rule."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        line = 1 if isinstance(node, ast.Module) else node.lineno
        if text and RIDDLE.match(text):
            yield line, f"cannot be read alone: {text.splitlines()[0]!r}"
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [each.arg for each in given if each.arg not in ("self", "cls")]
            if len(named) >= MANY and "Parameters\n----------" not in (text or ""):
                yield line, f"{node.name} has {len(named)} parameters and no Parameters section"


def main() -> int:
    """Check all modules; returns the exit status."""
    found = 0
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, complaint in problems(path):
                print(f"{path.relative_to(ROOT)}:{line}: {complaint}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
