"""The packages that only video needs: requirements-video.txt. They are imported where they are used, by name."""
import importlib
import importlib.util
import sys
from types import ModuleType

from bmn.errors import UserError


def check_python() -> None:
    """Insist on Python 3.11, which PyAV and transformers need.

    Raises:
        UserError: this one is older.
    """
    if sys.version_info < (3, 11):
        raise UserError("videos need Python 3.11 or later, and this is %d.%d: extract the features with another "
                        "Python, and use them with this one" % sys.version_info[:2])


def package(name: str, what_for: str) -> ModuleType:
    """The module ``name``; ``what_for`` says in the message what needs it.

    Raises:
        UserError: it is not installed, or it cannot be imported.
    """
    if importlib.util.find_spec(name) is None:
        if name == "onnxruntime" and sys.version_info >= (3, 15):
            raise UserError("%s needs the package %s, which requirements-video.txt leaves out from Python 3.15 on, "
                            "because it had no wheel there: try %s -m pip install %s, or use Python 3.11 to 3.14"
                            % (what_for, name, sys.executable, name))
        raise UserError("%s needs the package %s, which %s does not have: install it with %s -m pip install -r "
                        "requirements-video.txt" % (what_for, name, sys.executable, sys.executable))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError("%s needs the package %s, which cannot be imported (%s): install the versions of "
                        "requirements-video.txt" % (what_for, name, error)) from None
