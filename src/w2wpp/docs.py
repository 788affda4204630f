"""`make docs`: write table 1 into README.md, between its markers, from docs/results/table1.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2wpp.errors import W2WError
from w2wpp.files import read_json, write_text
from w2wpp.report import table1_rows

BEGIN, END = "<!-- table1:begin -->", "<!-- table1:end -->"
TABLE1 = Path("docs/results/table1.json")
README = Path("README.md")


def markdown(table: Mapping[str, Any]) -> str:
    """A {head, rows} table as Markdown."""
    lines = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table1(readme: str, table1: Mapping[str, Any]) -> str:
    """`readme` with the text between its markers replaced by table 1. Raises W2WError without the markers."""
    if BEGIN not in readme or END not in readme:
        raise W2WError(f"the README has no {BEGIN} and {END}. Put both where the table belongs.")
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    caption = f"`{table1['command']}`, {table1['split']} split, seed {table1['seed']}; mean ± standard error over people."
    return f"{before}{BEGIN}\n{markdown(table1_rows(table1))}\n\n{caption}\n{END}{after}"


if __name__ == "__main__":
    write_text(README, with_table1(README.read_text(encoding="utf-8"), read_json(TABLE1)))
    print(README)
