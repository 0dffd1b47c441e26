"""Whatever a text holds, it arrives as that text and as nothing else: each language is read back by a reader of it."""

import csv
import html
import io
import itertools
import random
import re
import unicodedata

import pytest
from jinja2 import Environment
from markdown_it import MarkdownIt  # which rich depends on
from rich.console import Console
from rich.table import Table

from src.core.foreign import escape

NASTY = [
    "<script>alert(1)</script>",
    '<img src="../secret">',
    "![x](../secret)",
    "[a](javascript:b)",
    "a|b",
    "a\\|b",
    "a\\\\|b",
    "\\",
    "[/b]",
    "[bold red]x",
    "\\[/b]",
    ":heart:",
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\nb",
    "a\r\n\r\n# b",
    "\u2028b",
    "`",
    "``a`",
    "`a",
    "~~~",
    "```\nx\n```",
    "\u202egpj.exe",
    "\u2066x",
    "a\u200f!",
    "&amp;",
    "&lt;b&gt;",
    "*a* **b** _c_ __d__ ~~e~~",
    "# a",
    "- a",
    "+ a",
    "1. a",
    "12) a",
    "===",
    "---",
    ": a",
    "$x$",
    "https://example.com/a_b www.example.com",
    "{{ 7 * 7 }}",
    "\udc80",
    "\x00",
    "=1+1",
    "日本語 naïve",
]
PIECES = [
    "<",
    "b>",
    "|",
    "\\",
    "`",
    "[",
    "]",
    "(x)",
    "*",
    "_",
    "#",
    "~",
    "&",
    ";",
    "\n",
    "\x1b",
    "\u202e",
    " ",
    "a",
    "!",
    "$",
]


def texts() -> list[str]:
    """The list above, and chance combinations of what Markdown is made of."""
    draw = random.Random(0)
    return NASTY + ["".join(draw.choices(PIECES, k=draw.randint(1, 8))) for _ in range(500)]


def words(text: str) -> str:
    """A text as a page shows it: control characters in Python's notation, runs of blanks as one."""
    return " ".join(escape.terminal(re.sub(r"[\r\n\t]+", " ", text)).split())


def shown(page: str) -> str:
    """What an HTML page without any tag left shows."""
    assert "<" not in page, page
    return " ".join(html.unescape(page).split())


# --- terminal and Rich ---------------------------------------------------------------------------------------


def test_nothing_reaches_the_terminal_but_printable_characters():
    for text in texts():
        kept = escape.terminal(text)
        assert not [c for c in kept if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        assert not set(kept) & BIDI_CONTROLS
        assert escape.terminal(kept) == kept
        kept.encode()


def test_control_characters_are_visible():
    assert escape.terminal("a\x1b[31mb\n\x7f\x9b\u202e\u2028\udc80") == r"a\x1b[31mb\n\x7f\x9b\u202e\u2028\udc80"
    assert escape.terminal("Amélie 日本語 👩‍🚀 שלום") == "Amélie 日本語 👩‍🚀 שלום"


def test_every_control_character_is_known():
    codes = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(escape.terminal("".join(codes))) & {*codes, *BIDI_CONTROLS}


MARKS = {"\u061c", "\u200e", "\u200f"}  # of Bidi_Control, too, which unicodedata does not know
_CLASSES = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
BIDI_CONTROLS = MARKS | {c for c in map(chr, range(0x110000)) if unicodedata.bidirectional(c) in _CLASSES}


@pytest.mark.parametrize("text", NASTY)
def test_rich_shows_the_text(text):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=200)
    table = Table(title=escape.rich_text(text))
    table.add_column(escape.rich_text(text))
    table.add_row(escape.rich_text(text))
    console.print(table)
    assert file.getvalue().count(escape.terminal(text)) == 3


# --- Markdown ------------------------------------------------------------------------------------------------

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def test_markdown_shows_the_text_in_a_line_and_in_a_cell():
    for text in texts():
        escaped = escape.markdown(text)

        paragraph = GITHUB.render(escaped)
        if words(text):
            assert shown(re.fullmatch(r"<p>(.*)</p>\n", paragraph, re.DOTALL)[1]) == words(text)
        below = re.fullmatch(r"<p>above\n?(.*)</p>\n", GITHUB.render(f"above\n{escaped}"), re.DOTALL)
        assert shown(below[1]) == words(text)
        row = re.findall(r"<td>(.*?)</td>", GITHUB.render(f"| a | b |\n|---|---|\n| {escaped} | end |"), re.DOTALL)
        assert [shown(cell) for cell in row] == [words(text), "end"]


def test_addresses_become_no_links():
    assert escape.markdown("http://a.b www.c.d 10:30") == "http&#58;//a.b www&#46;c.d 10:30"


def test_a_code_span_holds_the_text_in_a_line_and_in_a_cell():
    for text in texts():
        span = escape.markdown_code(text)

        line = re.fullmatch(r"<p>above <code>(.*)</code> below</p>\n", GITHUB.render(f"above {span} below"), re.DOTALL)
        assert shown(line[1]) == words(text)
        row = re.findall(r"<td>(.*?)</td>", GITHUB.render(f"| a | b |\n|---|---|\n| {span} | end |"), re.DOTALL)
        assert shown(re.fullmatch("<code>(.*)</code>", row[0])[1]) == words(text)
        assert row[1:] == ["end"]


def test_a_block_holds_the_text():
    for text in texts():
        page = GITHUB.render(f"{escape.markdown_block(text, 'yaml')}\n\nafter")
        found = re.fullmatch(r'<pre><code class="language-yaml">(.*)</code></pre>\n<p>after</p>\n', page, re.DOTALL)
        assert html.unescape(found[1]) == "\n".join(map(escape.terminal, text.split("\n"))) + "\n"


# --- spreadsheets and HTML -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "＝", "－"])
def test_no_cell_is_a_formula(first):
    cell = escape.csv_cell(f'{first}cmd|" /C calc"!A0')
    assert cell[0] in "'\\"


@pytest.mark.parametrize("number", ["-1", "+1.5", "-.5", "1e-5", "-2.5E+10", "0", "-0.0"])
def test_numbers_stay_numbers(number):
    assert escape.csv_cell(number) == number


@pytest.mark.parametrize("text", ["-1+2", "-1-1", "+1 2", "-", "+e5", "--1", "-1,5;=2"])
def test_what_only_begins_as_a_number_is_text(text):
    assert escape.csv_cell(text) == f"'{text}"


def test_cells_survive_the_csv_module():
    file = io.StringIO()
    cells = [escape.csv_cell(text) for text in NASTY if "\udc80" not in text]
    csv.writer(file).writerow(cells)
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [cells]
    assert len(file.getvalue().splitlines()) == 1


@pytest.mark.parametrize("text", NASTY)
def test_html_is_jinjas(text):
    """The template's own escaping is enough, in text and in a quoted attribute."""
    page = Environment(autoescape=True).from_string('<p title="{{ text }}">{{ text }}</p>').render(text=text)
    title, content = re.fullmatch('<p title="([^"<>]*)">([^<>]*)</p>', page, re.DOTALL).groups()
    assert html.unescape(title) == html.unescape(content) == text


def test_all_pairs_of_pieces_stay_in_their_cell():
    for pair in itertools.product(PIECES, repeat=2):
        text = "".join(pair)
        page = GITHUB.render(f"| a | b |\n|---|---|\n| {escape.markdown(text)} | {escape.markdown_code(text)} |")
        assert page.count("<td>") == 2, text
