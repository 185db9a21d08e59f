"""The table of experiments, read from their files without importing them.

python -m experiments                         all of them
python -m experiments ssl                     those of one family
python -m experiments ssl.simclr_digits ...   runs one, as its own file would
"""

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent


class Experiment(NamedTuple):
    """One launchable file: its family, its name in it, its first line."""

    family: str
    name: str
    summary: str


def experiments(root: Path = ROOT) -> list[Experiment]:
    """Every file below `root` that can be launched, sorted; files they share are not."""
    found = []
    for path in sorted(root.glob("*/**/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(is_launch(node) for node in tree.body):
            family, *name = path.relative_to(root).with_suffix("").parts
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            found.append(Experiment(family, ".".join(name), summary))
    return found


def is_launch(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and "'__main__'" in ast.unparse(node.test)


def table(rows: Sequence[Experiment]) -> str:
    """The rows in aligned columns, one paragraph for each family."""
    width = max((len(row.family) + len(row.name) for row in rows), default=0) + 1
    lines = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.family != row.family:
            lines.append("")
        lines.append(f"{f'{row.family}.{row.name}':{width}}  {row.summary}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str], root: Path = ROOT) -> None:
    """Prints the table, or one family's, or runs one experiment."""
    rows = experiments(root)
    families = sorted({row.family for row in rows})
    wanted, *options = arguments or [""]
    wanted = wanted.removeprefix("experiments.")
    if wanted in [f"{row.family}.{row.name}" for row in rows]:
        module = f"experiments.{wanted}"
        sys.argv = [f"python -m {module}", *options]
        runpy.run_module(module, run_name="__main__")
        return
    if wanted in ("-h", "--help"):
        print(__doc__)
    elif wanted in ("", *families):
        print(table([row for row in rows if wanted in ("", row.family)]))
    else:
        names = ", ".join(families)
        sys.exit(f"no experiment or family {wanted!r}; families: {names}")


if __name__ == "__main__":
    main(sys.argv[1:])
