r"""Foreign text (titles, ids, paths, messages of libraries) made safe for the language that it is shown in.

One function a language, and no other place where that is decided. HTML is not among them: pages come from Jinja2
templates, whose autoescape (`markupsafe.escape`) treats whatever is put in; nothing is to be marked `|safe`.

Control characters are made visible in Python's notation (`\x1b`, `\n`) rather than dropped, so that a person sees
what the data holds. Each function is applied once, at the place where the text is shown.
"""

import re
from typing import Final

from rich.text import Text

# What Unicode calls Bidi_Control: marks, embeddings, overrides, isolates and their ends.
_BIDI: Final = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_ENDS: Final = (0x2028, 0x2029)
_SURROGATES: Final = range(0xD800, 0xE000)  # bytes of a path that are no UTF-8: printing one raises an error
_CONTROL: Final = (*range(0x20), *range(0x7F, 0xA0), *_BIDI, *_LINE_ENDS, *_SURROGATES)
_VISIBLE: Final = {code: repr(chr(code))[1:-1] for code in _CONTROL}

# Entities where not every reader of Markdown takes a backslash.
_ENTITIES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;", "$": "&#36;"})
_MARKDOWN: Final = re.compile(r"([\\`*_#|\[\]])")
_FIRST: Final = re.compile(r"^(\d*)([-+=:.)])")  # of a line: a list item, what makes the line above a heading or a term
_ADDRESS: Final = re.compile(r"(?<=\w):(?=//)|(?<=\bwww)\.", re.IGNORECASE)  # what GitHub turns into links

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_FORMULA: Final = tuple("=+-@＝＋－＠")  # spreadsheets read the wide forms as the narrow ones


def terminal(text: str) -> str:
    r"""Text on one line of a terminal or a log: it cannot colour, move the cursor, end the line or reverse it.

    >>> print(terminal("a\x1b[31mb\nc"))
    a\x1b[31mb\nc
    """
    return text.translate(_VISIBLE)


def rich_text(text: str) -> Text:
    """A cell, title or line for Rich, which reads neither markup (`[b]`) nor emoji codes (`:x:`) in it.

    A `Text` and not an escaped string: Rich has no escape for emoji codes, nor for a backslash before a tag.
    """
    return Text(terminal(text))


def markdown(text: str) -> str:
    r"""Text within a line of Markdown (GitHub's), a table's cell included.

    >>> print(markdown("a|b <i> [c](d) *e*"))
    a\|b &lt;i&gt; \[c\](d) \*e\*
    """
    escaped = _MARKDOWN.sub(r"\\\1", _one_line(text).strip()).translate(_ENTITIES)
    first = _FIRST.sub(lambda found: f"{found[1]}&#{ord(found[2])};", escaped)
    return _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", first)


def markdown_code(text: str) -> str:
    """A code span within a line of Markdown, a table's cell included.

    >>> markdown_code("a`b")
    '``a`b``'
    """
    text = _one_line(text)
    if not text or "|" in text:  # a pipe ends a table's cell even in a span, and an empty span is none
        return f"<code>{markdown(text)}</code>"
    fence = _fence(text, shortest=1)
    # One blank at each side is taken off again: needed beside a backtick, and where the text has such blanks itself.
    padding = " " if text.startswith("`") or text.endswith("`") or text != text.strip(" ") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def markdown_block(text: str, language: str = "") -> str:
    r"""A fenced block of code in Markdown; lines stay lines, other control characters are made visible.

    >>> markdown_block("a\nb", "yaml")
    '```yaml\na\nb\n```'
    """
    lines = "\n".join(terminal(line) for line in text.split("\n"))
    fence = _fence(lines, shortest=3)
    return f"{fence}{language}\n{lines}\n{fence}"


def csv_cell(text: str) -> str:
    """A cell of a table that people open in a spreadsheet: never a formula, numbers stay numbers.

    Separators and quotes are the `csv` module's to quote.

    >>> csv_cell("=1+1"), csv_cell("-1.5"), csv_cell("plain")
    ("'=1+1", '-1.5', 'plain')
    """
    text = terminal(text)
    harmless = not text.lstrip().startswith(_FORMULA) or _NUMBER.fullmatch(text)
    return text if harmless else f"'{text}"


def _one_line(text: str) -> str:
    return terminal(re.sub(r"[\r\n\t]+", " ", text))


def _fence(text: str, *, shortest: int) -> str:
    """Backticks, more of them than stand together anywhere in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(shortest, longest + 1)
