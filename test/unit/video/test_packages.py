"""What asks for the packages of video says what would bring them."""
import os
import re

import pytest
from conftest import ROOT

from bmn.errors import UserError
from bmn.video import packages


def test_a_package_that_is_missing_is_asked_for_by_name():
    with pytest.raises(UserError, match=r"^a needs the package no_such_thing, .* -m pip install -r requirements-video"):
        packages.package("no_such_thing", "a")


def test_what_the_requirements_leave_out_is_not_asked_for_by_them(monkeypatch):
    """On Python 3.15 `pip install -r requirements-video.txt` installs no onnxruntime, however often one types it."""
    with open(os.path.join(ROOT, "requirements-video.txt")) as handle:
        assert re.search(r'^onnxruntime==.* and python_version < "3\.15"$', handle.read(), re.MULTILINE)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    for version, asked_for in (((3, 14, 9), "pip install -r requirements-video.txt$"),
                               ((3, 15, 0), "pip install onnxruntime, or use Python 3.11 to 3.14$")):
        monkeypatch.setattr(packages.sys, "version_info", version)
        with pytest.raises(UserError, match=asked_for):
            packages.package("onnxruntime", "a")
