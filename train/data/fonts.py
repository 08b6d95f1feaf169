"""The free fonts of this machine, and pictures of their characters.

The fonts come with matplotlib (DejaVu, STIX) or lie under `/usr/share/fonts`.
`PACKAGES` names packages of Debian and Ubuntu with many more; their licences let anyone
use and share them, and each face carries its own.

Libraries for fonts are imported on first use: a machine that only trains on the
pictures need not have them. Runs on the host.
"""

import collections
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

PACKAGES = (
    "fonts-arphic-ukai fonts-arphic-uming fonts-averia-sans-gwf fonts-bpg-georgian "
    "fonts-breip fonts-bwht fonts-cmu fonts-comfortaa fonts-comic-neue "
    "fonts-dancingscript fonts-dejavu fonts-deva-extra fonts-dkg-handwriting "
    "fonts-droid-fallback fonts-ebgaramond fonts-femkeklaver fonts-freefont-ttf "
    "fonts-gfs-didot fonts-hack fonts-hosny-amiri fonts-inconsolata "
    "fonts-ipafont-gothic fonts-ipafont-mincho fonts-isabella fonts-junicode "
    "fonts-kacst fonts-lato fonts-liberation fonts-linuxlibertine fonts-lobster "
    "fonts-nanum fonts-noto-core fonts-oldstandard fonts-open-sans fonts-paratype "
    "fonts-quattrocento fonts-sil-andika fonts-sil-charis fonts-sil-gentiumplus"
)
"""The packages for `apt-get install`, for the shipped sets and the shipped encoder."""

SIZE = 48
"""The side of a picture, in pixels."""

_INK = 40  # The longer side of what is drawn: the rest is a margin on both sides.
_STEP = 17  # Between levels of grey: with 16 of them, files are half as large.
_DRAWN_AT = 96  # Drawn larger and made smaller, so that thin strokes keep their weight.

# Their characters are not what their code points say: TeX's own encodings, pictures of
# keys, parts of tall brackets, one picture for a whole block.
_NOT_TEXT = ("Last Resort", "Linux Biolinum Keyboard", "STIXNonUnicode", "STIXSize")
_TEX = frozenset({"cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10"}) | {
    "cmti10",
    "cmtt10",
}

# Another's letters under a name of their own.
_DERIVED = {"BPG DejaVu": "DejaVu Sans", "Hack": "DejaVu Sans"}

# A glyph that serves more characters stands for what the font lacks.
_MOST_CHARACTERS_OF_A_GLYPH = 8


class Face(NamedTuple):
    """One style of a font family.

    Attributes:
      path: The font's file.
      index: The number of the face in its file.
      family: The family, such as `DejaVu Sans`.
      style: The style, such as `Bold Oblique`.
      licence: The first line of what the font says of it.
      characters: The characters with a glyph.
    """

    path: pathlib.Path
    index: int
    family: str
    style: str
    licence: str
    characters: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.family}/{self.style}"


def folders() -> tuple[pathlib.Path, ...]:
    """Return the folders to search for fonts."""
    import matplotlib as mpl

    shipped = pathlib.Path(mpl.get_data_path()) / "fonts" / "ttf"
    return shipped, pathlib.Path("/usr/share/fonts")


def find(places: Sequence[pathlib.Path]) -> list[Face]:
    """Find the faces below `places`, by name; of two with one name, the first.

    Raises:
      ValueError: if there are none.
    """
    found: dict[str, Face] = {}
    for place in places:
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in {".ttf", ".otf", ".ttc"}:
                for face in _faces(path):
                    found.setdefault(face.name, face)
    if not found:
        raise ValueError(
            f"No fonts (.ttf, .otf, .ttc) in {', '.join(map(str, places))}."
        )
    return sorted(found.values(), key=lambda face: face.name)


def design(name: str) -> str:
    """Return the design of a face by its name.

    Faces of one design look alike: `Noto Sans Thai/Bold` is of the design `Noto Sans`.
    """
    family = name.split("/")[0]
    words = " ".join(family.split()[:2])
    return _DERIVED.get(words, words)


def draw(
    face: Face, characters: Iterable[str]
) -> dict[str, UInt8[np.ndarray, "48 48"]]:
    """Draw those of the `characters` in the face, white on black.

    A drawing fills `_INK` pixels with its longer side and is centred, so that a
    class is a shape and not a size. A character without ink is left out.
    """
    wanted = [x for x in characters if x in face.characters]
    pictures = ((x, _picture(face, x)) for x in wanted)
    return {x: picture for x, picture in pictures if picture is not None}


def _faces(path: pathlib.Path) -> Iterator[Face]:
    from fontTools import ttLib

    several = path.suffix.lower() == ".ttc"
    with (ttLib.TTCollection if several else ttLib.TTFont)(path, lazy=True) as opened:
        fonts = opened.fonts if isinstance(opened, ttLib.TTCollection) else [opened]
        # A collection shares one file: the index tells its faces apart.
        for index, font in enumerate(fonts):
            face = _face(path, index, font)
            if face.family not in _TEX and not face.family.startswith(_NOT_TEXT):
                yield face


def _face(path: pathlib.Path, index: int, font: Any) -> Face:
    def text(*ids: int) -> str:
        return next((x for i in ids if (x := font["name"].getDebugName(i))), "")

    return Face(
        path=path,
        index=index,
        family=text(16, 1),
        style=text(17, 2),
        licence=next(iter(text(13, 14, 0).strip().splitlines()), "").strip(),
        characters=_characters(font.getBestCmap() or {}),
    )


def _characters(cmap: dict[int, str]) -> frozenset[str]:
    """Return the characters with a glyph to themselves, or nearly.

    A character drawn as an empty box is not in a character map.
    """
    # One glyph for many characters is the font's replacement box.
    uses = collections.Counter(cmap.values())
    return frozenset(
        chr(code)
        for code, glyph in cmap.items()
        if uses[glyph] <= _MOST_CHARACTERS_OF_A_GLYPH
    )


@functools.lru_cache(maxsize=1)
def _font(path: pathlib.Path, index: int) -> Any:
    from PIL import ImageFont

    # The other engine of Pillow is there on some machines only.
    engine = ImageFont.Layout.BASIC
    return ImageFont.truetype(path, _DRAWN_AT, index=index, layout_engine=engine)


def _picture(face: Face, character: str) -> UInt8[np.ndarray, "48 48"] | None:
    from PIL import Image, ImageDraw

    font = _font(face.path, face.index)
    left, top, right, bottom = map(int, font.getbbox(character))
    drawn = Image.new("L", (max(0, right - left), max(0, bottom - top)))
    ImageDraw.Draw(drawn).text((-left, -top), character, fill=255, font=font)
    if (box := drawn.getbbox()) is None:
        return None
    drawn = drawn.crop(box)
    ratio = _INK / max(drawn.size)
    # At least one pixel: very flat characters would vanish.
    width, height = (max(1, round(x * ratio)) for x in drawn.size)
    picture = Image.new("L", (SIZE, SIZE))
    corner = ((SIZE - width) // 2, (SIZE - height) // 2)
    # Centred, so that position tells nothing about the class.
    picture.paste(drawn.resize((width, height), Image.Resampling.BILINEAR), corner)
    return np.rint(np.asarray(picture) / _STEP).astype(np.uint8) * np.uint8(_STEP)
