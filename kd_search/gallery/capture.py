"""Camera and time of a picture: from its path, from a table, or from EXIF.

Times are seconds since 1970 on the wall clock of the camera: what its display showed, without time
zone and summer time. Two pictures of one camera compare as their printed times do.
"""

import calendar
import csv
import datetime
import io
import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from PIL import Image

from .manifest import GalleryError

_GROUPS = {"camera", "time", "unix", "year", "month", "day", "hour", "minute", "second"}
_FORMATS = ("%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d")
_EXIF_IFD, _DATE_TIME_ORIGINAL = 0x8769, 0x9003
_COLUMNS = {"path", "camera", "time"}


@dataclass(frozen=True)
class CaptureRules:
    """How camera and time are found; the first of table, path and EXIF that knows them counts.

    Args:
        path_pattern: regular expression that is looked for in the absolute path, with "/" between
            folders. Its named groups are ``camera``, and for the time ``time`` (see
            :func:`parse_time`), ``unix`` (seconds since 1970, UTC, shown by the clock of this
            machine) or ``year``, ``month``, ``day`` and optionally ``hour``, ``minute``,
            ``second``.
        time_format: of the group ``time``, as of :func:`time.strptime`.
        table: CSV file with a header of ``path`` and ``camera`` or ``time`` or both. Paths are
            absolute or relative to the table.
    """

    path_pattern: Optional[str] = None
    time_format: Optional[str] = None
    table: Optional[str] = None


class Capture:
    """Applies :class:`CaptureRules`."""

    def __init__(self, rules: CaptureRules):
        """Raises :class:`GalleryError` for a wrong pattern or table; names it."""
        self._format = rules.time_format
        self._pattern = None
        if rules.path_pattern:
            try:
                self._pattern = re.compile(rules.path_pattern)
            except re.error as error:
                raise GalleryError(f"--path-pattern {rules.path_pattern!r}: {error}") from None
            groups = set(self._pattern.groupindex)
            if not groups or groups - _GROUPS:
                raise GalleryError(
                    f"--path-pattern {rules.path_pattern!r}: its named groups must be of "
                    f"{', '.join(sorted(_GROUPS))}, as (?P<camera>[^/]+)"
                )
        self._table = _read_table(rules.table) if rules.table else {}
        #: Number of these rules and the content of the table: another one where they differ.
        self.key = zlib.crc32(repr((rules, sorted(self._table.items(), key=repr))).encode())

    def __call__(self, path: str, content: bytes = b"") -> tuple[Optional[str], Optional[float]]:
        """Camera and time of a file, ``None`` where unknown.

        Args:
            path: absolute.
            content: bytes of a picture, for EXIF.

        Raises:
            GalleryError: the pattern found no valid time; names the path.
        """
        camera, seconds = self._table.get(path, (None, None))
        found = self._pattern.search(path.replace(os.sep, "/")) if self._pattern else None
        if found:
            groups = {name: text for name, text in found.groupdict().items() if text}
            camera = camera if camera is not None else groups.get("camera")
            if seconds is None:
                seconds = self._time(path, groups)
        if seconds is None and content:
            seconds = exif_time(content)
        return camera, seconds

    def _time(self, path: str, groups: Mapping[str, str]) -> Optional[float]:
        try:
            if "time" in groups:
                if self._format is None:
                    return parse_time(groups["time"])
                return _seconds(datetime.datetime.strptime(groups["time"], self._format))
            if "unix" in groups:
                return wall_clock(float(groups["unix"]))
            if "year" in groups:
                names = ("year", "month", "day", "hour", "minute", "second")
                defaults = (0, 1, 1, 0, 0, 0)
                parts = (int(groups.get(n, default)) for n, default in zip(names, defaults))
                return _seconds(datetime.datetime(*parts))  # type: ignore[arg-type]
        except (ValueError, OverflowError, OSError) as error:
            raise GalleryError(f"{path}: --path-pattern found no valid time ({error})") from None
        return None


def parse_time(text: str, *, end: bool = False) -> float:
    """Seconds since 1970 on the wall clock of a written time.

    Args:
        text: ``2026-11-03``, ``2026-11-03 14:05``, ``2026-11-03T14:05:09.5``, or the digits alone
            with any characters between them (``20261103_140509``).
        end: a time without hour or second means its end, not its begin.

    Raises:
        ValueError: it is none of these, or has a time zone.
    """
    cleaned = text.strip()
    if re.search(r"(?:[zZ]|[+-]\d\d:?\d\d)$", cleaned) and re.search(r"\d[T ]\d", cleaned):
        raise ValueError(
            f"{text!r} has a time zone: times are those on the clock of the camera, without one"
        )
    whole, _, fraction = cleaned.partition(".")
    digits = re.sub(r"\D", "", whole)
    for form, length, span in zip(_FORMATS, (14, 12, 8), (1, 60, 86400)):
        if len(digits) == length and (not fraction or (fraction.isdecimal() and length == 14)):
            moment = datetime.datetime.strptime(digits, form)
            if fraction:
                return _seconds(moment) + float(f"0.{fraction}")
            return _seconds(moment) + (span - 1e-6 if end else 0.0)
    raise ValueError(f"{text!r} is no time: write 2026-11-03 or 2026-11-03T14:05:09")


def show_time(seconds: float) -> str:
    """A wall-clock time as people write it."""
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=int(seconds // 1))
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def wall_clock(unix: float) -> float:
    """Seconds since 1970 that the clock of this machine shows at a moment in time."""
    return calendar.timegm(time.localtime(unix)) + unix % 1


def exif_time(content: bytes) -> Optional[float]:
    """Time of a picture by its EXIF block, ``None`` if it has none that is valid."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return None  # looking for it behind the pixels would decode them
            text = image.getexif().get_ifd(_EXIF_IFD).get(_DATE_TIME_ORIGINAL)
        return parse_time(str(text)) if text else None
    except Exception:  # Pillow raises many types on bad data; without EXIF the picture is usable
        return None


def _seconds(moment: datetime.datetime) -> float:
    return calendar.timegm(moment.timetuple()) + moment.microsecond / 1e6


def _read_table(path: str) -> dict[str, tuple[Optional[str], Optional[float]]]:
    folder = os.path.dirname(os.path.abspath(path))
    found: dict[str, tuple[Optional[str], Optional[float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = set(reader.fieldnames or ())
            if "path" not in columns or columns == {"path"} or columns - _COLUMNS:
                raise ValueError("its first line must name the columns path, camera, time")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num}: has not {len(columns)} values")
                name = os.path.normpath(os.path.join(folder, row["path"]))
                seconds = None
                if row.get("time"):
                    try:
                        seconds = parse_time(row["time"])
                    except ValueError as error:
                        raise ValueError(f"line {reader.line_num}: {error}") from None
                found[name] = (row.get("camera") or None, seconds)
    except OSError as error:
        raise GalleryError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError included
        raise GalleryError(f"{path}: {error}") from None
    return found
