"""Decimal text of many float32 values at once: the digits that ``repr`` gives, at a sixth of its cost.

``repr`` of a float writes the shortest decimal that reads back as the same float64, and of those the closest. For a
float32 value m * 2^q the decision needs only integers: V = m * 5^P * 2^(q+P) is the value with 17 digits before the
point, exact in 81 bits, and half a unit in the last place of a float64 is 5^P / 2^30 in the units of m * 5^P.
"""
import numpy as np

WIDTH = 28              # characters of a number and of the separator behind it; unused ones are NUL
DECADES = 11            # values from 1e-11 up to 1 take the fast way,
LOW = 33                # for m * 5^P is kept as two integers, of which the low one has this many bits

_POWERS = 5 ** np.arange(17, 17 + DECADES, dtype=np.int64)
_BOUNDS = 10.0 ** -np.arange(1, DECADES)
_QUADS = np.frombuffer(b"".join(b"%04d" % i for i in range(10000)), np.uint32)
_PREFIX = np.frombuffer(b"".join((b"0." + b"0" * j if j < 4 else b"").ljust(5, b"\0") for j in range(DECADES)),
                        np.uint8).reshape(DECADES, 5)
_SUFFIX = np.frombuffer(b"".join(b"\0\0\0\0" if j < 4 else b"e-%02d" % (j + 1) for j in range(DECADES)),
                        np.uint8).reshape(DECADES, 4)


def decimal_text(values, separator):
    """``repr`` of float32 values, each followed by a separator.

    Args:
        values: float32 [n].
        separator: one byte.

    Returns:
        uint8 [n, WIDTH] of ASCII characters, with NULs that are to be dropped.
    """
    value = values.astype(np.float64)
    decade = np.minimum(np.searchsorted(-_BOUNDS, -value), DECADES - 1)     # zeros behind the point
    fraction, exponent = np.frexp(value)
    mantissa = (fraction * (1 << 24)).astype(np.int64)
    power = _POWERS[decade]
    shift = 24 - exponent - 17 - decade                                     # V = mantissa * power / 2^shift
    with np.errstate(over="ignore"):
        low = mantissa * (power & ((1 << LOW) - 1))
        high = mantissa * (power >> LOW) + (low >> LOW)
        low &= (1 << LOW) - 1
        usable = (value >= 1e-11) & (value < 1)     # (no power of two among them meets the denser floats below it)
        shift = np.where(usable, shift, 7)
        digits = (high << (LOW - shift)) + (low >> shift)                   # trunc(V), 17 digits
    rest = low & ((np.int64(1) << shift) - 1)
    half_unit = power >> 30

    unit = np.int64(1) << shift
    result, dropped = digits + (2 * rest > unit), np.zeros(len(value), np.int8)
    usable &= 2 * rest != unit
    for places in (1, 2, 3):                    # may the last 1, 2, 3 digits go?
        ten = 10 ** places
        tail = digits - digits // ten * ten     # % takes three times as long
        below = tail * unit + rest              # distance to the multiple of ten below
        above = ten * unit - below
        fits = np.minimum(below, above) <= half_unit
        if places == 3:
            usable &= ~fits
        else:
            usable &= ~fits | (below != above)
            result = np.where(fits, digits - tail + ten * (below > above), result)
            dropped[fits] = places

    text = np.zeros((len(value), WIDTH), np.uint8)
    upper, lower = result // 10 ** 8, result % 10 ** 8
    quads = np.stack([upper // 10 ** 4 % 10 ** 4, upper % 10 ** 4, lower // 10 ** 4, lower % 10 ** 4], axis=1)
    text[:, :5] = _PREFIX[decade]
    text[:, 5] = upper // 10 ** 8 + ord("0")
    text[decade >= 4, 6] = ord(".")
    text[:, 7:23] = _QUADS[quads].view(np.uint8)
    text[dropped >= 1, 22] = 0
    text[dropped == 2, 21] = 0
    text[:, 23:27] = _SUFFIX[decade]
    for index in np.flatnonzero(~usable):
        text[index, :27] = np.frombuffer(repr(float(value[index])).encode().ljust(27, b"\0"), np.uint8)
    text[:, 27] = ord(separator)
    return text
