"""What values in people's files mean: numbers, labels and the ids of videos. Each rule is written here once."""
import math
from typing import Any, Dict, Iterable, Optional

from bmn.errors import UserError


def number(value: Any) -> Optional[float]:
    """A finite number from a JSON or CSV file, or text that is one ("18.6"); None for anything else, true included."""
    if isinstance(value, str) and "_" not in value:         # Python alone takes 1_0 for 10
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:       # a whole number too large for a float
        return None


def seconds_text(value: float, digits: int = 3) -> str:
    """A number of seconds to so many digits, from a thousand on as a whole number: "9.75", "1340"."""
    return "%.0f" % value if abs(value) >= 1000 else "%.*g" % (digits, value)


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 video", "2 videos", "2 classes"."""
    return "%d %s%s" % (count, noun, "" if count == 1 else "es" if noun.endswith("s") else "s")


def label_text(value: Any) -> str:
    """The label in a JSON file as text: text as it is, a whole number as its digits, null as "".

    Raises:
        ValueError: it is something else; the text of the error fits into a sentence.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError("label %.80r is neither text nor a whole number" % (value,))


def video_id(name: str) -> str:
    """The id of a video: its name without the prefix v_. Names with the same id are the same video."""
    return name[2:] if name.startswith("v_") else name


def by_id(names: Iterable[str], source: str) -> Dict[str, str]:
    """{id: name} of the names of videos; ``source`` names the file in the error message.

    Raises:
        UserError: two different names have the same id, so that nobody knows which of them another file means.
    """
    named = {}
    for name in names:
        other = named.setdefault(video_id(name), name)
        if other != name:
            raise UserError("%s has %s and %s, and both are video %s, because the prefix v_ makes no difference: "
                            "rename one of them" % (source, other, name, video_id(name)))
    return named
