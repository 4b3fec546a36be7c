"""Two result files side by side: the figures of each group of actions are those of a plain computation."""
import html.parser
import json
import os
import re
import subprocess
import sys

import compare_results
import numpy as np
import pytest
from conftest import ROOT

import detection
import eval as evaluation
from bmn.results.protocols import PROTOCOLS

LABELS = ("Polo", "Ballet <i>", "\u8df3\u6c34")


class Tables(html.parser.HTMLParser):
    """[rows of cells] of every table of a page, and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.fetched, self.headings, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset")
                         and not value.startswith("data:")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.inside == "h2":
            self.headings[-1] += data


def write(path, content):
    with open(str(path), "w", encoding="utf-8") as handle:
        json.dump(content, handle)
    return str(path)


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """(ground truth {id: [(start, end, label)]}, {file: {id: [row]}}) of small random files with ties."""
    monkeypatch.chdir(tmp_path)
    truth = {"video%d" % index: [(start, start + float(rng.choice([1, 2, 5, 9, 20])), LABELS[rng.randint(3)])
                                 for start in rng.randint(0, 60, rng.randint(1, 6)).astype(float).tolist()]
             for index in range(9)}
    write("truth.json", {"database": {name: {"subset": "validation", "duration": 100.0, "annotations": [
        {"segment": [start, end], "label": label} for start, end, label in its]} for name, its in truth.items()}})
    results = {}
    for file, labelled, prefix, noise in (("a.json", False, "", 3), ("b.json", True, "v_", 1)):
        results[file] = {}
        for name, its in list(truth.items())[:8]:                                   # one is missed
            rows = []
            for start, end, label in its * 3:
                first = start + noise * rng.rand()
                rows.append({"score": round(float(rng.rand()), 1),
                             "segment": [first, max(end + noise * rng.randn(), first + 0.1)]})
                if labelled:
                    rows[-1]["label"] = label if rng.rand() < 0.8 else LABELS[rng.randint(3)]
            results[file][name] = rows
        results[file]["elsewhere"] = results[file]["video0"][:2]
        write(file, {"results": {prefix + name: rows for name, rows in results[file].items()}})
    return truth, results


def run(*arguments):
    """Run the tool as a user does."""
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "compare_results.py"), *arguments],
                          capture_output=True, text=True, check=False,
                          env=dict(os.environ, PYTHONIOENCODING="utf-8"))


def recall_by_definition(truth, rows, protocol, holds):
    """Recall [H, points] of the actions for which holds(action), by the words of the protocol, one by one."""
    total, wanted, videos = sum(map(len, rows.values())), protocol.points, len(truth)
    kept = {}
    for name in truth:
        order = sorted(enumerate(rows.get(name, [])), key=lambda pair: (-pair[1]["score"], -pair[0]))
        kept[name] = [row["segment"] for _, row in order][:int(len(order) * (wanted * float(videos) / total))]
    every = sum(map(len, kept.values()))
    recall = np.zeros((len(protocol.recall_at), protocol.points))
    for h, threshold in enumerate(protocol.recall_at):
        for point in range(protocol.points):
            hits = []
            for name, its in truth.items():
                fraction = (point + 1) / float(protocol.points) * (wanted * float(videos) / every)
                looked_at = kept[name][:int(len(kept[name]) * fraction)]
                for action in filter(holds, its):
                    overlaps = [max(0.0, min(action[1], end) - max(action[0], start))
                                / (max(action[1], end) - min(action[0], start)) for start, end in looked_at]
                    hits.append(any(overlap >= threshold for overlap in overlaps))
            recall[h, point] = np.mean(hits)
    return recall


@pytest.mark.parametrize("protocol", ["activitynet", "thumos14"])
def test_the_figures_of_every_group_are_those_of_a_plain_computation(files, monkeypatch, protocol):
    truth, results = files
    short = PROTOCOLS[protocol]._replace(points=100, numbers=(1, 5, 50, 100), recall_at=np.array([0.5, 0.75, 0.9]))
    monkeypatch.setitem(compare_results.PROTOCOLS, protocol, short)
    monkeypatch.setattr(sys, "argv", ["compare_results.py", "a.json", "b.json", "--ground_truth", "truth.json",
                                      "--protocol", protocol, "--output", "page.html"])
    compare_results.main(compare_results.parse_arguments())
    with open("page.html", encoding="utf-8") as handle:
        page = Tables(handle.read())
    lengths = sorted(end - start for its in truth.values() for start, end, _ in its)
    low, high = (np.percentile(lengths, percent) for percent in (100 / 3.0, 200 / 3.0))
    groups = [lambda one: True, lambda one: one[1] - one[0] <= low, lambda one: low < one[1] - one[0] <= high,
              lambda one: one[1] - one[0] > high]
    groups = [group for group in groups if any(group(one) for its in truth.values() for one in its)]
    assert len(groups) >= 3
    for table, holds in zip(page.tables, groups):
        recall = [recall_by_definition(truth, results[file], short, holds) for file in ("a.json", "b.json")]
        for row, number in zip(table[1:], short.numbers):
            both = [100 * one[:, number - 1].mean() for one in recall]
            assert row[0] == "AR@%d" % number
            np.testing.assert_allclose([float(cell) for cell in row[1:]], [*both, both[1] - both[0]], atol=0.00501)
        mean = [one.mean(axis=0) for one in recall]
        areas = [((one[1:] + one[:-1]) / 2).sum() for one in mean]
        assert table[5][0] == "AUC"
        np.testing.assert_allclose([float(cell) for cell in table[5][1:3]], areas, atol=0.00501)
    detections = {name: [(row["label"], row["score"], row["segment"]) for row in rows]
                  for name, rows in results["b.json"].items()}
    whole = 100 * detection.mean_average_precision(truth, detections, short).mean()
    assert page.tables[0][-1] == ["mAP", "\u2013", "%.2f" % whole, "\u2013"]
    classes = page.tables[len(groups)]
    assert [row[0] for row in sorted(classes[1:])] == sorted(LABELS)
    differences = []
    for name, count, first, second, _, *areas, _, no, precision, _ in classes[1:]:
        its_truth = {video: [one for one in its if one[2] == name] for video, its in truth.items()}
        recall = [recall_by_definition(truth, results[file], short, lambda one: one[2] == name)  # noqa: B023
                  for file in ("a.json", "b.json")]
        assert int(count) == sum(map(len, its_truth.values())) and no == "\u2013"
        np.testing.assert_allclose([float(first), float(second)], [100 * one[:, 99].mean() for one in recall],
                                   atol=0.00501)
        expected = 100 * detection.mean_average_precision({video: its for video, its in its_truth.items() if its},
                                                          detections, short).mean()
        assert float(precision) == pytest.approx(expected, abs=0.00501)
        differences.append(abs(float(areas[1]) - float(areas[0])))
    assert all(later <= former + 0.011 for former, later in zip(differences, differences[1:]))


@pytest.mark.usefixtures("files")
def test_all_figures_are_those_of_an_evaluation_of_each_file(capsys):
    """... and the whole run, as a user starts it: a table, a page, and no other output."""
    done = run("a.json", "b.json", "--ground_truth", "truth.json")
    assert done.returncode == 0 and done.stderr == ""
    assert "comparison: ./output/comparison.html" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    for file, column in (("a.json", 1), ("b.json", 2)):
        evaluation.evaluation_proposal({"result_file": file, "ground_truth": "truth.json", "output_dir": "out"})
        said = capsys.readouterr().out
        auc = float(re.search(r"curve: (\S+)%", said).group(1))
        assert next(line for line in lines if line[0] == "AUC")[column] == "%.2f" % auc
        for number in (1, 5, 10, 100):
            figure = float(re.search(r"AR@%d is \t(\S+)" % number, said).group(1))
            shown = next(line for line in lines if line[0] == "AR@%d" % number)[column]
            assert abs(float(shown) - 100 * figure) < 0.011
    with open("output/comparison.html", encoding="utf-8") as handle:
        text = handle.read()
    page = Tables(text)
    assert page.fetched == [] and "url(" not in text and "<script" not in text
    assert "A: no proposals for 1 of 9 videos: counted as missed" in text
    assert "B: 2 proposals of videos that are not measured count in the average number" in text
    assert page.headings[:4] == ["Figures", "By length", "By class", "Actions that differ most"]
    assert "Ballet &lt;i&gt;" in text and "Ballet <i>" not in text
    assert set(os.listdir("output")) == {"comparison.html"}


def test_the_videos_and_actions_that_differ_most_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["v%d" % index for index in range(12)]
    write("truth.json", {"database": {name: {"subset": "validation", "duration": 50, "annotations": [
        {"segment": [10, 20], "label": "Polo"}]} for name in names}})

    def result(path, end_of):
        write(path, {"results": {name: [{"score": 0.9, "segment": [10, end_of(index)]},
                                        {"score": 0.1, "segment": [0, 1]}] for index, name in enumerate(names)}})
    result("a.json", lambda index: 20 if index < 6 else 20 + index)             # index 11: tIoU 10/21
    result("b.json", lambda index: 20 if index >= 6 or index == 0 else 21 + 2 * index)
    done = run("a.json", "b.json", "--ground_truth", "truth.json", "--output", "deep/c.html")
    assert done.returncode == 0, done.stderr
    with open("deep/c.html", encoding="utf-8") as handle:
        page = Tables(handle.read())
    better_a, better_b = page.tables[-2:]
    assert [row[0] for row in better_a[1:]] == ["v5", "v4", "v3", "v2", "v1"]
    assert [row[0] for row in better_b[1:]] == ["v11", "v10", "v9", "v8", "v7", "v6"]
    assert better_b[1][1:] == ["Polo", "10.00\u201320.00", "0.48", "1.00", "+0.52"]
    assert page.headings[4:] == ["v5: A is better", "v4: A is better", "v3: A is better", "v11: B is better",
                                 "v10: B is better", "v9: B is better"]


def test_labels_that_are_no_classes_give_no_map_and_equal_lengths_one_group(tmp_path, monkeypatch):
    """OpenTAD writes proposals with one label for all, which is none of the classes."""
    monkeypatch.chdir(tmp_path)
    write("truth.json", {"database": {"v": {"subset": "validation", "duration": 50, "annotations": [
        {"segment": [start, start + 10], "label": "Polo"} for start in (0, 20)]}}})
    row = {"score": 0.9, "segment": [0, 10]}
    os.mkdir("other")
    write("a.json", {"results": {"v": [row]}})
    write("other/a.json", {"results": {"v": [dict(row, label="action")]}})
    done = run("a.json", "other/a.json", "--ground_truth", "truth.json")
    assert done.returncode == 0 and "mAP" not in done.stdout.replace("there is no mAP", "")
    assert "B: its labels, such as 'action', are no classes of the ground truth, so there is no mAP" in done.stdout
    assert done.stdout.startswith("A: a.json\nB: other/a.json\n") and "Middle" not in done.stdout
    with open("output/comparison.html", encoding="utf-8") as handle:
        assert "No action that A finds better" in handle.read()


@pytest.mark.parametrize("arguments, words", [
    (("a.json", "nothing.json"), "result file nothing.json does not exist"),
    (("a.json", "./a.json"), "a.json and ./a.json are the same file: give two results"),
    (("a.json", "truth.json"), "result file truth.json holds no object 'results'"),
    (("a.json", "bad.json"), "result file bad.json is not valid JSON"),
    (("a.json", "strange.json"), "result file strange.json has no proposal of any of the 9 videos"),
    (("a.json", "mixed.json"), "result file mixed.json has rows with a label and rows without one"),
    (("a.json", "b.json", "--output", "b.json"), "result file b.json and --output are the same file"),
    (("a.json", "b.json", "--output", "truth.json"), "the ground truth and --output are the same file"),
    (("a.json", "b.json", "--output", "a.json/c.html"), "cannot write"),
    (("a.json", "b.json", "--ground_truth", "no.json"), "--ground_truth no.json does not exist"),
    (("a.json", "b.json", "--validation_subset", "Test"), "ground truth truth.json has no video of the subset 'Test'"),
])
def test_a_mistake_is_one_sentence_and_leaves_no_page(files, arguments, words):
    with open("bad.json", "w") as handle:
        handle.write('{"results": {"v": [')
    row = {"score": 0.5, "segment": [0, 1]}
    write("strange.json", {"results": {"v": [row]}})
    write("mixed.json", {"results": {"v": [row, dict(row, label="Polo")]}})
    before = {name: os.path.getsize(name) for name in os.listdir(".")}
    options = () if "--ground_truth" in arguments else ("--ground_truth", "truth.json")
    done = run(*arguments, *options)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert before == {name: os.path.getsize(name) for name in os.listdir(".") if name != "output"}
    assert not os.path.isdir("output") or os.listdir("output") == []
