"""Letters that matplotlib's own font does not have, such as those of Chinese labels.

matplotlib takes every letter from the first family of a list that has it (since 3.6), but by default the list has one
family. Here the families of this machine that have many letters are added, and what none of them has is said in one
line.
"""
import contextlib
import functools
import re
import sys
import warnings
from typing import Any, Iterator, List

# From Linux distributions, Windows and macOS; the first that is installed and has a letter is taken.
FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC",
             "Source Han Sans SC", "Source Han Sans CN", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
             "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Heiti SC",
             "AR PL UMing CN", "AR PL UKai CN", "Arial Unicode MS", "Noto Sans", "Unifont")


@contextlib.contextmanager
def all_letters(figure: Any) -> Iterator[None]:
    """Within the block, ``figure`` is written with letters from every font that has them.

    A letter that no font has becomes a box, and a line on stderr says so, once.
    """
    from matplotlib import rcParams
    from matplotlib.text import Text
    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    missing = _missing("".join(text.get_text() for text in texts), tuple(rcParams["font.family"]))
    if missing:
        families = tuple(rcParams["font.family"]) + _installed()
        if not _searches_the_list():        # then it takes the first family, whatever letters it has
            families = tuple(name for name in _installed() if not _missing(missing, (name,)))[:1] or families[:1]
        for text in texts:
            text.set_fontfamily(list(families))
        missing = _missing(missing, families)
    if missing:
        _say("no font of this machine has the letters %s: they are boxes in the pictures, but not in the report; "
             "install a font that has them, such as Noto Sans CJK" % " ".join(missing[:8]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _searches_the_list():
    import matplotlib
    return tuple(map(int, re.findall(r"\d+", matplotlib.__version__)[:2])) >= (3, 6)


@functools.lru_cache(maxsize=1)
def _installed():
    from matplotlib.font_manager import fontManager
    found = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in found)


def _missing(letters: str, families) -> str:
    """Those of ``letters`` that no font of the ``families`` has, each once."""
    fonts = _fonts(families)
    return "".join(letter for letter in dict.fromkeys(letters) if letter.isprintable() and not letter.isspace()
                   and not any(font.get_char_index(ord(letter)) for font in fonts))


@functools.lru_cache(maxsize=8)
def _fonts(families) -> List[Any]:
    from matplotlib.font_manager import FontProperties, findfont, get_font
    return [get_font(findfont(FontProperties(family=[family]))) for family in families]


@functools.lru_cache(maxsize=None)
def _say(sentence):
    print(sentence, file=sys.stderr, flush=True)
