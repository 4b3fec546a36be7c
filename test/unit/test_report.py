"""The report page: what it shows, that it needs no other file, and how it looks on a large and a small screen."""
import base64
import html.parser
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest
from formulas import smooth

import eval as evaluation
import report
from bmn.data.annotations import Video
from bmn.errors import UserError
from bmn.options import with_defaults
from bmn.results.protocols import PROTOCOLS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
SCALE = 20
EPOCHS = [{"epoch": epoch, "train": dict.fromkeys(("total", "tem", "pem_reg", "pem_cls"), 2.0 - epoch / 4),
           "validation": dict.fromkeys(("total", "tem", "pem_reg", "pem_cls"), 2.5 - epoch / 4)} for epoch in range(4)]


@pytest.fixture
def job(tmp_path, monkeypatch, rng):
    """(options, evaluation, videos, maps_of): each video has two actions; v_4's proposals hit both, v_0's none."""
    monkeypatch.chdir(tmp_path)
    videos = {"v_%d" % index: Video(100.0, 100.0, 100.0) for index in range(5)}
    truth = {str(index): [(20.0, 40.0, "Doing <b>karate</b>"), (50.0, 90.0, "Polo")] for index in range(5)}
    proposals = {}
    for index in range(5):
        good = [[20, 40], [50, 90]][:(0, 1, 1, 1, 2)[index]]
        segments = np.array(good + [[first, first + 1] for first in range(12 - len(good))], float)
        proposals[str(index)] = np.column_stack([np.linspace(0.9, 0.1, len(segments)), segments])
    result = evaluation.Evaluation(truth, proposals, *evaluation.average_recall(truth, proposals),
                                   PROTOCOLS["activitynet"])
    asked = []

    def maps_of(names):
        asked.append(names)
        return [(smooth((2, SCALE, SCALE), 1), smooth((1, SCALE), 2)[0], smooth((1, SCALE), 3)[0]) for _ in names]
    maps_of.asked = asked
    os.mkdir("checkpoint")
    return with_defaults({"result_file": "output/result.json"}), result, videos, maps_of


class Page(html.parser.HTMLParser):
    """The texts and pictures of a page, and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.pictures, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data") and not value.startswith("data:"):
                self.fetched.append(value)
            elif name == "src":
                self.pictures.append(base64.b64decode(value.split(",", 1)[1]).decode())

    def handle_data(self, data):
        self.texts.append(data.strip())


def written(*job):
    with open(report.write_report(*job), encoding="utf-8") as handle:
        return handle.read()


def test_page_holds_the_figures_and_needs_no_other_file(job):
    _, result, _, maps_of = job
    text = written(*job)
    page = Page(text)
    for number, column in ((1, 0), (5, 4), (10, 9), (100, 99)):
        where = page.texts.index("AR@%d" % number)
        assert page.texts[where + 5] == "%.2f" % (100 * result.recall[:, column].mean())
    assert page.fetched == [] and "url(" not in text and "@import" not in text and "<script" not in text
    assert all(picture.count("<svg") == 1 and not re.search(r'href="(?!#|data:)', picture) for picture in page.pictures)
    assert len(page.pictures) == 2 + 3 * 2
    assert maps_of.asked == [["v_4", "v_2", "v_0"]]
    titles = [line for line in page.texts if " video: " in line]
    assert titles == ["Best video: v_4", "Median video: v_2", "Worst video: v_0"]


def test_losses_are_shown_for_the_network_that_they_belong_to(job, monkeypatch):
    monkeypatch.setattr(report, "_videos", lambda *_: "")      # their pictures take long, and are none of this
    with open("checkpoint/metrics.jsonl", "w") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in EPOCHS)
    opt, *rest = job
    assert "Losses of the training" in written(opt, *rest)
    assert "Losses of the training" not in written(dict(opt, pth_path="elsewhere/BMN_best.pth.tar"), *rest)
    with open("checkpoint/metrics.jsonl", "a") as handle:
        handle.write('{"epoch": 5}\n')
    before = written(dict(opt, pth_path="elsewhere/BMN_best.pth.tar"), *rest)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        report.write_report(*job)
    with open("output/report.html", encoding="utf-8") as handle:
        assert handle.read() == before


@pytest.mark.filterwarnings("error")
def test_labels_of_any_language_are_text_in_the_pictures(job, capsys):
    _, result, _, _ = job
    result.ground_truth["4"][0] = (*result.ground_truth["4"][0][:2], "\u8df3\u6c34 \udce9")
    page = Page(written(*job))
    assert any("\u8df3\u6c34 ?" in picture for picture in page.pictures)
    assert capsys.readouterr().err == ""


def test_a_video_of_windows_is_wide_and_has_another_picture_for_a_phone(job):
    opt, result, videos, _ = job
    text = written(opt, result, videos, lambda names: [(None, *smooth((2, 3000), 1)) for _ in names])
    page = Page(text)
    shapes = [re.search(r'viewBox="0 0 (\S+) (\S+)"', picture).groups() for picture in page.pictures[2:]]
    assert shapes == [("720", "360")] * 3
    narrow = re.findall(r'<source media="\(max-width: 600px\)" srcset="data:image/svg\+xml;base64,([^"]*)"', text)
    assert [b'viewBox="0 0 460.8 388.8"' in base64.b64decode(one) for one in narrow] == [True] * 3
    assert page.fetched == []


def test_pictures_have_short_numbers_and_whole_texts(job):
    opt, result, videos, maps_of = job
    label = 'M 1.23456 L 2.34567 x="0.123456" \n'
    result.ground_truth["4"][0] = (20.0, 40.0, label)
    pictures = Page(written(opt, result, videos, maps_of)).pictures
    assert any(html.escape(label.strip(), quote=False) in picture for picture in pictures)
    for picture in pictures:
        tags = re.findall("<(?:path|use|text) [^>]*>", picture)
        assert tags and not any(re.search(r"\.\d{2}", tag) for tag in tags)
        assert all(re.search(r' d="(M[-\d. ]+|[LHV][-\d. ]+|[CQ][-\d. ]+|z)+\s*"', tag) for tag in tags if " d=" in tag)


def drawn(svg):
    """What an SVG draws, in order: (tag, text, names, points of a path, attributes of the groups around)."""
    found = []

    def walk(element, around):
        tag = element.tag.split("}")[1]
        if tag == "g":
            around = around + [one for one in element.items() if one[0] != "id"]
        elif tag in ("path", "use", "text", "image", "clipPath", "rect"):
            names = [one for one in element.items() if one[0].endswith(("id", "clip-path", "href"))]
            found.append((tag, (element.text or "").strip(), names, points(element.get("d", "")), around))
        for inner in element:
            walk(inner, around)
    walk(xml.etree.ElementTree.fromstring(svg), [])
    return found


def points(path):
    """Corners of a path, each coordinate cut to a tenth."""
    at, found = [0.0, 0.0], []
    for letter, numbers in re.findall(r"([MLHVCQ])([^MLHVCQz]*)", path):
        for number in zip(*[iter(map(float, numbers.split()))] * (1 if letter in "HV" else 2)):
            at = {"H": [number[0], at[1]], "V": [at[0], number[0]]}.get(letter, list(number))
            found.append([int(one * 10 + (1e-6 if one > 0 else -1e-6)) for one in at])
    return found


def test_a_short_picture_draws_the_same(job, monkeypatch):
    """Only spaces, names of groups and digits are gone: no group lost what it is for, no corner moved."""
    whole, short = [], report._short
    monkeypatch.setattr(report, "_short", lambda svg: whole.append(svg) or short(svg))
    opt, result, videos, maps_of = job
    result.ground_truth["4"][0] = (20.0, 40.0, "a > < b &c  d")
    pictures = Page(written(opt, result, videos, maps_of)).pictures
    assert len(whole) == len(pictures)
    for before, after in zip(whole, pictures):
        assert drawn(before) == drawn(after.encode())
        assert len(after) < 0.9 * len(before)


def test_names_are_escaped(job):
    opt, result, videos, maps_of = job
    name = "v_<i>&"
    result.ground_truth["<i>&"], videos[name] = result.ground_truth.pop("4"), videos.pop("v_4")
    result.proposals["<i>&"] = result.proposals.pop("4")
    assert "Best video: " + name in Page(written(opt, result, videos, maps_of)).texts


def test_one_video_is_enough_and_one_without_proposals_is_shown(job):
    opt, result, videos, maps_of = job
    videos = {"v_3": videos["v_3"]}
    for name in "0124":
        del result.ground_truth[name]
    del result.proposals["3"]
    texts = Page(written(opt, result, videos, maps_of)).texts
    assert [line for line in texts if " video: " in line] == ["Best video: v_3"]


@pytest.mark.skipif(not BROWSER, reason="no chromium on this machine (apt-get install chromium)")
def test_a_browser_shows_it_on_a_laptop_and_a_phone(job, tmp_path):
    """In frames of both widths no text or picture sticks out, and every picture is drawn."""
    with open("checkpoint/metrics.jsonl", "w") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in EPOCHS)
    page = json.dumps(written(*job)).replace("</", "<\\/")
    (tmp_path / "frames.html").write_text("""<body style="margin: 0"><script>
const found = {};
for (const width of [360, 1366]) {
  const frame = document.createElement("iframe");
  frame.style = "border: 0; height: 3000px; width: " + width + "px";
  frame.srcdoc = %s;
  frame.onload = () => {
    const page = frame.contentDocument, pictures = [...page.images];
    found[width] = {
      wide: page.documentElement.scrollWidth, pictures: pictures.length,
      drawn: pictures.filter(one => one.naturalWidth > 0).length,
      out: [...page.querySelectorAll("*")].filter(one => one.getBoundingClientRect().right > width + 0.5).length,
      beside: pictures[0].getBoundingClientRect().top == pictures[1].getBoundingClientRect().top};
    document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>""" % page, encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--user-data-dir=" + str(tmp_path / "profile"), "--hide-scrollbars", "--window-size=1366,3000",
                 "--virtual-time-budget=20000"]
    dom = subprocess.run([BROWSER, *arguments, "--dump-dom", (tmp_path / "frames.html").as_uri()], check=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=180).stdout.decode()
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom).group(1)))
    whole = {"pictures": 9, "drawn": 9, "out": 0}
    assert found == {"360": dict(whole, wide=360, beside=False), "1366": dict(whole, wide=1366, beside=True)}
    picture = str(tmp_path / "page.png")
    subprocess.run([BROWSER, *arguments, "--screenshot=" + picture, (tmp_path / "output" / "report.html").as_uri()],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180)
    seen = matplotlib.image.imread(picture)[:, :, :3]
    assert seen.shape[:2] == (3000, 1366) and seen[:2600].std(axis=(1, 2)).mean() > 0.05


def test_videos_are_linked_to_a_page_that_plays_them(job, tmp_path):
    opt, result, videos, maps_of = job
    name = "v_4 <i>#"
    result.ground_truth["4 <i>#"], videos[name] = result.ground_truth.pop("4"), videos.pop("v_4")
    result.proposals["4 <i>#"] = result.proposals.pop("4")
    os.mkdir("films")
    for one in (name[2:] + ".webm", "v_2.mp4", "v_1.mp4"):
        (tmp_path / "films" / one).write_text("")
    text = written(dict(opt, videos="films"), result, videos, maps_of)
    links = Page(text).fetched
    assert links == ["videos.html#v_4%20%3Ci%3E%23", "videos.html#v_2"]         # v_0 has no file
    page = (tmp_path / "output" / "videos.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [one["src"] for one in data] == ["../films/4%20%3Ci%3E%23.webm", "../films/v_2.mp4"]
    best = result.proposals["4 <i>#"][np.argsort(-result.proposals["4 <i>#"][:, 0], kind="stable")]
    np.testing.assert_allclose(data[0]["proposals"], best, rtol=1e-4, atol=1e-3)
    assert len(data[0]["start"]) == SCALE and data[0]["actions"][0] == [20.0, 40.0, "Doing <b>karate</b>"]
    without_network = written(dict(opt, videos="films"), result)
    assert "videos.html#" in without_network


def test_a_report_without_files_of_videos_has_no_page(job, tmp_path):
    opt, *rest = job
    os.mkdir("films")
    assert Page(written(dict(opt, videos="films"), *rest)).fetched == []
    assert not (tmp_path / "output" / "videos.html").exists()


def test_a_ground_truth_of_other_videos_leaves_no_section_of_videos(job):
    opt, result, _, maps_of = job
    text = written(opt, result, {"v_x": Video(100.0, 100.0, 100.0)}, maps_of)
    assert "Best video" not in text and "Curves" in text
