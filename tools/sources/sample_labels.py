"""The label of a WebDataset sample, out of its cls, json or txt."""

import json
from collections.abc import Mapping

from pipelines.common.errors import DataError, UsageError, shown
from tools.sources.splits import Vocabulary

CLS, JSON, TXT = "cls", "json", "txt"
KINDS = (CLS, JSON, TXT)  # files that may have a label, by preference
FIELDS = ("label", "class", "cls", "category", "class_name", "label_name", "target")  # of a json, by preference
MAX_JSON_BYTES = 2**20
MAX_LABEL_BYTES = 1024  # of a label; a longer txt is a caption
MAX_TEXT = 2**25  # characters of all labels
CAPTIONS = 20  # labels that all may differ
EARLY = 2**16  # different labels after which captions are noticed before the end
SHOWN_FIELDS = 10
TAKE_NONE = "--unlabeled takes the images without labels"


class Labels:
    """Reads labels, all of the same kind, and numbers them.

    Args:
        where: the source, for messages.
        key: the kind, or a field of the json, in which dots descend; None: what there is.
    """

    def __init__(self, where: str, key: str | None):
        self.where, self._key = where, key
        kind = key.lower() if key is not None and key.lower() in KINDS else None
        self._field = key if key is not None and kind is None else None
        self.kinds = KINDS if key is None else (kind or JSON,)
        self.vocabulary = Vocabulary(where)
        self.origin: str | None = None  # what the labels are from; None: no sample has any so far
        self._origin_key, self._origin_where = "", ""
        self._characters = 0
        self._labeled = self._captions = 0
        self._json: tuple[str, str] | None = None  # a sample without a label in its json, and the fields there

    def limit(self, kind: str) -> int:
        """Bytes of a file that are looked at."""
        return MAX_JSON_BYTES if kind == JSON else MAX_LABEL_BYTES

    def number(self, files: Mapping[str, tuple[str, bytes | None]]) -> tuple[int, str | None]:
        """A sample's label as its number for now, −1 for none, and the kind of the file that it is from.

        Args:
            files: by kind, a file's name for messages and what is in it; None where that is more than ``limit``.

        Raises:
            DataError: what can be no label, or no readable json.
            UsageError: it is from another kind of file, or another field, than labels before; captions.
        """
        for kind in self.kinds:
            if kind in files:
                where, content = files[kind]
                label, origin, key = self._read(kind, where, content)
                if label is not None:
                    return self._numbered(label, origin, key, where), kind
        return -1, None

    def check(self) -> None:
        """After the last sample of the training images: UsageError for captions, and a ``key`` that none has."""
        self._check_captions()
        if self._key is not None and self.origin is None:
            found = f"; {self._json[0]} has {self._json[1]}" if self._json and self._field else ""
            raise UsageError(f"--label-key: found {shown(self._key)}, but no sample in {self.where} has a label "
                             f"there{found}")

    def note(self) -> str:
        """What the labels are from, for a line."""
        if self.origin is None:
            return "no labels" + (f"; {self._json[0]} has {self._json[1]}: --label-key names the one that is the label"
                                  if self._json else "")
        return f"labels from {self.origin}"

    def _read(self, kind: str, where: str, content: bytes | None) -> tuple[str | None, str, str]:
        """A label's text, None for none; what it is from; and the key that has it taken from there."""
        if kind == JSON:
            return self._of_json(where, content)
        text = _line(content)
        if text is not None:
            return text, f"the {kind}", kind
        if kind == CLS:
            what = f"more than {MAX_LABEL_BYTES:,} bytes" if content is None else shown(content)
            raise DataError(f"{where}: {what} found, expected a class's number or name; {TAKE_NONE}")
        self._captions += 1
        return None, "", ""

    def _of_json(self, where: str, content: bytes | None) -> tuple[str | None, str, str]:
        if content is None:
            raise DataError(f"{where}: more than {MAX_JSON_BYTES:,} bytes found, expected a json with a label; "
                            f"{TAKE_NONE}")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: no readable json; {TAKE_NONE}, --label-key cls those of the cls") from None
        if not isinstance(value, dict):
            label = None if self._field or isinstance(value, list) else _text(value)
            return _bounded(label, where), "the json", JSON
        if self._field is not None:
            found, inner = _descend(value, self._field)
            if found and isinstance(inner, dict | list):
                raise DataError(f"{where}: {'an object' if isinstance(inner, dict) else 'a list'} found as "
                                f"{shown(self._field)}, expected a number or text; in --label-key dots descend: "
                                f"annotation.class")
            field, label = self._field, _text(inner) if found else None
        else:
            field = next((field for field in FIELDS if _text(value.get(field)) is not None), "")
            label = _text(value.get(field)) if field else None
        if label is None and value and self._json is None:
            self._json = where, f"the fields {_names(value)}"
        return _bounded(label, where), f"{shown(field)} of the json", field

    def _numbered(self, label: str, origin: str, key: str, where: str) -> int:
        before = len(self.vocabulary)
        number = self.vocabulary.number(label)
        if self.origin is None:
            self.origin, self._origin_key, self._origin_where = origin, key, where
        elif origin != self.origin and number >= 0:
            raise UsageError(f"--label-key: needed; the label of {self._origin_where} is from {self.origin}, that of "
                             f"{where} from {origin}; --label-key {self._origin_key} or --label-key {key} takes one")
        self._labeled += number >= 0
        if len(self.vocabulary) > before:
            self._characters += len(label)
            if self._characters > MAX_TEXT:
                raise DataError(f"{self.where}: labels of more than {MAX_TEXT:,} characters in all found")
            if before >= EARLY:
                self._check_captions()
        return number

    def _check_captions(self) -> None:
        different = len(self.vocabulary) + self._captions
        if (self.origin in (None, f"the {TXT}") and different > CAPTIONS
                and different > (self._labeled + self._captions) / 2):
            raise UsageError(f"{self.where}: the txt of nearly every sample has its own text: captions, which are no "
                             f"labels; {TAKE_NONE}, --label-key names a field of the json")


def _line(content: bytes | None) -> str | None:
    """One line of text; None for what is none."""
    try:
        text = None if content is None else content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    return None if text is None or len(text.splitlines()) > 1 else text


def _text(value: object) -> str | None:
    """A value of a json as a label; None for what is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def _bounded(label: str | None, where: str) -> str | None:
    if label is not None and len(label) > MAX_LABEL_BYTES:
        raise DataError(f"{where}: a label of {len(label):,} characters found, expected at most {MAX_LABEL_BYTES:,}")
    return label


def _descend(value: object, field: str) -> tuple[bool, object]:
    """Whether an object has a field, or ones in one another that are named with dots between; and what is there."""
    if isinstance(value, dict) and field in value:
        return True, value[field]
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _names(value: dict) -> str:
    names = [shown(name)[1:-1] for name in list(value)[:SHOWN_FIELDS]]
    return ", ".join(names + ["…"] * (len(value) > SHOWN_FIELDS))
