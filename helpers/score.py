"""Score photographs with a detector that ``helpers.export`` wrote.

python -m helpers.score detector.onnx photo.jpg folder/ ... [--csv out.csv] [--maps out/]

Needs onnxruntime, NumPy and Pillow, no torch.  Exit status: 0 all normal, 1 some anomalous, 2 some could not be scored.
"""

import argparse
import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from helpers.data.photo import ENDINGS, DataError, open_photo

FORMAT = "image-anomaly-detection detector 1"
LARGEST = 1600  # pixels of a picture with its map
SMALLEST = 0.5  # of the photographs that the detector learned from: smaller ones lack the detail


@dataclass
class Verdict:
    """What a detector says of one photograph."""

    score: float  # higher is more anomalous
    anomalous: bool  # whether it is above the threshold
    map: np.ndarray  # (h, w) float32: where; the photograph's proportions, the longer side as in the detector


class Detector:
    """A detector file.  ``note``: what export wrote into it, as strings: dataset, threshold, n_calibration, and more.

    Raises DataError for a file that is damaged, or none of ours.
    """

    def __init__(self, path: Path | str):
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen kinds
            reason = str(error).splitlines()[0][:200]
            raise DataError(f"{path} cannot be read as a detector ({reason}): export or copy it again") from error
        self.note = self.session.get_modelmeta().custom_metadata_map
        if self.note.get("format") != FORMAT:
            found = self.note.get("format", "an ONNX file of another kind")
            raise DataError(f"{path} holds {found!r}, not {FORMAT!r}: export it again with this version of the course")
        self.threshold = float(self.note["threshold"])

    def __call__(self, photo: np.ndarray) -> Verdict:
        """The verdict on a photograph in colour, (height, width, 3) uint8."""
        score, anomalous, heat = self.session.run(["score", "anomalous", "map"], {"photo": photo})
        return Verdict(float(score), bool(anomalous), heat)

    def read(self, path: Path) -> np.ndarray:
        """An image file as (height, width, 3) uint8.  Raises DataError if it cannot be read, or is much too small."""
        image, _ = open_photo(path)
        learned = int(self.note["photo_side"])
        if max(image.size) < SMALLEST * learned:
            seen = f"{image.width} x {image.height} pixels; the detector learned from photographs of {learned}"
            raise DataError(f"{path} has {seen}: take a larger picture")
        return np.asarray(image)


def overlay(photo: np.ndarray, heat: np.ndarray, top: float) -> Image.Image:
    """The photograph, at most ``LARGEST`` pixels wide and high, red where ``heat`` (h, w) is above ``top``.

    top: the 99.9th percentile on good photographs.
    """
    picture = Image.fromarray(photo)
    picture.thumbnail((LARGEST, LARGEST))
    strength = np.clip((heat / top - 1) / 0.3, 0, 1)
    alpha = Image.fromarray(np.uint8(170 * strength)).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", picture.size, (230, 30, 0)), picture, alpha)


def files_of(paths: list[str], maps: Path | None = None) -> list[Path]:
    """Photographs themselves, and those in folders and below: no hidden files, nothing in ``maps``."""
    found, own = [], maps and maps.resolve()
    for path in map(Path, paths):
        inside = sorted(path.rglob("*")) if path.is_dir() else []
        inside = [file for file in inside if file.suffix.lower() in ENDINGS and own not in file.resolve().parents]
        found += [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        found += [] if path.is_dir() else [path]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each photograph and a summary; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="a file that helpers.export wrote")
    parser.add_argument("paths", nargs="+", help="photographs, and folders of them")
    parser.add_argument("--csv", type=Path, help="also write a table")
    parser.add_argument("--maps", type=Path, help="also write every photograph with its anomalous places in red")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks the letters of a file's name must not stop the run
            stream.reconfigure(errors="replace")
    try:
        detector, files = Detector(options.detector), files_of(options.paths, options.maps)
        if not files:
            raise DataError(f"no photograph in {', '.join(options.paths)}: {', '.join(ENDINGS)} are read")
        if options.maps:
            options.maps.mkdir(parents=True, exist_ok=True)
        table = options.csv or Path(os.devnull)
        with table.open("w", newline="", encoding="utf-8-sig", errors="replace") as file:
            count = score_all(detector, files, csv.writer(file), options.maps)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(files)} photographs: " + ", ".join(f"{many} {kind}" for kind, many in count.items()))
    return 2 if count["unreadable"] else int(count["ANOMALOUS"] > 0)


def score_all(detector: Detector, files: list[Path], table, maps: Path | None) -> dict[str, int]:
    """Print a line for each photograph and write it to the table; how many there are of each verdict."""
    count = {"normal": 0, "ANOMALOUS": 0, "unreadable": 0}
    table.writerow(["file", "verdict", "score", "threshold"])
    for number, path in enumerate(files):
        try:
            photo = detector.read(path)
            found = detector(photo)
            verdict, score = "ANOMALOUS" if found.anomalous else "normal", f"{found.score:.4f}"
            print(f"{verdict:10}{score:>10}  {path}", flush=True)
            if maps:  # numbered: two folders may hold the same name
                picture = overlay(photo, found.map, float(detector.note["map_top"]))
                picture.save(maps / f"{number:04}_{path.stem}.png")
        except (DataError, OSError) as error:
            verdict, score = "unreadable", ""
            print(f"{verdict:20}  {error}", file=sys.stderr, flush=True)
        count[verdict] += 1
        table.writerow([path, verdict, score, detector.threshold])
    return count


if __name__ == "__main__":
    sys.exit(main())
