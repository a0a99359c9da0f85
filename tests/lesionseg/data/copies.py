"""Pictures with texture on every scale, as skin has it, and what copies of them go through."""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

TURN = Image.Transpose


def texture(seed, size=(240, 180)):
    """A dark blob on skin with spots and lines of its own; size is (width, height)."""
    rng = np.random.default_rng(seed)
    width, height = size
    total = np.zeros((height, width))
    for cells, weight in ((6, 40), (14, 25), (40, 15)):
        noise = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        total += weight * np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    y, x = np.mgrid[0:height, 0:width]
    cx, cy, rx, ry = rng.uniform((0.4, 0.4, 0.15, 0.15), (0.6, 0.6, 0.35, 0.35))
    inside = ((x / width - cx) / rx) ** 2 + ((y / height - cy) / ry) ** 2 < 1
    grey = 175 + 0.5 * total - 70 * inside
    pixels = np.stack([grey + 30, grey, grey - 15], axis=-1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


def recompressed(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def scaled(image, factor):
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(image, rim):
    """Without that share of each side."""
    dx, dy = round(image.width * rim), round(image.height * rim)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


#: What is done to a copy, by name.
CHANGES = {
    "half the size": lambda i: scaled(i, 0.5),
    "twice the size": lambda i: scaled(i, 2),
    "JPEG 90": lambda i: recompressed(i, 90),
    "JPEG 60": lambda i: recompressed(i, 60),
    "JPEG 30": lambda i: recompressed(i, 30),
    "half the size, JPEG 60": lambda i: recompressed(scaled(i, 0.5), 60),
    "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.15),
    "darker": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "more contrast": lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    "grey": lambda i: i.convert("L").convert("RGB"),
    "squeezed": lambda i: i.resize((100, 100)),
    **{way.name.lower(): lambda i, way=way: i.transpose(way) for way in TURN},
    "cropped by 2%": lambda i: cropped(i, 0.02),
    "cropped by 5%": lambda i: cropped(i, 0.05),
    "cropped, mirrored, JPEG 50": lambda i: recompressed(
        cropped(i, 0.05).transpose(TURN.FLIP_LEFT_RIGHT), 50
    ),
}
