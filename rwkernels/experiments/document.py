"""A report as a list of blocks, and how they become Markdown or one HTML file."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """A heading of the second level or deeper."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, drawn as SVG."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Code:
    """Text in fixed width, folded away behind its title."""

    title: str
    text: str


Block = Heading | Text | Table | Picture | Code


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG text, the same for the same figure."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def markdown(blocks: Sequence[Block], pictures: str) -> str:
    """Markdown; pictures are linked as `pictures/NAME.svg`."""
    return "\n\n".join(_markdown(block, pictures) for block in blocks)


def _markdown(block: Block, pictures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Table):
        rule = ["---"] + ["---:"] * (len(block.head) - 1)
        lines = ["| " + " | ".join(cells) + " |" for cells in (block.head, rule, *block.rows)]
        return "\n".join(lines) + (f"\n\n{block.note}" if block.note else "")
    if isinstance(block, Picture):
        return f"![{block.caption}]({pictures}/{block.name}.svg)\n\n*{block.caption}.*"
    return f"<details><summary>{block.title}</summary>\n\n```json\n{block.text}\n```\n\n</details>"


_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1f2933 }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d9dee3; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } figure { margin: 1.5rem 0 }
figure svg { max-width: 100%; height: auto }
figcaption, .note { color: #52606d; font-size: .9rem } pre { overflow-x: auto; background: #f4f6f8; padding: 1rem }
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    """One HTML file that needs nothing else."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Table):
        head = "".join(f"<th>{_inline(cell)}</th>" for cell in block.head)
        rows = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
        note = f'<p class="note">{_inline(block.note)}</p>' if block.note else ""
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    if isinstance(block, Picture):
        # Ids are unique within a figure alone.
        drawn = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{block.name}-", block.svg[block.svg.index("<svg") :])
        return f"<figure>{drawn}<figcaption>{_inline(block.caption)}</figcaption></figure>"
    return f"<details><summary>{_inline(block.title)}</summary><pre>{html.escape(block.text)}</pre></details>"


def _inline(text: str) -> str:
    found = html.escape(text)
    found = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", found)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", found)


def replaced(text: str, parts: Mapping[str, str], command: str) -> str:
    """`text` with each part between its two markers, `<!-- NAME: made by COMMAND -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: A part's markers are not there exactly once.
    """
    for name, content in parts.items():
        begin, end = f"<!-- {name}: made by {command} -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"expected one {begin!r} ... {end!r}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text
