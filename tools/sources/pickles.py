"""Pickles from the web, read without running what is in them."""

import pickle
from typing import BinaryIO

from pipelines.errors import DataError

# All that NumPy's arrays in these pickles need, under Python 2's and today's module names.
ALLOWED_GLOBALS = {(module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray")
                   for name in ("_reconstruct", "scalar")} | {("numpy", "ndarray"), ("numpy", "dtype"),
                                                              ("_codecs", "encode")}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickle plain containers and NumPy arrays; anything that could run code is refused by name."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no data set needs")
        return super().find_class(module, name)


def load_dict(where: str, stream: BinaryIO, kind: str) -> dict:
    """The dictionary in a pickle; DataError naming ``where`` for anything else.

    Its keys are text. Python 2's strings among its values stay bytes: pixels are such strings, and long ones.
    """
    try:
        content = RestrictedUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{where}: not a readable {kind} pickle ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: a pickled {type(content).__name__} found, a dictionary expected")
    return {as_text(key): value for key, value in content.items()}


def as_text(value: object) -> object:
    """Python 2's strings as text; anything else as it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value
