"""What reports are made of: blocks and tables, as Markdown and as pages of HTML that need nothing else.

Pages are templates of Jinja, `blocks.html` and `blocks.md` here and others beside what fills them.
"""

from __future__ import annotations

import importlib.resources
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
class Mark:
    """A verdict in a cell: what was found, what was wanted, and whether it is that."""

    found: str
    wanted: str
    met: bool


@dataclass(frozen=True)
class Table:
    """A table of texts; a cell of verdicts is a list of `Mark`.

    Attributes:
        head: The columns' names.
        rows: As many cells each.
        note: A paragraph below.
        right: Which columns are numbers, and set to the right; None: all but the first.
        kinds: What is special about each row, for whoever shows them in colours; none of them where it is empty.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    right: Collection[int] | None = None
    kinds: Sequence[str] = ()

    @property
    def numeric(self) -> list[bool]:
        """Whether a column is set to the right, one by one."""
        right = range(1, len(self.head)) if self.right is None else self.right
        return [index in right for index in range(len(self.head))]

    def columns(self, *chosen: int) -> Table:
        """Some of the columns, in the order given."""
        return replace(
            self,
            head=[self.head[index] for index in chosen],
            rows=[[row[index] for index in chosen] for row in self.rows],
            right=[place for place, index in enumerate(chosen) if self.numeric[index]],
        )


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


def counted(count: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def rendered(template: str, **values: Any) -> str:
    """The template at a path within the package, filled; in HTML every text is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

    root = importlib.resources.files("rwkernels")
    environment = Environment(
        loader=FunctionLoader(lambda path: root.joinpath(path).read_text(encoding="utf-8")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    environment.filters["apart"] = _apart
    environment.tests["is_a"] = lambda block, name: type(block).__name__ == name
    return environment.get_template(template).render(values)


def _inline(text: str) -> Any:
    """HTML of what is **bold** or `code` within a line."""
    from markupsafe import Markup, escape

    found = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", found))


def _apart(picture: Picture) -> Any:
    """The SVG element of a picture; its ids, unique within a figure alone, become unique in a page."""
    from markupsafe import Markup

    element = picture.svg[picture.svg.index("<svg") :]
    return Markup(re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{picture.name}-", element))


def markdown(blocks: Sequence[Block], pictures: str = "") -> str:
    """Markdown; pictures are linked as `pictures/NAME.svg`."""
    return rendered("pages/blocks.md", blocks=blocks, pictures=pictures).strip()


def page(title: str, blocks: Sequence[Block]) -> str:
    """One HTML file that needs nothing else."""
    return rendered("pages/page.html", title=title, blocks=blocks)


def svg(figure: Figure, name: str, fonttype: str = "path", **options: Any) -> str:
    """The figure as SVG text, the same for the same figure: its ids follow from `name`, and it has no date."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": fonttype}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return buffer.getvalue()


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
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text
