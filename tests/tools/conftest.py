"""Folders of images for the readers of one's own data."""

import pytest

from tests.tools.layouts import Photos


@pytest.fixture
def photos(tmp_path):
    """An empty folder."""
    (tmp_path / "photos").mkdir()
    return Photos(tmp_path / "photos")


@pytest.fixture
def split_photos(photos):
    """train/ and test/ with 6 and 2 images of each of three classes."""
    for name in ("cat", "dog", "owl"):
        photos.add(f"train/{name}", 6)
        photos.add(f"test/{name}", 2)
    return photos
