"""Letters that matplotlib's own font lacks: another font has them, or one line says that none has."""
import io

import numpy as np
import pytest

from bmn.results import figures, fonts, time_axis

CHINESE = "\u8df3\u6c34"         # diving


@pytest.fixture(autouse=True)
def afresh():
    for cached in (fonts._installed, fonts._fonts, fonts._say):
        cached.cache_clear()


def figure_of(label):
    maps = np.random.RandomState(0).rand(2, 8, 8)
    return time_axis.prediction("v_" + label, 60.0, maps[0, 0], maps[0, 1], maps, np.array([[0.5, 0.1, 0.4]]),
                              [(3.0, 9.0, label)])


@pytest.mark.filterwarnings("error")
def test_letters_that_no_font_has_are_said_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fonts, "FALLBACKS", ())
    for name in ("a.png", "b.png"):
        figures.save(figure_of(CHINESE), str(tmp_path / name))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no font of this machine has the letters \u8df3 \u6c34" in lines[0]


@pytest.mark.filterwarnings("error")
def test_a_font_that_has_the_letters_draws_them(tmp_path, capsys, monkeypatch):
    own = fonts._fonts(("DejaVu Sans",))[0]
    other = fonts._fonts(("STIXGeneral",))[0]
    letter = next(chr(code) for code in other.get_charmap() if code > 0x200 and not own.get_char_index(code)
                  and chr(code).isalpha())
    monkeypatch.setattr(fonts, "FALLBACKS", ("no such font", "STIXGeneral"))
    figure = figure_of("label " + letter)
    figures.save(figure, str(tmp_path / "a.png"))
    assert capsys.readouterr().err == ""
    texts = [text for axes in figure.axes for text in axes.texts if letter in text.get_text()]
    assert texts and all(text.get_fontfamily()[-1] == "STIXGeneral" for text in texts)
    if not fonts._searches_the_list():
        return
    buffers = [io.BytesIO(), io.BytesIO()]
    figure.savefig(buffers[0], format="png")
    for text in texts:
        text.set_text(text.get_text().replace(letter, "\u25a1"))
    figure.savefig(buffers[1], format="png")
    assert buffers[0].getvalue() != buffers[1].getvalue()


def test_plain_labels_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "_missing", lambda letters, families: pytest.fail() if letters else "")
    figures.save(figure_of("Long jump"), str(tmp_path / "a.png"))


def test_a_name_of_odd_bytes_is_drawn(tmp_path):
    figures.save(figure_of("\udce9"), str(tmp_path / "a.png"))
    figures.save(figure_of("\udce9"), str(tmp_path / "a.svg"))
