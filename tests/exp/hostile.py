"""Text that would be markup, a formula, a control sequence or a template, and readers of the pages it may stand in."""

from html.parser import HTMLParser
from pathlib import Path

from src.core.foreign.escape import terminal
from src.exp.report import pages

SORTING = (Path(pages.__file__).parent / "templates" / "sort.js.j2").read_text(encoding="utf-8").strip()  # our script
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '<img src="../secret.txt"> ![x](../secret.txt) [a](javascript:b)',
    "a|b \\| c",
    "[/b] [red]x :heart:",
    "\x1b[31mred\x1b]8;;http://x\x07link",
    "\u202egpj.exe\u2066\u200f",
    "$HOME `id` $(id) {{7*7}} {% x %}",
    '=HYPERLINK("http://x","y")',
    "$\\frac$ _x_ ^2",
    "e" + "\u0301\u0323" * 20,
    "long " * 20 + ".",
]


def unsafe(text: str) -> set[str]:
    """The characters of a text that a terminal obeys, or that reorder it; line ends are lines."""
    return {c for c in text if c != "\n" and c != terminal(c)}


class Page(HTMLParser):
    """The elements of a page, their attributes, its text, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts.append(data.strip())
        else:
            self.words += data

    def addresses(self, *names: str) -> set[str]:
        return {value for name, value in self.attributes if name in names}


def require_harmless(page: Page) -> None:
    assert page.names.count("script") == len(page.scripts) and set(page.scripts) <= {SORTING}
    assert not set(page.names) & {"iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "srcdoc"]
