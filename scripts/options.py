"""Write the options of ``tomada serve`` into their documentation page."""

import sys
from pathlib import Path

from tomada._cli.options import as_markdown

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "serve.md"
BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->\n"


def written(page):
    """Return the page with the current options."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{as_markdown()}{END}{after}"


def main():
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    PAGE.write_text(new, encoding="utf-8")
    print(PAGE, "is up to date" if new == page else "is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
