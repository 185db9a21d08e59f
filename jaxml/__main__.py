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


def algorithms(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that are published work and stand on their own.

    Those are the methods, what a file is named after, and symbols whose docstring names
    a paper of its own. What merely shares its module's paper is left out.
    """
    entries = [e for e in entries if not e.is_constant and e.paper is not None]
    files = {e.module: e.module.rpartition(".")[2] for e in entries}
    exact = {e.module for e in entries if _last(e) == files[e.module]}

    def stands(entry: Entry) -> bool:
        named = _last(entry) == files[entry.module] or (
            entry.module not in exact  # a class without a builder
            and _last(entry).lower() == files[entry.module].replace("_", "")
        )
        return named or entry.is_method or parse_paper(entry.docstring) is not None

    return [entry for entry in entries if stands(entry)]


def markdown_table(entries: Iterable[Entry]) -> str:
    """One row for each algorithm, in the order given."""
    rows = ["| family | name | what it is | paper |", "|---|---|---|---|"]
    for entry in algorithms(entries):
        paper, file = entry.paper, _file(entry)
        assert paper is not None  # `algorithms` has asked
        cells = (
            entry.family,
            f"[`{entry.name}`]({file})",
            entry.summary,
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


def _last(entry: Entry) -> str:
    return entry.name.rpartition(".")[2]


def _file(entry: Entry) -> str:
    """Where the entry lives, from the root of the repository."""
    path = Path(sys.modules[entry.module].__file__ or "")
    return path.relative_to(Path(__file__).parents[1]).as_posix()


if __name__ == "__main__":
    main()
