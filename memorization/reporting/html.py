"""A Payload as one HTML file that needs no other file and no network."""

import json
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from memorization.errors import WrongUse

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("data", "pictures", "tables", "figures", "gallery", "panel", "scatter", "start")
# A browser ends a script element at these, whatever its type.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def fixed_bytes():
    """The size of what all pages have: plotly, their style and their script."""
    own = sum(len(_own_file(name)) for name in ("page.css", *(f"{one}.js" for one in SCRIPTS)))
    return own + len(get_plotlyjs())


def render(payload):
    """The bytes of the page of a Payload."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = environment.get_template("page.html.j2").render(
        payload=payload,
        data=json_in_html(payload.data),
        policy=POLICY,
        style=_own_file("page.css"),
        script="\n".join(_own_file(f"{name}.js") for name in SCRIPTS),
        plotly=_without_end_of_script(get_plotlyjs(), "plotly"),
    )
    return content.encode(errors="backslashreplace")  # paths may hold bytes that are not UTF-8


def json_in_html(value):
    """A value as JSON that can stand in a script element, whatever texts are in it."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPES.items():
        content = content.replace(character, escape)
    return content


def _own_file(name):
    return _without_end_of_script((FOLDER / name).read_text(encoding="utf-8"), name)


def _without_end_of_script(content, name):
    """The content. Raises WrongUse if it would end the element that it stands in."""
    if "</script" in content.lower() or "</style" in content.lower() or "<!--" in content:
        raise WrongUse(f"{name}: cannot stand in a page; install another version of it")
    return content
