import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from kd_search.data import ImageError, read_image
from kd_search.data.io.image import read_image_size


@pytest.fixture
def save(tmp_path):
    """``save(image, name, **options)`` -> path."""

    def save_image(image, name, **options):
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save_image


def _picture(width=23, height=17):
    """Smooth enough that JPEG keeps it within a few levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 4 % 256], 2).astype(np.uint8)


def test_colours_come_in_the_asked_order(save):
    path = save(Image.fromarray(_picture()), "a.png")
    assert np.array_equal(read_image(path, "RGB"), _picture())
    assert np.array_equal(read_image(path), _picture()[:, :, ::-1])
    with pytest.raises(ValueError, match="'HSV' is neither"):
        read_image(path, "HSV")


@pytest.mark.parametrize("read", [read_image, read_image_size])
@pytest.mark.parametrize("name", ["a\0b.jpg", "half \ud800.jpg"])
def test_a_name_that_no_file_can_have_is_refused(read, name):
    with pytest.raises(ImageError, match="no file can have such a name") as caught:
        read(name)
    assert repr(name) in str(caught.value)
    str(caught.value).encode()


def test_the_array_can_be_written_to_and_is_contiguous(save):
    for order in ("RGB", "BGR"):
        image = read_image(save(Image.fromarray(_picture()), "a.png"), order)
        assert image.flags.writeable and image.flags.c_contiguous and image.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_rotation_is_undone_as_pillow_does(save, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(_picture()), f"a.{suffix}", exif=exif.tobytes())
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path, "RGB"), expected)
    assert expected.shape == ((23, 17, 3) if orientation >= 5 else (17, 23, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_spoil_the_picture(save):
    path = save(Image.fromarray(_picture()), "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(path).shape == (17, 23, 3)


def test_grey_becomes_three_equal_channels(save):
    grey = _picture()[:, :, 0]
    image = read_image(save(Image.fromarray(grey), "a.png"))
    assert np.array_equal(image, np.repeat(grey[:, :, None], 3, 2))


def test_alpha_is_dropped_and_the_colours_below_it_stay(save):
    alpha = np.zeros((17, 23, 1), np.uint8)
    rgba = Image.fromarray(np.concatenate([_picture(), alpha], 2))
    assert np.array_equal(read_image(save(rgba, "a.png"), "RGB"), _picture())
    grey_alpha = Image.fromarray(np.concatenate([_picture()[:, :, :1], alpha], 2), "LA")
    assert np.array_equal(read_image(save(grey_alpha, "b.png"))[:, :, 0], _picture()[:, :, 0])


@pytest.mark.filterwarnings("error")
def test_palettes_are_looked_up_with_and_without_transparency(save):
    indexed = Image.fromarray(_picture()).quantize(7)
    expected = np.asarray(indexed.convert("RGB"))
    assert np.array_equal(read_image(save(indexed, "a.png"), "RGB"), expected)
    clear = save(indexed, "b.png", transparency=bytes([0, 9, 255]))
    assert np.array_equal(read_image(clear, "RGB"), expected)


def test_cmyk_is_converted(save):
    cmyk = Image.fromarray(_picture()).convert("CMYK")
    image = read_image(save(cmyk, "a.jpg", quality=100, subsampling=0), "RGB")
    assert np.abs(image.astype(int) - _picture()).mean() < 4


def test_black_and_white_is_read(save):
    image = read_image(save(Image.fromarray(_picture()).convert("1"), "a.png"))
    assert set(np.unique(image)) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(save, suffix):
    values = np.linspace(0, 65535, 23 * 17).astype(np.uint16).reshape(17, 23)
    image = read_image(save(Image.fromarray(values), f"a.{suffix}"))
    assert np.array_equal(image[:, :, 1], np.rint(values.astype(np.float64) / 257))


def test_sixteen_bits_rotate_too(save):
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 2570
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(save(Image.fromarray(values), "a.png", exif=exif.tobytes()))
    assert np.array_equal(image[:, :, 0], np.rot90(values // 257, -1))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_kinds_without_an_eight_bit_equivalent_are_refused_by_name(save, mode):
    path = save(
        Image.fromarray(_picture()[:, :, 0]).convert(mode).point(lambda v: v * 1000), "a.tif"
    )
    with pytest.raises(ImageError, match=r"a\.tif: .* no 8-bit equivalent"):
        read_image(path)


def test_a_single_pixel_is_read(save):
    assert read_image(save(Image.new("RGB", (1, 1), (1, 2, 3)), "a.png")).tolist() == [[[3, 2, 1]]]


def test_the_first_frame_of_an_animation_counts(save):
    first, second = Image.new("L", (4, 3), 10), Image.new("L", (4, 3), 200)
    path = save(first, "a.gif", save_all=True, append_images=[second])
    assert (read_image(path) == 10).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("allow", [False, True])
def test_torn_files_are_refused_wherever_they_are_cut(tmp_path, monkeypatch, suffix, allow):
    # Some libraries switch this on for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allow)
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    content = buffer.getvalue()
    path = tmp_path / f"torn.{suffix}"
    for cut in np.linspace(1, len(content) - 40, 25).astype(int):
        path.write_bytes(content[:cut])
        with pytest.raises(ImageError, match=rf"torn\.{suffix}: "):
            read_image(str(path))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allow


def test_missing_empty_and_foreign_files_are_refused_by_name(tmp_path):
    for name, content in (("empty.jpg", b""), ("text.jpg", b"hello"), ("zero.png", bytes(500))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_image(str(tmp_path / name))
    with pytest.raises(ImageError, match="none.jpg"):
        read_image(str(tmp_path / "none.jpg"))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused_by_name(save):
    path = save(Image.fromarray(_picture()), "a.png")
    os.chmod(path, 0)
    with pytest.raises(ImageError, match="a.png: cannot be read"):
        read_image(path)


def _png_header(width, height):
    def chunk(kind, body):
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8000, 7000), (13000, 13000), (30000, 30000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_their_header(tmp_path, monkeypatch, size):
    (tmp_path / "bomb.png").write_bytes(_png_header(*size))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match=r"bomb\.png: "):
        read_image(str(tmp_path / "bomb.png"))


def test_the_pixel_limit_is_exact(save):
    path = save(Image.fromarray(_picture()), "a.png")
    assert read_image(path, max_pixels=23 * 17).shape == (17, 23, 3)
    with pytest.raises(ImageError, match="23 x 17 .*390.*INPUT.MAX_IMAGE_PIXELS"):
        read_image(path, max_pixels=23 * 17 - 1)
