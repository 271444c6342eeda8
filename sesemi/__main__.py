"""python -m sesemi."""

import sys

from pipelines.common import errors
from sesemi import cli

if __name__ == "__main__":
    sys.exit(errors.run(cli.main))
