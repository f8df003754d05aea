#!/usr/bin/env python3
"""Writes image_test_files.inc: small pictures and what Pillow makes of them.

    python3 image_test_gen.py > image_test_files.inc

Made with Pillow 13 (libjpeg-turbo 3.2, libwebp 1.6).  Each line is
FILE(name, width, height, most that a sample may differ, file, RGB), both in hex.
The tolerance of JPEG is that of two inverse DCTs (1) times the largest factor
of the colour matrix, 1.772, and of two ways to interpolate chroma; CMYK
multiplies two such samples.
"""
import io
import math

from PIL import Image

WIDTH, HEIGHT = 21, 13


def picture():
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            image.putpixel((x, y), (
                int(127 + 120 * math.sin(x / 4 + y / 7)),
                int(127 + 120 * math.cos(x / 6 - y / 5)),
                255 * x // WIDTH))
    return image


def emit(name, tolerance, image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    back = Image.open(io.BytesIO(out.getvalue())).convert("RGB")
    print(f'FILE({name}, {back.width}, {back.height}, {tolerance},')
    for data, end in ((out.getvalue().hex(), ","), (back.tobytes().hex(), ")")):
        lines = [data[i:i + 94] for i in range(0, len(data), 94)]
        print("\n".join(f'     "{line}"' for line in lines) + end)


def main():
    print("/* made by image_test_gen.py */")
    rgb = picture()
    rgba = rgb.copy()
    rgba.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    turned = Image.Exif()
    turned[0x0112] = 6
    emit("jpeg_420", 4, rgb, format="JPEG", quality=85, comment=b"a comment")
    emit("jpeg_422_progressive", 4, rgb, format="JPEG", quality=85, subsampling=1, progressive=True)
    emit("jpeg_444_turned", 3, rgb, format="JPEG", quality=85, subsampling=0, exif=turned)
    emit("jpeg_restarts", 4, rgb, format="JPEG", quality=60, restart_marker_blocks=1)
    emit("jpeg_gray", 1, rgb.convert("L"), format="JPEG", quality=85)
    emit("jpeg_rgb", 1, rgb, format="JPEG", quality=85, keep_rgb=True)
    emit("jpeg_cmyk", 4, rgb.convert("CMYK"), format="JPEG", quality=85)
    emit("webp_lossy", 1, rgb, format="WEBP", quality=80)
    emit("webp_lossy_alpha", 1, rgba, format="WEBP", quality=80, exact=True, exif=turned)
    emit("webp_lossless", 0, rgb, format="WEBP", lossless=True)
    emit("webp_lossless_alpha", 0, rgba, format="WEBP", lossless=True, exact=True)
    emit("png_palette_alpha", 0, rgba.quantize(15), format="PNG", bits=4)


if __name__ == "__main__":
    main()
