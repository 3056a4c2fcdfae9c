"""A user's own object, named on a command line as `module:attribute`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from implicit_reg import _checks


def load_attribute(function: str, argument: str, spec: str) -> Any:
    """Imports `module` and returns its `attribute` (dots inside the attribute allowed).

    The current folder is searched too, as with `python -m`. The module is code and runs: name only what you trust.

    Args:
      function: who asks, for the message.
      argument: which argument held the words, for the message.
      spec: "module:attribute", for example "my_losses:rosenbrock".

    Returns:
      The object.

    Raises:
      ValueError: where the words have another form, there is no such module or attribute, or importing it failed.

    Example:
      >>> load_attribute("train", "model", "math:pi")
      3.141592653589793
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"{function}: `{argument}` must have the form module:attribute, got {spec!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        hint = (
            "; is the file in this folder, or its package installed?"
            if missing == module_name.partition(".")[0] or module_name.startswith(missing)
            else f" (it imports {missing!r}, which is not installed)"
        )
        raise ValueError(f"{function}: `{argument}`: cannot import {module_name!r}{hint}") from error
    except Exception as error:
        raise ValueError(
            f"{function}: `{argument}`: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [name for name in vars(value) if not name.startswith("_")] if hasattr(value, "__dict__") else []
            raise _checks.unknown_name(function, f"attribute of {module_name} (`{argument}`)", part, known)
        value = getattr(value, part)
    return value
