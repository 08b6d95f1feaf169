"""Sets mathematics as MathML, which browsers draw by themselves: no script, no network.

`html_math_renderer = "mathml"` selects it.
"""

import re

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

_CAPITAL = re.compile(r"<mi>(?=&#x0*3[9A]|[\u0391-\u03a9])")


def convert(formula: str, display: str = "inline") -> str:
    """Return a formula as MathML, with upright Greek capitals as LaTeX has them."""
    text = latex2mathml.converter.convert(formula, display=display)
    return _CAPITAL.sub('<mi mathvariant="normal">', text)


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula inside a line."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a formula on a line of its own, which scrolls where it is too wide."""
    self.body.append('<div class="math">')
    self.body.append(convert(node.astext(), display="block"))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(inline, None),
        block_renderers=(block, None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
