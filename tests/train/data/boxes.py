"""A font with boxes as its glyphs."""

import pathlib
from collections.abc import Mapping

from fontTools import fontBuilder
from fontTools.pens import ttGlyphPen


def save(
    path: pathlib.Path,
    characters: Mapping[str, str],
    widths: Mapping[str, int],
    *,
    family: str,
) -> None:
    """Write a font.

    Args:
      path: A .ttf file.
      characters: The glyph of each character.
      widths: The width of each glyph's box, which is 700 high; .notdef is among them.
      family: The name of the family.
    """
    builder = fontBuilder.FontBuilder(1000)
    builder.setupGlyphOrder(list(widths))
    builder.setupCharacterMap({ord(x): glyph for x, glyph in characters.items()})
    builder.setupGlyf({glyph: _box(width) for glyph, width in widths.items()})
    builder.setupHorizontalMetrics({x: (width, 0) for x, width in widths.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def _box(width: int):
    pen = ttGlyphPen.TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (width, 700), (width, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()
