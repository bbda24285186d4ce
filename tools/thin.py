"""Make a trained version small enough to be committed.  Called by make reference.

It shows the same; scores change in about the fourth digit, so numbers of a search (AnoGAN) are to be measured again.

python tools/thin.py lightning_logs/version_4 ...

Checkpoints: weights in half precision, compressed; of further trainings' films the first and the last picture.
Event files: at most ``MOMENTS`` pictures of a kind, spread over the training.  Pictures everywhere: see ``smaller``.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.checkpoints import FINISHED, read_checkpoint  # noqa: E402
from helpers.plots import CYCLE  # noqa: E402
from helpers.runtime import atomic_write  # noqa: E402

SMALL = 20_000  # values: shorter tensors, statistics among them, stay in float32
MOMENTS = 12  # pictures of a kind
PNG = b"\x89PNG"
LARGE = 60_000  # bytes of a picture, one full of photographs, that may become a JPEG


def smaller(png: bytes, jpeg: bool = True) -> bytes:
    """A picture with a palette of 128 colours; a large one as JPEG; or as it is, where that is no smaller.

    The colours of lines and captions are in the palette, even if few pixels have them.
    """
    if not png.startswith(PNG):  # thinned before
        return png
    picture, buffers = Image.open(io.BytesIO(png)).convert("RGB"), [io.BytesIO(png), io.BytesIO()]
    wider = Image.new("RGB", (picture.width + 20 * len(CYCLE), picture.height))
    wider.paste(picture)
    for place, colour in enumerate(CYCLE):
        wider.paste(colour, (picture.width + 20 * place, 0, picture.width + 20 * (place + 1), picture.height))
    palette = wider.quantize(128, dither=Image.Dither.NONE)
    colours = np.reshape(palette.getpalette(), (-1, 3))
    palette.putpalette(np.where(colours.min(1, keepdims=True) < 245, colours, 255).ravel().tolist())  # paper is white
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffers[-1], "PNG", optimize=True)
    if jpeg and len(png) > LARGE:
        buffers.append(io.BytesIO())
        picture.save(buffers[-1], "JPEG", quality=80, optimize=True)
    return min((buffer.getvalue() for buffer in buffers), key=len)


def thin_checkpoint(path: Path, whole_film: bool) -> None:
    """Halve and compress a finished model, which still computes in float32; without ``whole_film`` cut its film."""
    content, buffer = read_checkpoint(path), io.BytesIO()
    for name, values in content["state_dict"].items():
        if values.dtype == torch.float32 and values.numel() >= SMALL:
            content["state_dict"][name] = values.half()
    for name in ("frames", "frame_batches") if not whole_film else ():
        film = content["history"].get(name, [])
        content["history"][name] = film[:: max(1, len(film) - 1)]
    torch.save(content, buffer)
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as packed:  # torch reads it, too
        plain = zipfile.ZipFile(buffer)
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def thin_events(path: Path) -> None:
    """Leave out and shrink the pictures of an event file; numbers, sounds and texts stay."""
    events = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    pictures = [(value.tag, event.step) for event in events for value in event.summary.value if value.HasField("image")]
    kept = set()
    for tag in {tag for tag, _ in pictures}:
        steps = [step for other, step in pictures if other == tag]
        kept |= {(tag, steps[round(k * (len(steps) - 1) / (MOMENTS - 1))]) for k in range(MOMENTS)}
    with atomic_write(path) as part, part.open("wb") as file:
        for event in events:
            before = list(event.summary.value)
            del event.summary.value[:]
            for value in before:
                if value.HasField("image"):
                    value.image.encoded_image_string = smaller(value.image.encoded_image_string)
                if not value.HasField("image") or (value.tag, event.step) in kept:
                    event.summary.value.append(value)
            if event.summary.value or not before:
                RecordWriter(file).write(event.SerializeToString())


def thin(version: Path) -> None:
    """Thin all files of one version."""
    for path in version.rglob(FINISHED):
        thin_checkpoint(path, whole_film=path.parent == version)
    for path in version.rglob("events.out.tfevents.*"):
        thin_events(path)
    for path in version.rglob("*.png"):
        path.write_bytes(smaller(path.read_bytes(), jpeg=False))


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        thin(folder)
