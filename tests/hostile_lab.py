"""Broken and hostile files, each with words of its reason: what strangers, cut transfers and fuzzers leave in folders.

Encoders of what the installed libraries decode but do not write: JPEG Lossless, and a progressive JPEG of many scans.
"""

import io
import os
import struct
import zlib

import cv2
import jpeg_ls
import numpy as np
from PIL import Image, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from small_siim import dicom, radiograph, save, write_dicom, write_jpeg_dicom, write_png

EOI = b"\xff\xd9"


def jpeg_lossless(pixels):
    """JPEG Lossless (T.81, process 14, predictor 1) of uint8 or uint16 pixels, with a code of 5 bits per category."""
    bits, (rows, columns) = 8 * pixels.dtype.itemsize, pixels.shape
    values = pixels.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    code = []
    for difference in ((values - predicted + 32767) % 65536 - 32767).ravel().tolist():  # modulo 2^16 (T.81, H.1.2.1)
        size = abs(difference).bit_length()
        code.append(f"{size:05b}")
        if 0 < size < 16:
            code.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(code)
    data = int(text.ljust(-(-len(text) // 8) * 8, "1"), 2).to_bytes(-(-len(text) // 8)).replace(b"\xff", b"\xff\0")
    return (
        b"\xff\xd8"
        + b"\xff\xc3" + struct.pack(">HBHHB3B", 11, bits, rows, columns, 1, 1, 0x11, 0)
        + b"\xff\xc4" + struct.pack(">HB16B", 2 + 17 + 17, 0, *[0] * 4, 17, *[0] * 11) + bytes(range(17))
        + b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0)
        + data + EOI
    )  # fmt: skip


def slow_jpeg(scans, side=1440):
    """A small progressive JPEG that takes long: each scan of twelve bytes goes over all 16384 to 32767 blocks."""
    run = ((side // 8) ** 2 - 2**14) * 2 + 1  # a code of one bit, then how many more than 2^14 blocks are empty
    return (
        b"\xff\xd8"
        + b"\xff\xdb" + struct.pack(">HB", 67, 0) + b"\x01" * 64
        + b"\xff\xc2" + struct.pack(">HBHHB3B", 11, 8, side, side, 1, 1, 0x11, 0)
        + b"\xff\xc4" + struct.pack(">HB16B", 20, 0, 1, *[0] * 15) + b"\0"  # DC: the code 0 for no difference
        + b"\xff\xc4" + struct.pack(">HB16B", 20, 0x10, 1, *[0] * 15) + b"\xe0"  # AC: the code 0 for such a run
        + b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 0, 0, 0) + bytes((side // 8) ** 2 // 8)
        + (b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 63, 0) + run.to_bytes(2)) * scans
        + EOI
    )  # fmt: skip


def deflated_bomb(path, unpacked):
    """A DICOM file whose deflated part unpacks to ``unpacked`` bytes of zeros in one element."""
    head = write_dicom(path, radiograph(1), syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [squeeze.compress(struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, unpacked))]
    parts += [squeeze.compress(bytes(1 << 20)) for _ in range(unpacked >> 20)]
    path.write_bytes(head[:start] + b"".join(parts) + squeeze.flush())
    return path


def behind_the_pixels(path, tag, vr, value):
    """Appends an element of explicit little endian to a DICOM file, where its tag is out of order."""
    value += b" " * (len(value) % 2)
    path.write_bytes(path.read_bytes() + struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value)
    return path


def nested_sequences(path, depth):
    """A DICOM file with sequences of undefined length, each inside the one before, in front of the pixels' group."""
    data = write_dicom(path, radiograph(1), syntax=ImplicitVRLittleEndian).read_bytes()
    one = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    at = data.index(struct.pack("<HH", 0x0028, 0x0002))
    path.write_bytes(data[:at] + one * depth + data[at:])
    return path


def jpeg_2000(pixels):
    """A bare code stream, lossless."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True)
    return stream.getvalue()


def framed(path, frame, syntax, pixels=None, **tags):
    """A DICOM file around one compressed frame."""
    dataset = dicom(radiograph(1) if pixels is None else pixels, path.stem, syntax, **tags)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    return save(dataset, path)


def cut(frame, share):
    """A code stream cut short and closed again with its last marker."""
    return frame.rstrip(b"\0")[: int(len(frame) * share)] + EOI


def with_hole(frame, share, width):
    """A code stream without some bytes in the middle of its data."""
    at = int(len(frame) * share)
    return frame[:at] + frame[at + width :]


def replaced(path, old, new):
    """The same file with the first ``old`` replaced."""
    data = path.read_bytes()
    at = data.index(old)
    path.write_bytes(data[:at] + new + data[at + len(old) :])
    return path


def broken_files(folder, outside):
    """Sixty broken and hostile files in ``folder``; some are links to ``outside``.

    Returns:
        The name of each with some words of its reason. Sizes are small, but for what is meant to be large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outside.mkdir(parents=True, exist_ok=True)
    image, noisy = radiograph(1), np.random.default_rng(0).normal(128, 20, (64, 64)).clip(0, 255).astype(np.uint8)
    jpeg, picture = cv2.imencode(".jpg", image)[1].tobytes(), cv2.imencode(".png", image)[1].tobytes()
    colour = np.stack([radiograph(number) for number in (1, 2, 3)], axis=-1)
    reasons = {}

    def at(name, words):
        reasons[name] = words
        return folder / name

    def raw(name, data, words):
        at(name, words).write_bytes(data)

    # 1, 2: no file of its kind, or cut short
    raw("empty.dcm", b"", "the file is empty")
    raw("empty.png", b"", "the file is empty")
    raw("text.dcm", b"ImageId,EncodedPixels\n1,-1\n", "it is no DICOM file")
    raw("zip.dcm", b"PK\3\4" + bytes(500), "it is no DICOM file")
    raw("text.png", b"no picture at all", "neither a PNG nor a JPEG")
    raw("png.dcm", picture, "it is no DICOM file")
    whole = write_dicom(outside / "whole.dcm", image).read_bytes()
    raw("cut-in-header.dcm", whole[:300], "")
    raw("cut-raw.dcm", whole[: len(whole) * 2 // 3], "")
    plain = write_jpeg_dicom(outside / "jpeg.dcm", image).read_bytes()
    raw("cut-jpeg.dcm", plain[: len(plain) * 2 // 3], "")
    framed(at("cut-frame.dcm", "cut short"), jpeg[: len(jpeg) * 2 // 3], JPEGBaseline8Bit)
    raw("cut.png", picture[: len(picture) // 2], "cannot be decoded")
    raw("cut-picture.jpg", jpeg[: len(jpeg) // 2], "cannot be decoded")
    raw("flipped.png", picture[:-40] + bytes([picture[-40] ^ 255]) + picture[-39:], "cannot be decoded")
    # 3, 4: depth and bombs
    nested_sequences(at("nested.dcm", "nested too deeply"), 5000)
    deflated_bomb(at("deflated.dcm", "deflated data unpack to more"), 600 * 2**20)
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.fromarray(image).save(at("text-bomb.png", "cannot be decoded"), pnginfo=info)
    Image.new("1", (20000, 20000)).save(at("bomb.png", "more than the"))
    framed(at("runs.dcm", "unpack to far more"), struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 4000, RLELossless)
    framed(at("long-frame.dcm", "far more than"), bytes(200_000), RLELossless)
    with at("oversized.dcm", "more than the").open("wb") as stream:
        stream.truncate(256 * 2**20 + 1)  # sparse: takes no space
    # 5, 6, 7: sizes that are not true
    write_dicom(at("huge.dcm", "more than the"), image, Rows=65535, Columns=65535)
    large = cv2.imencode(".jpg", np.zeros((2000, 1000), np.uint8))[1].tobytes()
    framed(at("huge-jpeg.dcm", "is of 2000x1000 pixels"), large, JPEGBaseline8Bit)
    framed(at("huge-j2k.dcm", "is of 300x200 pixels"), jpeg_2000(np.zeros((300, 200), np.uint8)), JPEG2000Lossless)
    dataset = dicom(image, "excess")
    dataset.PixelData += bytes(100)
    save(dataset, at("excess.dcm", "are expected"))
    write_dicom(at("frames.dcm", "5000 frames"), image, NumberOfFrames=5000)
    write_dicom(at("twice.dcm", "bytes of pixels where"), np.concatenate([image, image]), Rows=64)
    dataset = dicom(image, "two-jpegs", JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg, jpeg])
    save(dataset, at("two-jpegs.dcm", "more than one frame"))
    write_dicom(at("no-rows.dcm", "holds no image"), image, Rows=0)
    write_dicom(at("no-columns.dcm", "holds no image"), image, Columns=0)
    write_dicom(at("no-pixels.dcm", "holds no pixels"), image, PixelData=None)
    write_png(at("narrow.png", "64 rows and 8 columns"), image[:, :8])
    # 8: other kinds
    dataset = dicom(image, "colour")
    dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
    dataset.PixelData = colour.tobytes()
    save(dataset, at("colour.dcm", "it is in colour"))
    write_dicom(at("palette.dcm", "PALETTE COLOR"), image, PhotometricInterpretation="PALETTE COLOR")
    write_dicom(at("one-bit.dcm", "allocates 1 bits"), image, BitsAllocated=1)
    write_png(at("colour-picture.png", "in colour"), colour)
    write_png(at("transparent.png", "transparent"), np.dstack([image] * 3 + [np.full((64, 64), 128, np.uint8)]))
    Image.fromarray(image).save(at("gif.png", "neither a PNG nor a JPEG"), "GIF")
    frames = [Image.fromarray(radiograph(seed)) for seed in (1, 2)]
    frames[0].save(at("moving.png", "several frames"), save_all=True, append_images=frames[1:])
    framed(at("video.dcm", "MPEG2"), b"\0\0", MPEG2MPML)
    framed(at("jp2.dcm", "wrapped in a JP2 file"), b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), JPEG2000Lossless)
    framed(at("colour-jpeg.dcm", "has 3 components"), cv2.imencode(".jpg", colour)[1].tobytes(), JPEGBaseline8Bit)
    write_dicom(at("lateral.dcm", "which is not frontal"), image, ViewPosition="LL")
    write_dicom(at("hand.dcm", "body part HAND"), image, BodyPartExamined="HAND")
    # 30, 33: values
    syntax = b"1.2.840.10008.1.2.1\0"
    replaced(write_dicom(at("syntaxes.dcm", "several ways"), image), syntax, syntax.replace(b"1.2.840.", b"1.2.840\\"))
    unsaid = write_dicom(at("no-syntax.dcm", "does not say how its pixels are stored"), image)
    replaced(unsaid, b"\2\0\x10\0", b"\2\0\x11\0")
    deep = image.astype(np.uint16)
    write_dicom(at("slope.dcm", "grey values are not known"), deep, RescaleSlope="0", RescaleIntercept="0")
    write_dicom(at("nan.dcm", "grey values are not known"), deep, RescaleSlope="nan", RescaleIntercept="0")
    write_dicom(at("intercept.dcm", "grey values are not known"), deep, RescaleSlope="1", RescaleIntercept="1e308")
    # 31: code streams that end too early, closed again, and with holes
    lossless, near = jpeg_lossless(noisy), jpeg_ls.encode_array(noisy)
    framed(at("lossless-cut.dcm", "cannot be decoded"), cut(lossless, 0.1), JPEGLosslessSV1)
    framed(at("lossless-cut-late.dcm", "cannot be decoded"), cut(lossless, 0.9), JPEGLosslessSV1)
    framed(at("ls-cut.dcm", "cannot be decoded"), cut(near, 0.1), JPEGLSLossless)
    framed(at("ls-cut-late.dcm", "cannot be decoded"), cut(near, 0.9), JPEGLSLossless)
    framed(at("ls-hole.dcm", "cannot be decoded"), with_hole(near, 0.5, 40), JPEGLSLossless)
    framed(at("j2k-cut.dcm", "cannot be decoded"), cut(jpeg_2000(noisy), 0.6), JPEG2000Lossless)
    framed(at("stray.dcm", "does not begin as"), b"\xff\xd8\0" + jpeg[2:], JPEGBaseline8Bit)
    # 34: time
    framed(at("slow.dcm", "took more than"), slow_jpeg(300_000), JPEGBaseline8Bit, np.zeros((1440, 1440), np.uint8))
    # 45: links out of the folder, and what is no file
    at("link.dcm", "outside of the folder").symlink_to(outside / "whole.dcm")
    at("linked-folder", "outside of the folder").symlink_to(outside)
    at("device.png", "outside of the folder").symlink_to("/dev/zero")
    os.mkfifo(at("pipe.dcm", "only regular files"))
    assert len(reasons) == 60
    names = {name.partition(".")[0] for name in reasons}
    assert len(names) == 58, "of one name are those alone that are refused at once, empty and text"
    return reasons
