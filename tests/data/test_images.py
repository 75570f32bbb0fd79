"""Image files of every kind as Caffe shall see them, and what is found wrong with bad ones."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from multilabel_softmax_loss.data.images import BadImage, Geometry, decode, encode, jpeg_is_doubtful, read_image

RNG = np.random.RandomState(0)
SMOOTH = cv2.resize(RNG.randint(0, 256, (6, 8, 3)).astype(np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def saved(image, kind, **options):
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(pixels=SMOOTH):
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


JPEG = encode(SMOOTH, "jpg")


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def turned(image, orientation):
    """`image` as a viewer shows it: (H, W, 3)"""
    turns = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: np.rot90(image, -1)[::-1],
        8: np.rot90(image),
    }
    return turns[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    plain = decode(saved(rgb(), kind, **options))
    assert np.array_equal(decode(saved(rgb(), kind, exif=exif(orientation), **options)), turned(plain, orientation))
    if kind == "TIFF":
        pixels = rgb().convert("RGBA")  # which is decoded by another library
        assert np.array_equal(decode(saved(pixels, kind, exif=exif(orientation))), turned(plain, orientation))


def test_alpha_stands_over_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[:, :, 0] = 200  # red
    pixels[0, 0, 3], pixels[0, 1, 3], pixels[1, :, 3] = 0, 255, 51
    for kind in ("PNG", "TIFF"):
        image = decode(saved(Image.fromarray(pixels), kind))
        assert image[0].tolist() == [[255, 255, 255], [0, 0, 200]], kind
        assert image[1, 0].tolist() == [204, 204, 244], kind
    gray = np.array([[[10, 0], [10, 255]]], np.uint8)
    assert decode(saved(Image.fromarray(gray), "PNG"))[0].tolist() == [[255] * 3, [10] * 3]
    palette = Image.new("P", (2, 1))
    palette.putdata([0, 1])
    palette.putpalette([9, 9, 9, 0, 0, 255])
    assert decode(saved(palette, "PNG", transparency=0))[0].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_every_kind_of_pixel_comes_out_as_8_bit_bgr():
    deep = (SMOOTH.astype(np.uint16) << 8) + 7
    for kind in (".png", ".tiff"):
        assert np.array_equal(decode(cv2.imencode(kind, deep)[1].tobytes()), SMOOTH)
    for kind in ("GIF", "BMP", "WEBP", "TIFF"):
        first = rgb().convert("P", palette=Image.Palette.ADAPTIVE) if kind == "GIF" else rgb()
        options = {"save_all": True, "append_images": [Image.new("P", first.size)]} if kind == "GIF" else {}
        found = decode(saved(first, kind, **options))
        assert found.dtype == np.uint8
        assert found.shape == SMOOTH.shape
        assert np.abs(found.astype(int) - SMOOTH).mean() < 8, kind
    cmyk = decode(saved(rgb().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - SMOOTH).mean() < 12
    gray = decode(saved(rgb().convert("L"), "JPEG"))
    assert gray.shape == SMOOTH.shape
    assert (gray[:, :, 0] == gray[:, :, 2]).all()
    assert decode(JPEG, gray=True).shape == decode(encode(SMOOTH, "png"), gray=True).shape == SMOOTH.shape[:2]


def test_pixels_of_plain_files_are_those_of_opencv(tmp_path):
    for name in ("a.jpg", "b.png", "c.bmp"):
        path = str(tmp_path / name)
        cv2.imwrite(path, SMOOTH)
        assert np.array_equal(read_image(path), cv2.imread(path))
        assert np.array_equal(read_image(path, gray=True), cv2.imread(path, cv2.IMREAD_GRAYSCALE))


def corrupted(data, seed=1, count=2000):
    """`count` random bytes in the middle of the compressed data."""
    start = data.index(b"\xff\xda") + 100
    noise = np.random.RandomState(seed).bytes(count)
    return data[:start] + noise + data[start + count :]


BAD = {
    "0 bytes": (b"", "0 bytes"),
    "cut in half": (JPEG[: len(JPEG) // 2], "cut"),
    "last bytes missing": (JPEG[:-20], "cut"),
    "random bytes inside": (corrupted(JPEG), "corrupted"),
    "a mark that ends the data early": (JPEG[:2000] + b"\xff\x01" * 50 + JPEG[2100:], "corrupted"),
    "an end in the middle": (JPEG[:2000] + b"\xff\xd9" + JPEG[2002:], "corrupted"),
    "text": (b"<html>not found</html>", "no image"),
    "PNG of 16 bits without its last byte": (
        encode(SMOOTH[:, :, 0] * np.uint16(257), "png")[:-1],
        "the end is missing",
    ),
    "PNG cut": (encode(SMOOTH, "png")[:-100], "cut|corrupted"),
    "PNG with a wrong byte": (encode(SMOOTH, "png")[:5000] + b"\0" + encode(SMOOTH, "png")[5001:], "corrupted|cut"),
}


@pytest.mark.parametrize("data, message", BAD.values(), ids=list(BAD))
def test_bad_images_are_found(data, message, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=message):
        read_image(str(path))


def test_a_missing_image_is_bad():
    with pytest.raises(BadImage, match="missing"):
        read_image("/nowhere/x.jpg")


def test_right_images_are_not_doubtful():
    progressive = saved(rgb(), "JPEG", progressive=True)
    restarts = cv2.imencode(".jpg", SMOOTH, [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1].tobytes()
    for data in (JPEG, progressive, restarts, saved(rgb(), "JPEG", exif=exif(6), comment=b"hello")):
        assert not jpeg_is_doubtful(data)
    assert np.array_equal(decode(JPEG + b"trailing"), decode(JPEG))


def test_what_a_library_says_of_harmless_bytes_is_heard_and_not_shown(capfd):
    for gray in (False, True):
        assert np.array_equal(decode(JPEG[:20] + b"123" + JPEG[20:], gray), decode(JPEG, gray))
    assert capfd.readouterr().err == ""


def test_sizes():
    assert Geometry((30, 40)).apply(SMOOTH).shape == (30, 40, 3)
    assert Geometry(short_side=60).apply(SMOOTH).shape == (60, 80, 3)
    assert Geometry(short_side=60).apply(SMOOTH.transpose(1, 0, 2)).shape == (80, 60, 3)
    assert Geometry().apply(SMOOTH) is SMOOTH
    expected = cv2.resize(SMOOTH, (40, 30), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(Geometry((30, 40)).apply(SMOOTH), expected)
