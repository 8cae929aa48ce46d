import pytest
from PIL import Image

from kd_search.data.io.image import ImageError, read_image, read_image_size, read_image_sizes


def _save(path, size, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_sizes_are_those_of_the_decoded_image(tmp_path, orientation):
    path = _save(tmp_path / "a.jpg", (20, 10), orientation)
    height, width = read_image(path).shape[:2]
    assert read_image_size(path) == (width, height)


def test_a_file_that_changes_is_read_again(tmp_path):
    path = _save(tmp_path / "a.png", (20, 10))
    assert read_image_size(path) == (20, 10)
    _save(path, (333, 10))
    assert read_image_size(path) == (333, 10)


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    good = _save(tmp_path / "a.png", (20, 10))
    paths = [good, str(tmp_path / "b.png"), good, str(tmp_path / "c.png")]
    with pytest.raises(FileNotFoundError, match=r"list.mat: 2 of the 4 .*b.png"):
        read_image_sizes(paths, "list.mat")
    assert read_image_sizes([good, good], "list.mat") == [(20, 10)] * 2


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(ImageError, match="a.png"):
        read_image_sizes([str(tmp_path / "a.png")], "list.mat")
    with pytest.raises(ImageError, match="b.png"):
        read_image_size(str(tmp_path / "b.png"))
