"""The documents: public addresses are stated and links lead somewhere."""
import glob
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

DOCUMENTS = sorted(glob.glob(os.path.join(ROOT, "*.md")) + glob.glob(os.path.join(ROOT, "docs", "*.md")))
STATEMENT = "public_address_statement.md"


def test_every_public_address_is_stated():
    sources = [path for folder in ("", "docs", "tools", "benchmarks", "test", "test/*")
               for kind in ("*.py", "*.sh", "*.md", "*.txt", "*.toml", "*.html")
               for path in glob.glob(os.path.join(ROOT, folder, kind))]
    stated = Path(ROOT, STATEMENT).read_text(encoding="utf-8")
    missing = {}
    for path in sources:
        for address in re.findall(r"https?://[\w./%#?=&~-]*\w", Path(path).read_text(encoding="utf-8")):
            if address not in stated and not re.match(r"https?://(localhost|127\.)", address):
                missing[address] = os.path.relpath(path, ROOT)
    assert not missing, "add to %s: %s" % (STATEMENT, missing)


@pytest.mark.parametrize("document", DOCUMENTS, ids=os.path.basename)
def test_links_to_files_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", Path(document).read_text(encoding="utf-8"))
    assert [link for link in links if not os.path.exists(os.path.join(os.path.dirname(document), link))] == []


def test_model_levels_are_those_of_the_modelzoo():
    levels = dict(line.split(":") for line in Path(ROOT, "modelzoo_level.txt").read_text().split())
    assert list(levels) == ["FuncStatus", "PerfStatus", "PrecisionStatus"]
    assert set(levels.values()) <= {"OK", "POK", "NOK", "PERFECT"}


@pytest.mark.parametrize("variables, words", [
    (("VENV=none", "PYTHON=no-such-python"), "there is no program PYTHON=no-such-python"),
    (("VENV=",), "give the name of a folder"), (("VENV=a b",), "give the name of a folder")])
@pytest.mark.parametrize("target", ["test", "demo"])
def test_make_refuses_what_it_cannot_use(target, variables, words):
    done = subprocess.run(("make", "-C", ROOT, target) + variables, capture_output=True, text=True, check=False)
    assert done.returncode and words in done.stderr
