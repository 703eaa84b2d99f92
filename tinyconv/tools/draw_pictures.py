"""A sheet of the pictures that a first training run draws for itself, an SVG file.

    python -m tinyconv draw --pictures --out pictures.svg

A row is a class of `tinyconv/data/synthetic.py`, with its first training pictures. They are drawn
here as they are for training, made small, and stored in the file as one JPEG.
"""

from base64 import b64encode
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from tinyconv.data.synthetic import synthetic
from tinyconv.lab.svg_colours import plain_colours

SIDE, GAP, PER_CLASS, GUTTER, HEAD = 64, 4, 8, 108, 46
"""Pixels of a picture, and between two; pictures of a class; pixels of names and of the title."""

STYLE = """
svg{--paper:#fffefb;--ink:#22252b;--soft:#5d636e;--line:#dcd8cd}
@media(prefers-color-scheme:dark){svg{--paper:#1b1e25;--ink:#e6e7ea;--soft:#a3aab6;--line:#343943}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}.t{font-size:15px;font-weight:650}
.s{fill:var(--soft)}
""".strip()


def svg_of_pictures(seed: int = 0) -> str:
    """The first training pictures of each class for this seed, as the text of an SVG file."""
    train, _ = synthetic(PER_CLASS, 1, SIDE, seed)
    classes, step = len(train.class_names), SIDE + GAP
    pixels = np.asarray(train.images).reshape(classes, PER_CLASS, SIDE, SIDE, 3)
    sheet = pixels.transpose(0, 2, 1, 3, 4).reshape(classes * SIDE, PER_CLASS * SIDE, 3)
    file = BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=75)
    data = b64encode(file.getvalue()).decode()
    width, height = GUTTER + PER_CLASS * step + 12, HEAD + classes * step + 10
    body = []
    for row, name in enumerate(train.class_names):
        y = HEAD + row * step
        body.append(f'<text x="14" y="{y + SIDE // 2 + 4}">{escape(name)}</text>')
        for column in range(PER_CLASS):
            x = GUTTER + column * step
            # A window on the sheet.
            body.append(
                f'<svg x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" '
                f'viewBox="{column * SIDE} {row * SIDE} {SIDE} {SIDE}"><use href="#sheet"/></svg>'
            )
    return plain_colours(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
        f"<title>Drawn training pictures</title><style>{STYLE}</style>"
        f'<defs><image id="sheet" width="{PER_CLASS * SIDE}" height="{classes * SIDE}" '
        f'href="data:image/jpeg;base64,{data}"/></defs>'
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" '
        'fill="var(--paper)" stroke="var(--line)"/>'
        '<text class="t" x="14" y="22">Drawn training pictures</text>'
        f'<text class="s" x="14" y="38">{classes} classes, the first {PER_CLASS} of each, '
        f"seed {seed}; drawn at 256×256, shown at {SIDE}×{SIDE}</text>" + "".join(body) + "</svg>\n"
    )
