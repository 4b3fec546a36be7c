"""Compare two result files, action by action, as a page: how good each is, and where they differ most.

    python3 tools/compare_results.py ours.json theirs.json --ground_truth activity_net_1_3_new.json

A and B are files in ActivityNet's result form, as this program, mmaction2 and OpenTAD write them. Without labels they
hold proposals; with labels they hold detections as well. The page shows AR@AN and AUC, and mAP where rows are labelled:
of everything, by the length of the action (thirds of the actions), and by class. Then come the videos and the actions
where A and B differ most, with their time axes. It is one file, which needs no network.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bmn.errors import UserError, command_line, run_as_program
from bmn.options import OPTIONS, Parser, with_defaults

TRUTH = ("ground_truth", "video_anno", "video_info", "validation_subset", "blocked", "protocol")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A", help="result file")
    parser.add_argument("second", metavar="B", help="result file")
    parser.add_argument("--output", default="./output/comparison.html", help="the page (default: %(default)s)")
    options = parser.add_argument_group("what they are measured against, and how (as in main.py)")
    for name in TRUTH:
        option = OPTIONS[name]
        how = dict(option.check, nargs="+") if option.several else option.check
        options.add_argument("--" + name, help="%s (default: %s)" % (option.help, option.default or "none"), **how)
    return parser.parse_args()


if __name__ == "__main__":      # before the imports that take seconds
    ARGUMENTS = command_line(parse_arguments)

import html
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import detection
import eval as evaluation
from bmn.data.annotation_files import paths_of
from bmn.data.ground_truth import GroundTruth, ground_truth_file, ground_truth_of
from bmn.data.segments import tiou
from bmn.files import check_outputs
from bmn.inputs import check_input
from bmn.results import figures, time_axis
from bmn.results.protocols import PROTOCOLS, Protocol
from bmn.results.result_files import odd_times, read_both
from bmn.values import counted, seconds_text
from report import SHOWN, card, section, table, write_page

AMONG = 100         # proposals of a video on average, for recall by class and by tIoU
VIDEOS = 3          # that are drawn where A is better, and as many where B is
ACTIONS = 10        # that are listed, likewise
FIRST = 15          # classes that are shown at once
NO_FIGURE = "&ndash;"


class Result(NamedTuple):
    """A result file, measured.

    Attributes:
        letter, name: "A" or "B", and the name of the file.
        proposals: {id: float64 [n, 3]} (score, start, end in seconds).
        numbers: average numbers of proposals, [points].
        first, looked_at: int [H, G] and [G, points], of each action, as evaluation.hits_by_number returns them.
        precision: {label: average precision [tIoU of the protocol]}, None where there are no classes.
        remarks: sentences about the file.
    """
    letter: str
    name: str
    proposals: Dict[str, np.ndarray]
    numbers: np.ndarray
    first: np.ndarray
    looked_at: np.ndarray
    precision: Optional[Dict[str, np.ndarray]]
    remarks: List[str]


def measure(letter: str, path: str, name: str, ground_truth: GroundTruth, protocol: Protocol) -> Result:
    """Read and measure a result file, whose ``name`` is shown.

    Raises:
        UserError: it is of another form, or has no proposal of the videos of the ground truth.
    """
    source = "result file %s" % path
    actions, ambiguous = protocol.split(ground_truth.actions)
    proposals, detections = read_both(path)
    proposals, precision = ground_truth.aligned(proposals, source), None
    missed, remarks = evaluation.count_missed(actions, proposals, source), []
    if missed:
        remarks.append("%s: no proposals for %d of %s: counted as missed"
                       % (letter, missed, counted(len(actions), "video")))
    others = sum(len(rows) for name, rows in proposals.items() if name not in actions)
    if others:
        remarks.append("%s: %s of videos that are not measured count in the average number, as the protocol has it"
                       % (letter, counted(others, "proposal")))
    remarks += odd_times(proposals, actions, ground_truth.lengths, letter)
    if detections is not None:
        detections = ground_truth.aligned(detections, source)
        labels = {row[0] for rows in detections.values() for row in rows}
        if labels & {label for its in actions.values() for _, _, label in its}:
            precision = detection.average_precisions(actions, detections, protocol, ambiguous)
            remarks.append("%s: its rows have labels; a segment with two labels counts as two proposals" % letter)
        else:
            remarks.append("%s: its labels, such as %s, are no classes of the ground truth, so there is no mAP"
                           % (letter, ascii(sorted(labels)[0])))
    return Result(letter, name, proposals, *evaluation.hits_by_number(
        actions, proposals, protocol.points, protocol.recall_at, protocol.points), precision, remarks)


def recall_rows(results: Sequence[Result], chosen: np.ndarray, numbers: Sequence[int]) -> List[tuple]:
    """[(AR@AN or AUC, that of A, that of B)] in percent, of the actions that are ``chosen``, bool [G]."""
    columns = []
    for result in results:
        recall = evaluation.recall_of(result.first[:, chosen], result.looked_at[chosen])
        columns.append([100 * evaluation.average_recall_at(recall, number) for number in numbers]
                       + [evaluation.area_under_curve(result.numbers, recall.mean(axis=0))])
    return list(zip(["AR@%d" % number for number in numbers] + ["AUC"], *columns))


def precision_rows(results: Sequence[Result], protocol: Protocol) -> List[tuple]:
    """[(mAP@tIoU or mAP, that of A, that of B)] in percent; None of a file without classes."""
    if all(result.precision is None for result in results):
        return []
    at = [index for index, threshold in enumerate(protocol.precision_at) if round(threshold, 2) in protocol.reported_at]
    columns = []
    for result in results:
        mean = None if result.precision is None else 100 * np.mean(list(result.precision.values()), axis=0)
        columns.append([None] * (len(at) + 1) if mean is None else mean[at].tolist() + [float(mean.mean())])
    return list(zip(["mAP@%.2f" % protocol.precision_at[index] for index in at] + ["mAP"], *columns))


def by_length(lengths: np.ndarray) -> List[Tuple[str, np.ndarray]]:
    """[(title, bool [G])]: the shortest, the middle and the longest third of the actions, of lengths [G] in seconds."""
    short, long = np.quantile(lengths, [1 / 3.0, 2 / 3.0])
    thirds = [("Short actions, up to %s s" % seconds_text(short), lengths <= short),
              ("Middle, up to %s s" % seconds_text(long), (lengths > short) & (lengths <= long)),
              ("Long, above %s s" % seconds_text(long), lengths > long)]
    return [(title, chosen) for title, chosen in thirds if chosen.any()]       # all may have one length


def best_overlaps(actions: Dict[str, List[tuple]], proposals: Dict[str, np.ndarray]) -> np.ndarray:
    """Highest tIoU of each action with the SHOWN best proposals of its video: float64 [G]."""
    best = []
    for name, its in actions.items():
        rows = evaluation.ranked(proposals.get(name, np.empty((0, 3))))[:SHOWN]
        best += [np.nan_to_num(tiou(rows[:, 0], rows[:, 1], start, end)).max() if len(rows) else 0.0
                 for start, end, _ in its]
    return np.array(best, np.float64)


def most_different(difference: np.ndarray, count: int) -> List[List[int]]:
    """[indices where A is better, where B is], the largest first, ``count`` each at most; ``difference`` is B - A."""
    order = np.argsort(difference, kind="stable").tolist()
    return [[index for index in order if difference[index] < 0][:count],
            [index for index in order[::-1] if difference[index] > 0][:count]]


def as_cells(name: str, first: Optional[float], second: Optional[float]) -> List[str]:
    """Cells of a row: a name, two figures, and their difference with its sign."""
    both = first is not None and second is not None
    return [name] + [NO_FIGURE if one is None else "%.2f" % one for one in (first, second)] + [
        "%+.2f" % (second - first) if both else NO_FIGURE]


def card_of_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table in a card; a wide one can be moved sideways on a phone."""
    return "<figure><div style='overflow-x: auto'>%s</div><figcaption>%s</figcaption></figure>" % (
        table(header, rows), html.escape(caption))


def curves(results: Sequence[Result], protocol: Protocol) -> List[str]:
    """Cards of both curves of both files."""
    recall = {"%s: %s" % (result.letter, result.name): evaluation.recall_of(result.first, result.looked_at)
              for result in results}
    return [card("Average recall against the average number of proposals", figures.recall_of_several(
                {name: one.mean(axis=0) for name, one in recall.items()}, results[0].numbers,
                "average number of proposals per video")),
            card("Recall of %d proposals against tIoU" % AMONG, figures.recall_of_several(
                {name: one[:, AMONG - 1] for name, one in recall.items()}, protocol.recall_at, "tIoU"))]


def classes_section(results: Sequence[Result], labels: np.ndarray) -> str:
    """A row for each class, those with the largest difference of the AUC first; ``labels`` [G] are the actions'."""
    rows = []
    for label in sorted(set(labels.tolist())):
        recall = recall_rows(results, labels == label, [AMONG])
        precision = [None if one.precision is None else 100 * float(one.precision[label].mean()) for one in results]
        cells = [html.escape(label) or "no label", "%d" % (labels == label).sum()]
        for row in recall + [("", *precision)] * any(one.precision is not None for one in results):
            cells += as_cells(*row)[1:]
        rows.append((-abs(recall[1][2] - recall[1][1]), cells))
    names = ["AR@%d" % AMONG, "AUC"] + ["AP"] * any(one.precision is not None for one in results)
    header = ["class", "actions"] + [cell for name in names for cell in (name + " A", "B", "B &minus; A")]
    rows = [cells for _, cells in sorted(rows)]
    rest = "<details><summary>%s</summary>%s</details>" % (counted(len(rows) - FIRST, "more class"), card_of_table(
        "The others", header, rows[FIRST:])) if len(rows) > FIRST else ""
    return section("By class", "The largest difference of the AUC comes first. A class with few actions differs "
                   "easily.", [card_of_table("Classes", header, rows[:FIRST])]) + rest


def differences(results: Sequence[Result], actions: Dict[str, List[tuple]], protocol: Protocol) -> List[str]:
    """Sections of the videos and of the actions where A and B differ most, and the time axes of these videos."""
    recall = [evaluation.recall_of_videos(actions, one.proposals, SHOWN, protocol.recall_at) for one in results]
    overlap = [best_overlaps(actions, one.proposals) for one in results]
    names, flat = list(actions), [(name, action) for name, its in actions.items() for action in its]
    videos = most_different(np.array([recall[1][name] - recall[0][name] for name in names]), VIDEOS)
    single, cards = most_different(overlap[1] - overlap[0], ACTIONS), []
    for better, chosen in zip("AB", single):
        rows = [[html.escape(flat[index][0]), html.escape(flat[index][1][2]), "%.2f&ndash;%.2f" % flat[index][1][:2]]
                + as_cells("", *(one[index] for one in overlap))[1:] for index in chosen]
        cards.append(card_of_table("%s that %s finds better" % ("Actions" if rows else "No action", better),
                                   ["video", "label", "seconds", "tIoU A", "B", "B &minus; A"], rows))
    parts = [section(
        "Actions that differ most", "The highest tIoU of an action with one of the %d best proposals of its video. "
        "Below are the time axes of the videos of the first %d." % (SHOWN, VIDEOS), cards)]
    drawn = {names[index]: "%s is better" % better for better, its in zip("AB", videos) for index in its}
    for better, chosen in zip("AB", single):
        for index in chosen[:VIDEOS]:
            drawn.setdefault(flat[index][0], "an action that %s finds better" % better)
    for name, title in drawn.items():
        truth = sorted(actions[name])
        best = [one.proposals.get(name, np.empty((0, 3))) for one in results]
        best = [rows[np.argsort(rows[:, 0], kind="stable")[::-1]][:SHOWN] for rows in best]
        seconds = max([end for _, end, _ in truth] + [end for rows in best for end in rows[:, 2].tolist()])
        text = "%s. Recall of the best %d proposals, mean over tIoU %g to %g: A %.0f&nbsp;%%, B %.0f&nbsp;%%" % (
            counted(len(truth), "action"), SHOWN, protocol.recall_at[0], protocol.recall_at[-1],
            100 * recall[0][name], 100 * recall[1][name])
        axes = [time_axis.segments(seconds, rows / (1, seconds, seconds), truth) for rows in best]
        parts.append(section("%s: %s" % (name, title), text, [
            card("%s: ground truth and the best proposals" % one.letter, axis) for one, axis in zip(results, axes)]))
    return parts


def write_comparison(path: str, results: Sequence[Result], ground_truth: GroundTruth, protocol: Protocol,
                     protocol_name: str) -> List[Tuple[str, List[List[str]]]]:
    """Write the page.

    Returns:
        [(title, rows of cells)] of its first tables: of everything, and of each length.

    Raises:
        UserError: it cannot be written.
    """
    actions = protocol.split(ground_truth.actions)[0]
    flat = [one for its in actions.values() for one in its]
    labels = np.array([label for _, _, label in flat], object)
    lengths = np.array([end - start for start, end, _ in flat], np.float64)
    everything = [as_cells(*row) for row in recall_rows(results, np.ones(len(flat), bool), protocol.numbers)
                  + precision_rows(results, protocol)]
    tables = [("All %s" % counted(len(flat), "action"), everything)]
    tables += [("%s: %s" % (title, counted(int(chosen.sum()), "action")),
                [as_cells(*row) for row in recall_rows(results, chosen, protocol.numbers)])
               for title, chosen in by_length(lengths)]
    intro = "".join("<p>%s: <code>%s</code></p>" % (one.letter, html.escape(one.name)) for one in results)
    intro += "<p>%s, %s of %s, by --protocol %s, figures in percent.</p>" % (
        counted(len(actions), "video"), counted(len(flat), "action"), html.escape(ground_truth.source), protocol_name)
    intro += "".join("<p>%s</p>" % html.escape(line) for one in results for line in one.remarks)
    cards = [card_of_table(title, ["", "A", "B", "B &minus; A"], rows) for title, rows in tables]
    write_page(path, "A comparison of two results", [
        intro, section("Figures", "", cards[:1] + curves(results, protocol)),
        section("By length", "Thirds of the actions, by their length.", cards[1:]),
        classes_section(results, labels), *differences(results, actions, protocol)])
    return tables


def main(args: argparse.Namespace) -> None:
    opt = with_defaults({name: getattr(args, name) for name in TRUTH if getattr(args, name) is not None})
    paths = first, second = args.first, args.second
    check_input(first, "result file")
    check_input(second, "result file")
    if os.path.samefile(first, second):
        raise UserError("%s and %s are the same file: give two results" % (first, second))
    for name in filter(opt.get, ("ground_truth", "blocked")):
        check_input(opt[name], "--" + name)
    inputs = {"result file %s" % path: path for path in paths}
    if ground_truth_file(opt):
        inputs["the ground truth"] = ground_truth_file(opt)
    else:
        inputs.update(("--video_anno %s" % path, path) for path in paths_of(opt["video_anno"]))
    check_outputs({"--output": args.output}, inputs)
    ground_truth, protocol = ground_truth_of(opt), PROTOCOLS[opt["protocol"]]
    if not protocol.split(ground_truth.actions)[0]:
        raise UserError("%s has no action of the %d videos of the validation subset, so nothing can be compared: give "
                        "the file that has them" % (ground_truth.source, ground_truth.videos))
    names = paths if os.path.basename(first) == os.path.basename(second) else map(os.path.basename, paths)
    results = [measure(*file, ground_truth, protocol) for file in zip("AB", paths, names)]
    tables = write_comparison(args.output, results, ground_truth, protocol, opt["protocol"])
    for one in results:
        print("\n".join(["%s: %s" % (one.letter, one.name)] + one.remarks))
    for title, rows in tables:
        print("%-44s %8s %8s %8s" % (title, "A", "B", "B - A"))
        for name, *cells in rows:
            print("  %-42s %8s %8s %8s" % (name, *(cell.replace(NO_FIGURE, "-") for cell in cells)))
    print("comparison: %s" % args.output)


if __name__ == "__main__":
    run_as_program(main, ARGUMENTS)
