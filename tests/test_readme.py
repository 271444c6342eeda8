"""README names tests that there are, in files that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "README.md").read_text())


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_readme_names(file, test):
    assert f"def {test}(" in (ROOT / "tests" / file).read_text()


def test_there_are_some():
    assert len(NAMED) > 15
