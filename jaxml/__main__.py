"""The table of algorithms, made from their docstrings.

python -m jaxml                       prints it as markdown
python -m jaxml --write README.md     puts it between the marks in that file
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxml.export import Entry, catalogue, parse_paper

MARKS = "<!-- catalogue -->", "<!-- /catalogue -->"
SHOWN = 9
"""Names in a row."""


def markdown_table(entries: Iterable[Entry]) -> str:
    """One row for each module that names a paper: what it is, and what it offers.

    Its one sentence and its paper are those of the module's docstring; of its names
    functions stand before classes. A module of constants alone, of pictures or of
    settings is no algorithm and has no row.
    """
    rows = ["| module | what it is | names | paper |", "|---|---|---|---|"]
    modules: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry.is_constant and entry.family != "draw":
            modules.setdefault(entry.module, []).append(entry)
    for module, offered in sorted(modules.items()):
        doc = sys.modules[module].__doc__ or ""
        paper = parse_paper(doc)
        if paper is None or module.endswith("_config"):
            continue
        names = sorted((e.name.rpartition(".")[2] for e in offered), key=str.swapcase)
        more = " ..." if len(names) > SHOWN else ""
        cells = (
            f"[{module.partition('.')[2]}]({_file(module)})",
            doc.partition("\n")[0].strip(),
            ", ".join(f"`{name}`" for name in names[:SHOWN]) + more,
            f"[{paper.title}]({paper.url})",
        )
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows)


def with_table(text: str, table: str) -> str:
    """`text` with `table` between its marks.

    Raises:
        ValueError: unless the text holds both marks exactly once, in order.
    """
    start, end = map(re.escape, MARKS)
    found = re.findall(f"{start}.*?{end}", text, re.S)
    if len(found) != 1 or any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(
            f"the text must hold {' and '.join(MARKS)} once, in this order"
        )
    return text.replace(found[0], f"{MARKS[0]}\n\n{table}\n\n{MARKS[1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it into a file."""
    parser = argparse.ArgumentParser(prog="python -m jaxml", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--write", metavar="FILE", type=Path, help="rewrite this file")
    file = parser.parse_args(arguments).write
    table = markdown_table(catalogue())
    if file is None:
        print(table)
    else:
        file.write_text(with_table(file.read_text("utf-8"), table), "utf-8")


def _file(module: str) -> str:
    """Where a module lives, from the root of the repository."""
    path = Path(sys.modules[module].__file__ or "")
    return path.relative_to(Path(__file__).parents[1]).as_posix()


if __name__ == "__main__":
    main()
