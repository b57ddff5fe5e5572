"""Renders the table of settings in the docs from the schema of a run's config.

    python -m tools.settings_table --write docs/recipes-and-settings.md

Without ``--write`` it prints the table.
"""

import argparse
from pathlib import Path

from rdmldg_ray.config.settings import as_code, sections

BEGIN = "<!-- settings: written by tools/settings_table.py -->"
END = "<!-- end of settings -->"


def settings_table() -> str:
    """Every setting as Markdown: a table for the run itself, and one for each section."""
    lines: list[str] = []
    for section in sections():
        if section.path:
            lines += ["", f"### `{section.path}`", "", section.meaning, ""]
        if section.settings:
            lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for setting in section.settings:
            meaning = setting.meaning.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{setting.path}` | {setting.values} | {as_code(setting.default)} | {meaning} |")
    return "\n".join(lines)


def replace_table(text: str, table: str) -> str:
    """The text of a page with another table between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Replace the table in this page.")
    page = parser.parse_args().write
    if page is None:
        print(settings_table())
    else:
        page.write_text(replace_table(page.read_text(), settings_table()))


if __name__ == "__main__":
    main()
