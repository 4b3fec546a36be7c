"""The plan of the house, held to: what may import what, and which names other programs must be able to use."""
import ast
import os
import sys

import pytest
from conftest import ROOT

REFERENCE = {"models", "loss_function", "dataset", "post_processing", "eval"}       # what others import from here
STANDARD = {"annotationlib", "compression", "profiling", "tomllib"} | set(      # the first four came after Python 3.9
    getattr(sys, "stdlib_module_names", sys.builtin_module_names))


def imports_of(path):
    """Every module that a file imports, with its full name."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as handle:
        for node in ast.walk(ast.parse(handle.read())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (node.module + "." + alias.name for alias in node.names)


def modules_in(folder):
    return sorted(name[:-3] for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith(".py"))


WINGS = sorted(name for name in os.listdir(os.path.join(ROOT, "bmn"))
               if os.path.exists(os.path.join(ROOT, "bmn", name, "__init__.py")))
TOP = modules_in("") + modules_in("tools") + modules_in("benchmarks")


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_itself_and_the_ground(wing):
    others = tuple("bmn.%s." % other for other in WINGS if other != wing)
    for module in modules_in("bmn/" + wing):
        found = [name for name in imports_of("bmn/%s/%s.py" % (wing, module)) if name.startswith(others)]
        assert not found, module


@pytest.mark.parametrize("folder", ["bmn"] + ["bmn/" + wing for wing in WINGS])
def test_bmn_never_imports_the_root(folder):
    for module in modules_in(folder):
        assert not {name.split(".")[0] for name in imports_of("%s/%s.py" % (folder, module))} & set(TOP), module


def test_the_ground_imports_no_wing():
    for module in modules_in("bmn"):
        assert not any(name.startswith(tuple("bmn.%s." % wing for wing in WINGS))
                       for name in imports_of("bmn/%s.py" % module)), module


@pytest.mark.parametrize("module", sorted(REFERENCE))
def test_the_references_names_need_no_other_name_at_the_root(module):
    """Programs written for the reference bring modules of their own called opts, report, device, ..."""
    others = set(modules_in("")) - REFERENCE
    assert not {name.split(".")[0] for name in imports_of(module + ".py")} & others


def test_no_module_that_lies_on_a_path_has_a_name_of_the_standard_library():
    assert not set(TOP) & STANDARD


def test_only_programs_for_videos_import_their_wing_and_nobody_its_packages():
    """main.py runs where neither PyAV nor transformers is installed, and on Python 3.7."""
    files = ["%s%s.py" % (folder and folder + "/", module)
             for folder in ["", "tools", "benchmarks", "bmn"] + ["bmn/" + wing for wing in WINGS]
             for module in modules_in(folder)]
    packages = {path for path in files for name in imports_of(path) if name.split(".")[0] in ("av", "transformers")}
    assert packages == set()
    wing = {path for path in files for name in imports_of(path) if name.startswith("bmn.video")}
    assert {path for path in wing if not path.startswith("bmn/video/")} == {
        "tools/extract_features.py", "tools/make_sample_videos.py", "tools/predict.py", "benchmarks/video.py"}
