#!/usr/bin/env python3
"""Replaces a marked section of README.md with standard input.

`benches/compare.py | benches/readme.py speed` replaces what stands between
`<!-- begin speed -->` and `<!-- end speed -->`. Input that is empty (because
the measurement failed) changes nothing.
"""

import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: readme.py SECTION < table.md")
    begin, end = (f"<!-- {word} {sys.argv[1]} -->\n" for word in ("begin", "end"))
    content = sys.stdin.read().strip()
    if not content:
        sys.exit("readme: the input is empty, README.md stays as it is")
    readme = Path(__file__).resolve().parents[1] / "README.md"
    text = readme.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"readme: README.md needs one section marked {begin.strip()} and {end.strip()}")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    readme.write_text(f"{head}{begin}{content}\n{end}{tail}")


if __name__ == "__main__":
    main()
