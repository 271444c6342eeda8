"""Progress bars with rate and time left, quiet in log files."""

import sys

from tqdm import tqdm


def progress_bar(total: int | None, unit: str, description: str, **options) -> tqdm:
    """A bar on stderr: ten updates a second on a terminal, one in ten seconds elsewhere."""
    return tqdm(total=total, unit=unit, desc=description, dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0, **options)
