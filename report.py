"""One page about a run, output/report.html: figures, curves and some videos, in a single file that works offline.

With --videos, output/videos.html beside it plays the videos that it shows.
"""
import base64
import html
import io
import json
import os
import re
import warnings
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

import eval as evaluation
from bmn.data.annotations import Video
from bmn.errors import UserError
from bmn.files import replacing
from bmn.inputs import open_text
from bmn.results import figures, pages, time_axis
from bmn.values import counted, video_id

FILE = "report.html"
PLAYED = "videos.html"  # the page that plays videos, beside the report
SHOWN = 10              # best proposals of a video that are drawn; the videos are ranked by the recall of so many


def write_report(opt: dict, result: evaluation.Evaluation, videos: Optional[Dict[str, Video]] = None,
                 maps_of: Optional[Callable[[List[str]], Sequence[Sequence[np.ndarray]]]] = None,
                 training: Optional[Dict[str, Video]] = None) -> str:
    """Write report.html to :func:`report_path`.

    Args:
        opt: complete dict; result_file, pth_path, onnx, videos and checkpoint_path are read, and metrics.jsonl in the
            latter.
        result: what evaluation.evaluation_proposal returned.
        videos: {name: Video} of the videos that were evaluated. None where only a result file is at hand: then the
            page has no figures of a network.
        maps_of: called with three names at most; returns for each (confidence map [2, T, T], start [T], end [T]); the
            map is None for a video that was cut into windows.
        training: the training videos, for the list of proposals that needs no features.

    Returns:
        the path of the page.

    Raises:
        UserError: the page cannot be written, or metrics.jsonl cannot be used.
    """
    path = report_path(opt)
    parts = [_summary(opt, result, videos, training or {}), _curves(opt, result, videos is not None),
             _videos(opt, result, videos, maps_of)]
    write_page(path, "BMN: temporal action proposals", parts)
    return path


def write_page(path: str, title: str, parts: Sequence[str]) -> None:
    """Write a page of ``parts``, HTML; its title is plain text.

    Raises:
        UserError: it cannot be written.
    """
    title = html.escape(title)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as handle:
        handle.write(PAGE % (title, title, "\n".join(parts)))


def report_path(opt: dict) -> str:
    """Where the page of a run goes: beside opt["result_file"]; where that is only read, into opt["output_dir"]."""
    folder = opt["output_dir"] if opt.get("mode") == "evaluate" else os.path.dirname(opt["result_file"])
    return os.path.join(folder, FILE)


def played_path(opt: dict) -> str:
    """Where the page that plays videos goes: beside the report, which links to it."""
    return os.path.join(os.path.dirname(report_path(opt)), PLAYED)


def _summary(opt, result, videos, training):
    """What was evaluated, and AR@AN and AUC, as papers report them, beside those of proposals that see no video."""
    numbers = result.protocol.numbers
    network = "Network <code>%s</code>, p" % html.escape(opt["onnx"] or opt["pth_path"]) if videos else "P"
    text = "%s, %s, figures in percent. %sroposals <code>%s</code>" % (
        counted(len(videos or result.ground_truth), "video"),
        counted(sum(map(len, result.ground_truth.values())), "annotated action"), network,
        html.escape(opt["result_file"]))
    measured = table(["AR@%d" % number for number in numbers] + ["AUC"], [_figures(result[2:5], numbers)], "headline")
    blind = evaluation.baselines(result.ground_truth, training, videos, result.protocol) if videos else {}
    rows = [[what[0].upper() + what[1:]] + _figures(curve, numbers) for what, curve in blind.items()]
    return "<p>%s</p>%s%s" % (text, measured, "<p>For comparison, proposals that look at no video:</p>" + table(
        [""] + ["AR@%d" % number for number in numbers] + ["AUC"], rows) if rows else "")


def _figures(curve, numbers):
    """AR@AN and AUC of (average numbers, mean recall, recall [H, points]), as text."""
    return ["%.2f" % (100 * evaluation.average_recall_at(curve[2], number)) for number in numbers] + [
        "%.2f" % evaluation.area_under_curve(curve[0], curve[1])]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "plain") -> str:
    """HTML of a table whose cells are HTML; ``style`` is plain or headline."""
    return "<table class=%s><tr>%s</tr>%s</table>" % (
        style, "".join("<th>%s</th>" % cell for cell in header),
        "".join("<tr>%s</tr>" % "".join("<td>%s</td>" % cell for cell in row) for row in rows))


def _curves(opt, result, of_a_network):
    """The curves of the whole evaluation, and of the training where its metrics.jsonl exists."""
    thresholds, numbers = result.protocol.recall_at, result.protocol.numbers
    cards = [card("Average recall against the average number of proposals",
                   figures.recall_by_number(*result[2:5], thresholds)),
             card("Recall against tIoU", figures.recall_by_tiou(result.recall, thresholds, numbers))]
    record = os.path.join(opt["checkpoint_path"], "metrics.jsonl")
    of_this_network = os.path.dirname(os.path.abspath(opt["pth_path"])) == os.path.abspath(opt["checkpoint_path"])
    if of_a_network and of_this_network and not opt["onnx"] and os.path.isfile(record):
        cards.append(card("Losses of the training", figures.training_curve(_read_epochs(record))))
    rows = [["%.2f" % threshold] + ["%.1f" % (100 * recall[number - 1]) for number in numbers]
            for threshold, recall in zip(thresholds, result.recall)]
    cards.append("<figure>%s<figcaption>Recall in percent, by tIoU and number of proposals</figcaption></figure>"
                 % table(["tIoU", *("%d" % number for number in numbers)], rows))
    return section("Curves", "", cards)


def _read_epochs(path):
    """The objects of metrics.jsonl."""
    try:
        with open_text(path, "the record of a training") as handle:
            epochs = [json.loads(line) for line in handle if line.strip()]
        for one in epochs:
            float(one["train"]["total"]), float(one["validation"]["total"])
        return epochs
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("%s is not the record of a training (%s: %s): remove it" % (path, type(error).__name__, error)
                        ) from None


def _videos(opt, result, videos, maps_of):
    """The best, the median and the worst video: time axis and, where there is a network, its confidence map."""
    thresholds = result.protocol.recall_at
    recall = evaluation.recall_of_videos(result.ground_truth, result.proposals, SHOWN, thresholds)
    names = {video_id(name): name for name in videos or result.ground_truth}
    known = sorted((name for name in result.ground_truth if video_id(name) in names), key=lambda name: -recall[name])
    if not known:
        return ""
    chosen = {}
    for title, rank in (("Best", 0), ("Median", len(known) // 2), ("Worst", len(known) - 1)):
        chosen.setdefault(known[rank], title)
    maps = maps_of([names[video_id(name)] for name in chosen]) if maps_of else [None] * len(chosen)
    files = pages.find_files(opt["videos"], [names[video_id(name)] for name in chosen]) if opt["videos"] else {}
    played, page = [], played_path(opt)
    sections = []
    for (name, title), its_maps in zip(chosen.items(), maps):
        truth, proposals = sorted(result.ground_truth[name]), result.proposals.get(name, np.empty((0, 3)))
        proposals = proposals[np.argsort(-proposals[:, 0], kind="stable")]
        if videos:
            seconds = videos[names[video_id(name)]].proposal_seconds
        else:               # nobody says how long the video is: as long as what happens in it
            seconds = max([end for _, end, _ in truth] + proposals[:SHOWN, 2].tolist())
        file, link = files.get(names[video_id(name)]), ""
        if file:
            played.append(pages.PageVideo(names[video_id(name)], file, seconds, proposals, truth,
                                          *(its_maps[1:] if its_maps else ())))
            link = '. <a href="%s">Play it</a>' % html.escape(pages.link_to(page, names[video_id(name)]))
        sections.append(section(
            "%s video: %s" % (title, names[video_id(name)]),
            "%s in %.0f seconds. Recall of the best %d proposals, mean over tIoU %g to %g: %.0f&nbsp;%%%s" % (
                counted(len(truth), "action"), seconds, SHOWN, thresholds[0], thresholds[-1], 100 * recall[name], link),
            _cards_of_a_video(seconds, its_maps, proposals / (1, seconds, seconds), truth)))
    if played:
        pages.write_page(page, played, "Videos of the report")
    return "\n".join(sections)


def _cards_of_a_video(seconds, maps, proposals, truth):
    if maps is None:
        return [card("Ground truth and the best proposals", time_axis.segments(seconds, proposals, truth))]
    confidence_map, start, end = maps
    if confidence_map is None:
        caption, drawn = "Boundary probabilities, ground truth and the best proposals", (start, end, proposals, truth)
        return [card(caption, time_axis.boundaries(seconds, *drawn, time_axis.WIDE),
                     time_axis.boundaries(seconds, *drawn))]
    curves, confidence = time_axis.prediction_in_two(seconds, start, end, confidence_map, proposals, truth)
    return [card("Boundary probabilities, ground truth and the best proposals", curves),
            card("Confidence of every pair of start and end", confidence)]


def section(title: str, text: str, cards: Sequence[str]) -> str:
    """HTML of a section: its title, which is plain text, some HTML, and the cards below it."""
    return "<section><h2>%s</h2>%s<div class=cards>%s</div></section>" % (
        html.escape(title), "<p>%s</p>" % text if text else "", "".join(cards))


def card(caption: str, figure: Any, on_a_phone: Any = None) -> str:
    """HTML of a figure and its caption, which is plain text; ``on_a_phone`` takes its place on a narrow screen."""
    narrow = '<source media="(max-width: 600px)" srcset="%s">' % _svg(on_a_phone) if on_a_phone else ""
    caption = html.escape(caption)
    return '<figure><picture>%s<img src="%s" alt="%s"></picture><figcaption>%s</figcaption></figure>' % (
        narrow, _svg(figure), caption, caption)


def _svg(figure):
    """The address of a figure as an SVG within the page. Its text is text: a browser has letters of every language."""
    import matplotlib
    buffer, fonts = io.BytesIO(), {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}      # else each has ten
    with matplotlib.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = _short(buffer.getvalue()).replace(b"</style>", b"text{font-family: 'DejaVu Sans', sans-serif}</style>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _short(svg):
    """The same picture without what no browser needs: spaces, names of groups, digits that nobody sees."""
    svg = re.sub(rb"<(path|use|text) [^>]*>", lambda tag: _short_tag(tag.group()), re.sub(rb">\s+<", b"><", svg))
    shown, ends = [], []            # without the groups that have no attributes; how each open group ends
    for part in re.split(rb"(</?g\b[^>]*>)", re.sub(rb'<g id="[^"]*"', b"<g", svg)):
        if part.startswith(b"<g") and not part.endswith(b"/>"):
            ends.append(b"" if part == b"<g>" else b"</g>")
        shown.append({b"<g>": b"", b"<g/>": b""}.get(part, ends.pop() if part == b"</g>" else part))
    return b"".join(shown)


def _short_tag(tag):
    """A tag with tenths of a point instead of millionths; in paths, H and V where a line is straight."""
    tag = re.sub(rb"\.0(?=[^\d.])", b"", re.sub(rb"(\.\d)\d+", rb"\1", tag))
    tag = re.sub(rb"\s*\b([MLCQ]) |([:;]) |\s+(?=z|\")", rb"\1\2", tag)
    tag = re.sub(rb' transform="rotate\(-?0 [^"]*"|;font-family:[^;"]*|;text-anchor:start', b"", tag)
    return re.sub(rb"M(\S+) (\S+)L(\S+) \2L\3 (\S+)L\1 \4z", rb"M\1 \2H\3V\4H\1z", tag)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<style>
body { margin: 0 auto; max-width: 1200px; padding: 0 1rem 3rem; background: #f4f5f7; color: #1c2330;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1.5rem 0 0.5rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.25rem; }
p { margin: 0.25rem 0 0.75rem; color: #4a5568; }
code { font-size: 0.9em; }
table { width: 100%%; border-collapse: collapse; background: #fff; border-radius: 8px; }
th, td { padding: 0.5rem 0.25rem; text-align: center; overflow-wrap: normal; }
th { font-weight: 500; font-size: clamp(0.6rem, 2.7vw, 0.85rem); color: #4a5568; }
.headline { max-width: 640px; }
.headline td { font-weight: 600; font-size: clamp(0.9rem, 3.8vw, 1.35rem); padding-top: 0; }
.plain { font-size: clamp(0.75rem, 3.4vw, 1rem); }
.plain th { padding: 0.25rem 0.15rem; }
.plain td { padding: 0.25rem 0.15rem; border-top: 1px solid #e5e8ee; font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 440px), 1fr)); }
figure { margin: 0; padding: 0.75rem; background: #fff; border-radius: 8px; }
figure img { display: block; width: 100%%; height: auto; }
@media (max-width: 480px) { body { padding: 0 0.5rem 2rem; } figure { padding: 0.5rem 0.25rem; } }
figcaption { margin-top: 0.25rem; font-size: 0.85rem; color: #4a5568; text-align: center; }
</style>
</head>
<body>
<h1>%s</h1>
%s
</body>
</html>
"""
