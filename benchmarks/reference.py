"""The reference's modules, to compare ours with: they are read from a clone, mended in memory, and run beside ours.

The clone (github.com/JJBOY/BMN-Boundary-Matching-Network at a92c1d7) is from 2019: it calls ``.cuda()`` throughout and
uses what NumPy and Matplotlib have dropped since. Nothing is written to the clone.

    python3 benchmarks/reference.py --reference DIR --seed 0 -- --mode train --feature_path features/ ...

runs its main.py on the CPU with the arguments after ``--``, in the working directory.
"""
import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import torch

from bmn.errors import UserError, run_as_program

MODULES = ("main", "models", "loss_function", "dataset", "post_processing", "eval", "opts", "utils", "eval_proposal")
MENDS = ((".cuda()", ""), ("np.int)", "int)"), ("np.trapz", "np.trapezoid"), ("plt.grid(b=True", "plt.grid(True"),
         ("plt.axes()", "plt.gca()"), ("DataParallel(model, device_ids=[0, 1])", "DataParallel(model)"),
         ("num_workers=8, pin_memory=True", "num_workers=0"))


class _Mended(importlib.machinery.SourceFileLoader):
    """Reads a file of the reference and mends it on the way; keeps no bytecode."""

    def get_data(self, path):
        source = super().get_data(path).decode("utf-8")
        for old, new in MENDS:
            source = source.replace(old, new)
        return source.encode("utf-8")

    def path_stats(self, path):
        raise OSError("no bytecode is kept")


class _Finder:
    """Finds the reference's modules, and nothing else, in the clone."""

    def __init__(self, folder):
        self.folders = folder, os.path.join(folder, "Evaluation")

    def find_spec(self, name, path=None, target=None):
        for folder in self.folders:
            file = os.path.join(folder, name + ".py")
            if name in MODULES and os.path.isfile(file):
                return importlib.util.spec_from_file_location(name, file, loader=_Mended(name, file))
        return None


def check_clone(folder):
    """Raise UserError where ``folder`` is no clone of the reference."""
    if not os.path.isfile(os.path.join(folder, "Evaluation", "eval_proposal.py")):      # only the reference has it
        raise UserError("--reference '%s' is no clone of the reference: clone "
                        "github.com/JJBOY/BMN-Boundary-Matching-Network there, at a92c1d7" % folder)


def run_reference(folder, seed, arguments):
    """Run the clone's main.py as a program."""
    check_clone(folder)
    sys.meta_path.insert(0, _Finder(folder))
    sys.path.append(os.path.join(folder, "Evaluation"))
    sys.argv = [os.path.join(folder, "main.py")] + arguments
    torch.manual_seed(seed)
    np.random.seed(seed)
    source = _Mended("__main__", sys.argv[0]).get_data(sys.argv[0])
    exec(compile(source, sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})


def load_reference(folder, *names):
    """The named modules of the clone in ``folder``; ours of the same names stay what they are.

    Raises:
        UserError: there is no such clone.
    """
    check_clone(folder)
    ours = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    path = list(sys.path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return [importlib.import_module(name) for name in names]
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = path
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="clone of the reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="arguments of its main.py, after --")
    args = parser.parse_args()
    run_reference(args.reference, args.seed, args.arguments)


if __name__ == "__main__":
    run_as_program(main)
