"""The networks by name: a trunk is an nn.Module with ``out_channels``, (n, C, H, W) to (n, out_channels, h, w).

Importing this needs no PyTorch, so that names can be checked, and ``--help`` printed, without waiting for it.
"""

import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common.errors import UsageError, reason

if TYPE_CHECKING:
    from torch import nn

NAMES = "convnet, nin, wrn (wrn-28-2), wrn-DEPTH-WIDTH, or module:function for one of your own"
OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def check_name(name: str) -> None:
    """Raise ValueError where no network has this name. Of one's own only the form is looked at: nothing is imported."""
    if name not in {"convnet", "nin"} and not is_own(name):
        wrn_size(name)


def is_own(name: str) -> bool:
    """Whether a name is ``module:function``."""
    return OWN.fullmatch(name) is not None


def wrn_size(name: str) -> tuple[int, int]:
    """Depth and width of a wide residual network; raises ValueError for a name that is none."""
    match = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", "wrn-28-2" if name == "wrn" else name)
    if not match:
        raise ValueError(f"found {name!r}, expected one of: {NAMES}")
    depth, width = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ValueError(f"found {name}, expected a depth of 10, 16, 22, 28, ... and a width")
    return depth, width


def build_trunk(name: str, channels: int = 3, dropout: float = 0.0) -> "nn.Module":
    """The trunk of a network by name, with dropout inside it.

    Args:
        name: one of ``NAMES``. For ``module:function`` the module is imported, and ``function(channels)`` is called.
        channels: of the images.
        dropout: inside the trunk; not for ``module:function``, which decides that itself.

    Raises:
        ValueError: a name that is none.
        UsageError: ``module:function`` cannot be imported, or makes no trunk.
    """
    if is_own(name):
        return _own_trunk(name, channels)
    if name == "convnet":
        from sesemi.networks.convnet import ConvNet
        return ConvNet(channels, dropout)
    if name == "nin":
        from sesemi.networks.nin import NetworkInNetwork
        return NetworkInNetwork(channels, dropout)
    from sesemi.networks.wrn import WideResNet
    return WideResNet(*wrn_size(name), channels, dropout)


@contextmanager
def own_code(name: str, failed: str) -> Iterator[None]:
    """While inside, whatever the user's network raises becomes a UsageError that says where."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(f"--network {name}: {failed} ({type(error).__name__}: {reason(error)}; in {where.filename}, "
                         f"line {where.lineno})") from None


def _own_trunk(name: str, channels: int) -> "nn.Module":
    from torch import nn
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with own_code(name, f"the module {module} cannot be imported"):
        imported = importlib.import_module(module)
    build = getattr(imported, function, None)
    if not callable(build):
        raise UsageError(f"--network {name}: no function {function} found in {getattr(imported, '__file__', module)}")
    with own_code(name, f"{function}({channels}) failed"):
        trunk = build(channels)
    if not isinstance(trunk, nn.Module) or not isinstance(getattr(trunk, "out_channels", None), int):
        raise UsageError(f"--network {name}: {function}({channels}) gave a {type(trunk).__name__}, expected an "
                         f"nn.Module with out_channels, the number of channels of its features")
    return trunk
