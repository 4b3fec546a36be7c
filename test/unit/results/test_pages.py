"""The page of videos and proposals, in a browser: it plays, jumps, filters, sorts, saves, and is readable anywhere."""
import csv
import json
import os
import re

import clips
import numpy as np
import pytest
from browser import BROWSER, Browser

from bmn.results.pages import PageVideo, find_files, link_to, write_page

SECONDS = 12.0
NAME, ODD = "v_clip #1 <b>50%</b>, \"x\"", "</script><script>alert(1)</script>&amp;"


def proposals(count=40, seconds=SECONDS, seed=0):
    """[n, 3] (score, start, end), best first."""
    rng = np.random.RandomState(seed)
    start = rng.rand(count) * seconds * 0.7
    return np.stack([np.sort(rng.rand(count))[::-1] * 0.8, start, start + 0.4 + rng.rand(count) * 2], 1)


def page_videos(folder):
    actions = [(1.0, 4.5, "Juggling clubs"), (3.0, 3.2, ODD), (9.0, 12.0, "Pole vault & more")]
    curve = np.abs(np.sin(np.arange(50)))
    return [PageVideo(NAME, os.path.join(str(folder), "films", NAME + ".mp4"), SECONDS, proposals(), actions, curve,
                      curve[::-1]),
            PageVideo(ODD, None, 4000.0, proposals(3, 4000, 1)), PageVideo("empty", None, 10.0, np.empty((0, 3)))]


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_the_page_holds_everything_and_is_one_file(tmp_path):
    write_page(str(tmp_path / "page.html"), page_videos(tmp_path), "A <title>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)', text)
    assert text.count("</script>") == 2 and "<title>A &lt;title&gt;</title>" in text
    first, second, third = data_of(tmp_path / "page.html")
    assert (first["name"], second["name"]) == (NAME, ODD) and third["proposals"] == []
    assert first["src"] == "films/v_clip%20%231%20%3Cb%3E50%25%3C/b%3E%2C%20%22x%22.mp4" and second["src"] is None
    np.testing.assert_allclose(first["proposals"], proposals(), atol=6e-4)
    assert first["actions"][1] == [3.0, 3.2, ODD] and len(first["start"]) == 50 and second["start"] == []


@pytest.mark.parametrize("name, address", [("a:b.mp4", "a%3Ab.mp4"), ("\u8df3.mp4", "%E8%B7%B3.mp4"),
                                           (os.fsdecode(b"\xff.mp4"), "%FF.mp4"), ("../x/a b.mp4", "../x/a%20b.mp4")])
def test_addresses_are_relative_and_keep_any_name(tmp_path, name, address):
    folder = tmp_path / "pages"
    path = os.path.join(str(folder), name)
    write_page(str(folder / "page.html"), [PageVideo("a", path, 1.0, np.empty((0, 3)))])
    assert data_of(folder / "page.html")[0]["src"] == address
    assert link_to(str(folder / "p q.html"), "a #b") == "p%20q.html#a%20%23b"


def test_files_of_videos_are_found_by_their_ids(tmp_path):
    os.makedirs(str(tmp_path / "train"))
    for name in ("a.mkv", "a.mp4", "v_b.avi", "c.txt", "train/v_d.webm"):
        (tmp_path / name).write_text("")
    found = find_files(str(tmp_path), ["v_a", "b", "c", "d", "e"])
    assert {name: os.path.relpath(path, str(tmp_path)) for name, path in found.items()} == {
        "v_a": "a.mp4", "b": "v_b.avi", "d": os.path.join("train", "v_d.webm")}


needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a page, and the video of its first entry beside it."""
    pytest.importorskip("av", reason="the video of this test is made by PyAV (requirements-video.txt)")
    folder = tmp_path_factory.mktemp("page")
    os.makedirs(os.path.dirname(str(folder / "films" / (NAME + ".mp4"))))
    clips.write(folder / "films" / (NAME + ".mp4"), int(SECONDS * 25), 25, size=(320, 180), g=25)
    write_page(str(folder / "page.html"), page_videos(folder))
    return folder


@pytest.fixture
def page(folder):
    with Browser(folder) as browser:
        browser.screen(1366, 800)
        browser.open((folder / "page.html").as_uri())
        browser.until("player.readyState >= 2")
        yield browser
        assert browser.complaints() == []
        assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests())


def rows(page):
    """[[rank, start, end, length, score]] of the table as it is shown, in text."""
    return page.value("[...document.querySelectorAll('#rows tr')].map(row => "
                      "[...row.cells].map(one => one.textContent))")


def slide(page, selector, value):
    """Move a slider with the arrow keys, as a user of the keyboard does, until it has at least ``value``."""
    page.value("document.querySelector('%s').focus()" % selector)
    page.key("Home")
    until = 2000
    while float(page.value("document.querySelector('%s').value" % selector)) < value and until:
        page.key("ArrowRight")
        until -= 1


@needs_browser
def test_clicks_and_keys_jump_and_play(page):
    want = proposals()
    page.value("window.seeks = []; player.addEventListener('seeking', () => seeks.push(player.currentTime))")
    page.click("#rows tr:nth-child(3) td:nth-child(2)")
    page.until("!player.paused && player.currentTime > %f" % want[2, 1])
    assert abs(page.value("seeks[0]") - want[2, 1]) < 0.1
    page.until("player.paused")                                             # at the end of its proposal
    assert want[2, 2] - 0.1 < page.value("player.currentTime") < want[2, 2] + 0.3
    page.click(".bar[data-rank='5']")
    page.until("seeks.length > 1 && !player.paused")
    assert abs(page.value("seeks[1]") - want[4, 1]) < 0.1
    for key, rank in (("n", 6), ("n", 7), ("p", 6)):
        before = page.value("seeks.length")
        page.key(key)
        page.until("seeks.length > %d" % before)
        assert abs(page.value("seeks[seeks.length - 1]") - want[rank - 1, 1]) < 0.1
        assert page.value("document.querySelector('#rows .chosen').dataset.rank") == str(rank)
    page.until("!player.paused")
    page.key(" ", "Space")
    page.until("player.paused")
    page.key(" ", "Space")
    page.until("!player.paused")
    page.click("#next")
    page.until("document.querySelector('#rows .chosen').dataset.rank == '7'")
    page.until("!player.paused")
    page.key(" ", "Space")          # not the button that the mouse has pressed
    page.until("player.paused")
    assert page.value("document.querySelector('#rows .chosen').dataset.rank") == "7"
    box = page.value("(box => [box.x, box.y, box.width])(axis.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=box[0] + box[2] / 2, y=box[1] + 20, button="left",
                  clickCount=1)
    page.until("Math.abs(player.currentTime - %f) < 0.1" % (SECONDS / 2))


@needs_browser
def test_with_the_keyboard_alone(page):
    for _ in range(40):
        page.key("Tab")
        if page.value("document.activeElement.title == 'play proposal 2'"):
            break
    page.key("Enter")
    page.until("document.querySelector('#rows .chosen').dataset.rank == '2' && !player.paused")
    assert page.value("document.activeElement.title") == "play proposal 2"


@needs_browser
def test_filters_sorting_and_what_is_saved(page, folder):
    want = [[rank, *row] for rank, row in enumerate(proposals().tolist(), 1)]
    assert [row[0] for row in rows(page)] == [str(rank) for rank in range(1, 11)]
    assert page.value("document.querySelectorAll('.bar').length") == 10
    slide(page, "#number", 25)
    assert [int(row[0]) for row in rows(page)] == list(range(1, 26))
    slide(page, "#score", 0.5)
    least = float(page.value("document.getElementById('score').value"))
    kept = [row for row in want[:25] if row[1] >= least]
    assert 3 < len(kept) < 25 and [int(row[0]) for row in rows(page)] == [row[0] for row in kept]
    assert page.value("document.querySelectorAll('.bar').length") == len(kept)
    for key, column in (("start", 2), ("end", 3), ("score", 1)):
        for _ in range(2):
            page.click("th[data-key=%s] button" % key)
            down = page.value("document.querySelector('th[data-key=%s]').ariaSort" % key) == "descending"
            order = sorted(kept, key=lambda row: row[column], reverse=down)
            assert [int(row[0]) for row in rows(page)] == [row[0] for row in order]
    shown = [int(row[0]) for row in rows(page)]
    page.click("#csv")
    page.click("#json")
    stem = "v_clip_1_b_50_b_x_"
    for ending in (".csv", ".json"):
        until_there(page, folder / (stem + ending))
    with open(str(folder / (stem + ".csv")), newline="", encoding="utf-8") as handle:
        saved = list(csv.DictReader(handle))
    assert [int(row["rank"]) for row in saved] == shown and {row["video"] for row in saved} == {NAME}
    for row in saved:
        score, start, end = proposals()[int(row["rank"]) - 1]
        assert [float(row[key]) for key in ("start", "end", "score")] == pytest.approx([start, end, score], abs=6e-4)
    found = json.loads((folder / (stem + ".json")).read_text(encoding="utf-8"))["results"][NAME]
    assert [one["segment"] for one in found] == [[float(row["start"]), float(row["end"])] for row in saved]


def until_there(page, path):
    page.until("new Promise(done => setTimeout(() => done(true), 50))")
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return
        page.value("new Promise(done => setTimeout(done, 50))")
    raise AssertionError("%s was not saved" % path)


@needs_browser
def test_names_and_labels_stay_text_and_several_videos_are_a_list(page):
    assert page.value("document.getElementById('name').textContent") == NAME
    labels = page.value("[...document.querySelectorAll('svg .label')].map(one => one.textContent)")
    assert labels == ["Juggling clubs", ODD, "Pole vault & more"]
    assert page.value("document.querySelectorAll('script, b').length") == 2
    page.value("document.getElementById('videos').focus()")
    page.key("v"), page.key("<")
    page.value("document.getElementById('videos').value = 1; document.getElementById('videos').onchange()")
    page.until("document.getElementById('name').textContent == %s" % json.dumps(ODD))
    assert page.value("player.hidden && document.querySelector('#trouble').textContent") == (
        "There is no file of this video.")
    assert len(rows(page)) == 3 and page.value("document.getElementById('play').disabled")
    page.value("location.hash = '#empty'")
    page.until("document.getElementById('name').textContent == 'empty'")
    page.key("n")
    assert rows(page) == []
    page.value("location.hash = '#%s'" % link_to("p", NAME).partition("#")[2].replace("'", "%27"))
    page.until("document.getElementById('name').textContent == %s && player.readyState >= 2" % json.dumps(NAME))
    assert len(rows(page)) == 10


@needs_browser
def test_a_video_that_the_browser_cannot_play_is_told(folder):
    (folder / "broken.mp4").write_bytes(b"no video")
    write_page(str(folder / "broken.html"), [PageVideo("a", str(folder / "broken.mp4"), 5.0, proposals(3, 5))])
    with Browser(folder) as browser:
        browser.open((folder / "broken.html").as_uri())
        browser.until("!document.getElementById('trouble').hidden")
        assert browser.value("document.getElementById('trouble').textContent") == (
            "This browser cannot play broken.mp4.")


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1366])
def test_it_fits_the_screen_and_can_be_read(page, width, dark):
    page.screen(width, 800, dark, phone=width < 800)
    page.until("innerWidth == %d && axis.viewBox.baseVal.width == axis.clientWidth" % width)
    assert page.value("document.documentElement.scrollWidth") <= width
    out = "[...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > innerWidth + 0.5)"
    assert page.value(out + ".map(one => one.outerHTML)") == []
    assert page.value(contrast("#name", "body")) > 7
    assert page.value(contrast("#count", "#list")) > 4.5 and page.value(contrast("td:nth-child(3)", "#list")) > 7
    boxes = page.value("[...document.querySelectorAll('svg .label')].map(one => one.getBoundingClientRect().toJSON())")
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            beside = one["left"] >= other["right"] or other["left"] >= one["right"]
            assert beside or abs(one["top"] - other["top"]) >= one["height"] - 4
    beside = page.value("document.getElementById('list').getBoundingClientRect().top < "
                        "document.getElementById('film').getBoundingClientRect().bottom")
    assert beside == (width > 800)


def contrast(text, ground):
    """JavaScript: the contrast of a text with the colour behind it, by the rule of WCAG."""
    return """(() => {
      const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(one => one / 255)
        .map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const both = [light(getComputedStyle(document.querySelector('%s')).color),
                    light(getComputedStyle(document.querySelector('%s')).backgroundColor)].sort((a, b) => b - a);
      return (both[0] + 0.05) / (both[1] + 0.05); })()""" % (text, ground)
