"""Fuzzing of CSV files of labels: separators, quotes, columns, rows and encodings."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.mutate import bytewise
from tests.fuzz.target import READ, Target, check_splits, noting
from tools.sources import label_table, labels_csv

FILES = tuple(f"{split}/{i}.png" for split in ("train", "test") for i in range(4))


def table_seeds() -> list[bytes]:
    """Tables as spreadsheets and programs write them."""
    rows = [(name, ("cat", "dog")[number % 2]) for number, name in enumerate(FILES)]
    plain = "file,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
    quoted = "id;name;class\r\n" + "".join(f'"{name[:-4]}";"x ""y"" z";"{label}"\r\n' for name, label in rows)
    names = "image_id,target,x\n" + "".join(f"{i},{i % 2},y\n" for i in range(4))
    numbers = "path\tlabel\n" + "".join(f".\\{name}\t{number % 3 - 1}\n" for number, name in enumerate(FILES))
    return [plain.encode(), quoted.encode("utf-8-sig"), numbers.encode("utf-16"), names.encode()]


def mutate_table(draw: random.Random, content: bytes) -> bytes:
    """Lines and cells moved, doubled and left out; characters that mean something; or bytes."""
    if draw.random() < 0.4:
        return bytewise(draw, content, draw.choice(table_seeds()))
    lines = content.split(b"\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(lines))
        match draw.randrange(5):
            case 0:
                lines.insert(place, draw.choice(lines))
            case 1:
                del lines[place]
                lines = lines or [b""]
            case 2:
                at = draw.randrange(len(lines[place]) + 1)
                lines[place] = lines[place][:at] + draw.choice((
                    b",", b";", b"\t", b'"', b'""', b"\0", b"\r", b"\xff", b"../", b"/", b"nan", b"-1", b"9" * 30,
                    b"1.0", b"\xef\xbb\xbf", b"x" * 70000)) + lines[place][at:]
            case 3:
                cells = lines[place].split(b",")
                draw.shuffle(cells)
                lines[place] = b",".join(cells)
            case _:
                lines[place] = draw.choice((b"", b"file,label", b"label,file", b"id,id,label", b"train/0.png,",
                                            b"train/0.png", b"train/0.png,owl", b"//,x", b".,x", b",x"))
    return b"\n".join(lines)


def table_reader(path: Path) -> READ:
    """Past the header: both columns were found."""
    passed = []
    noting(label_table, "_column", passed)
    for number, name in enumerate(FILES):
        (path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path / "photos" / name)

    def read(content: bytes, past: list) -> None:
        (path / "labels.csv").write_bytes(content)
        passed.clear()
        try:
            check_splits(labels_csv.read(path / "photos", 4, path / "labels.csv", test_fraction=0))
        finally:
            past += passed[1:]
    return read


TARGETS = {"csv": Target(table_seeds, mutate_table, table_reader)}
