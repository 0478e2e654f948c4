"""Pages of report.py, read back."""

import base64
import html
import io
import json
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

import report


@dataclass(frozen=True)
class Page:
    """A page. content: its HTML; text: what it shows without a script; data: what its script
    reads; sheets: pictures, (H, W, 3) arrays.
    """

    content: str
    text: str
    data: dict
    sheets: list

    def picture(self, place):
        """The pixels of a tile, (S, S, 3). place: [sheet, tile]."""
        sheet, tile = place
        shape = self.data["sheet_info"][sheet]
        row, column = divmod(tile, shape["columns"])
        size = shape["size"]
        rows = slice(row * size, (row + 1) * size)
        return self.sheets[sheet][rows, column * size : (column + 1) * size]

    def column(self, key):
        return self.data["images"][key]

    def table(self, name):
        """The rows of a table, lists of texts, the heads first."""
        content = re.search(rf'<table class="data" id="{name}".*?</table>', self.content, re.S)[0]
        rows = re.findall(r"<tr>(.*?)</tr>", content, re.S)
        return [
            [_text_of(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in rows
        ]


def make_page(tmp_path, *arguments):
    """The Page that report.py writes for the arguments of a command line."""
    path = tmp_path / "page.html"
    report.main([*map(str, arguments), "--output", str(path)])
    return read_page(path)


def read_page(path):
    content = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', content, re.S)[1])
    texts = re.findall(r'id="sheet-\d+">data:image/webp;base64,(.*?)</script>', content)
    sheets = [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in texts]
    shown = re.sub(r"<(script|style).*?</\1>", " ", content, flags=re.S)
    return Page(content, _text_of(shown), data, sheets)


def _text_of(content):
    text = html.unescape(re.sub(r"<[^>]+>", " ", content)).replace("\u00a0", " ")
    return " ".join(text.split())
