#!/usr/bin/env python3
"""README.md beside what was run: page.py README.md OUTPUTS [--write]

Blocks of the page have a name behind the kind of their fence:
  ```sql NAME, ```ini NAME    the file NAME.sql or NAME.ini beside the page, whole; or, if there is none, SQL of the page itself
  ```text NAME [ROWS[@FROM]]  what it printed: OUTPUTS/NAME, of each table the first ROWS rows, or those from row FROM on
Prints the differences, and exits with 1 if there are any; --write puts them into the page.
page.py README.md --sql NAME prints the block of that name.
"""
import difflib, re, sys
from pathlib import Path

page = Path(sys.argv[1])
text = page.read_text()
BLOCK = re.compile(r"^```(sql|ini|text) (\S+)(?: ([\d@]+))?\n(.*?)^```\n", re.M | re.S)


def tables(printed, n_rows, first):
    """psql's aligned output without tables that have nothing in them, as functions that return void give, and cut to so many rows."""
    kept, lines = [], printed.split("\n")
    while lines:
        rule = 1 if len(lines) > 1 and re.fullmatch(r"[-+]+", lines[1]) else 0
        if not rule:
            kept += [lines.pop(0)]
            continue
        end = next(i for i, line in enumerate(lines) if re.fullmatch(r"\(\d+ rows?\)", line))
        rows = lines[2:end]
        if any(row.strip() for row in rows):
            shown = rows[first - 1:first - 1 + n_rows] if n_rows else rows
            kept += lines[:2] + [" …"] * (first > 1) + shown + [" …"] * (first - 1 + len(shown) < len(rows)) + [lines[end], ""]
        del lines[:end + 1]
        if lines and not lines[0]:
            lines.pop(0)
    return re.sub(r"[ \t]+$", "", "\n".join(kept), flags=re.M).strip("\n") + "\n"


def block(match):
    kind, name, rows, now = match.groups()
    if kind == "text":
        n_rows, _, first = (rows or "0").partition("@")
        now = tables((Path(sys.argv[2]) / name).read_text(), int(n_rows), int(first or 1))
    elif (page.parent / f"{name}.{kind}").exists():
        now = (page.parent / f"{name}.{kind}").read_text().rstrip("\n") + "\n"
    return f"```{kind} {name}{' ' + rows if rows else ''}\n{now}```\n"


if sys.argv[2] == "--sql":
    print(next(match[4] for match in BLOCK.finditer(text) if match[1] == "sql" and match[2] == sys.argv[3]))
    sys.exit()
fresh = BLOCK.sub(block, text)
if sys.argv[3:] == ["--write"]:
    page.write_text(fresh)
elif fresh != text:
    sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), fresh.splitlines(True), "README.md", "what was run"))
    sys.exit(1)
