"""A Markdown report as one HTML file: plots inside it, no script, nothing fetched."""

import base64
import re
from html import escape
from pathlib import Path

import markdown

_STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; padding-bottom: .25rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .88rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border: 1px solid #d0d7de; text-align: left; font-variant-numeric: tabular-nums; }
th { background: #f6f8fa; }
tr:nth-child(even) td { background: #fafbfc; }
img { max-width: 100%; height: auto; }
pre { background: #f6f8fa; padding: .8rem 1rem; border-radius: 6px; font-size: .85rem;
      white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
"""


def html_page(text: str, folder: Path) -> str:
    """The page of a Markdown text.

    Args:
        text: begins with `# <title>`; its images are PNG files, relative to `folder`.
    """
    title = text.splitlines()[0].removeprefix("# ")
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'src="([^":]+)"', lambda match: f'src="{_embedded(folder / match[1])}"', body)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def _embedded(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
