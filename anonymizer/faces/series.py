"""The faces of a set of files: their series are found first, and each is looked at once, as a whole."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Final

from anonymizer import elements, frames, part10, pixels
from anonymizer.areas import Area
from anonymizer.errors import DecodingError, StopError
from anonymizer.faces.decision import CLEANED, TOMOGRAPHY
from anonymizer.faces.planes import NOT_REMOVED, planes_of
from anonymizer.shades import stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from anonymizer.elements import Bytes
    from anonymizer.faces.region import Region
    from anonymizer.faces.volume import Stack
    from anonymizer.frames import Array
    from anonymizer.part10 import File

    Opened = Callable[[], AbstractContextManager[Bytes]]

_SERIES, _INSTANCE, _FRAME_OF_REFERENCE = 0x0020000E, 0x00080018, 0x00200052
_KEPT: Final = 4  # series whose regions are remembered


def _no_beat() -> None:
    """Nobody waits."""


def series_of(content: Bytes, max_inflated_bytes: int = elements.MAX_INFLATED_BYTES) -> str:
    """Return the SeriesInstanceUID of a CT or MR image; empty for anything else, also for what is broken."""
    return _place(content, max_inflated_bytes)[0]


def _place(content: Bytes, max_inflated_bytes: int) -> tuple[str, str]:
    try:
        file = part10.read(content, max_inflated_bytes)
    except (DecodingError, StopError):
        return "", ""
    if file.sop_class_uid not in CLEANED:
        return "", ""
    return pixels.text_of(file.item, _SERIES), pixels.text_of(file.item, _INSTANCE)


class Faces:
    """Finds what is removed of an instance, given all files that may belong to its series.

    Files are read when an instance is asked for, one at a time and at low resolution; the order in which
    they are given does not matter.
    """

    def __init__(
        self,
        files: Sequence[Opened],
        beat: Callable[[], None] = _no_beat,
        max_inflated_bytes: int = elements.MAX_INFLATED_BYTES,
    ) -> None:
        self._files = files
        self._beat = beat
        self._max_inflated_bytes = max_inflated_bytes
        self._known: OrderedDict[str, Region | StopError] = OrderedDict()

    @classmethod
    def of_paths(cls, paths: Sequence[Path], beat: Callable[[], None] = _no_beat) -> Faces:
        """Take files by their paths."""
        from functools import partial  # noqa: PLC0415 - for this one

        from anonymizer.mapping import mapped  # noqa: PLC0415 - see above

        return cls([partial(mapped, path) for path in paths], beat)

    def __call__(self, file: File) -> tuple[Area, ...]:
        """Return what is removed of an instance, one area a frame.

        Raises
        ------
        StopError
            Code ``face_not_removed`` when its series does not show a head and its face well enough.
        """
        region = self._region(pixels.text_of(file.item, _SERIES))
        planes = planes_of(file.item, file.syntax)
        return tuple(Area(region.of(plane), frame) for frame, plane in enumerate(planes))

    @cached_property
    def _by_series(self) -> dict[str, list[Opened]]:
        """The files of each series, by SOP Instance UID."""
        found: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for number, opened in enumerate(self._files):
            self._beat()
            with opened() as content:
                series, instance = _place(content, self._max_inflated_bytes)
            if series:
                found[series].append((instance, number))
        return {series: [self._files[number] for _, number in sorted(each)] for series, each in found.items()}

    def _region(self, series: str) -> Region:
        known = self._known.get(series)
        if known is None:
            try:
                known = self._found(self._by_series.get(series, []))
            except StopError as error:
                known = error if error.code == NOT_REMOVED else _unreadable(error)
            except DecodingError as error:
                known = _unreadable(error)
            self._known[series] = known
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(series)
        if isinstance(known, StopError):
            raise StopError(known.code, str(known))
        return known

    def _found(self, files: Sequence[Opened]) -> Region:
        from anonymizer.faces.region import region_of  # noqa: PLC0415 - heavy, for the first series

        stack: Stack | None = None
        references: set[str] = set()
        tomography = False
        for opened in files:
            self._beat()
            with opened() as content:
                file = part10.read(content, self._max_inflated_bytes)
                references.add(pixels.text_of(file.item, _FRAME_OF_REFERENCE))
                tomography = file.sop_class_uid in TOMOGRAPHY
                stack = _stacked(file, stack)
        if stack is None or len(references) != 1:
            raise StopError(NOT_REMOVED, "a series in several frames of reference; expected one")
        self._beat()
        return region_of(stack.volume(), tomography=tomography)


def _unreadable(error: StopError | DecodingError) -> StopError:
    return StopError(
        NOT_REMOVED, f"an instance of the series cannot be read ({error.code}); expected all of it"
    )


def _stacked(file: File, stack: Stack | None) -> Stack:
    """Add the frames of an instance to its series."""
    from anonymizer.faces.volume import Stack  # noqa: PLC0415 - heavy, for the first series

    planes = planes_of(file.item, file.syntax)
    found = pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)
    if not found:
        raise StopError(NOT_REMOVED, "an instance of the series without pixel data; expected images")
    source = frames.read(found, file.item, file.transfer_syntax_uid, file.syntax)
    for index, plane in enumerate(planes):
        if stack is None:
            stack = Stack(plane)
        elif not plane.is_like(stack.first):
            raise StopError(NOT_REMOVED, "a series of several sizes or orientations; expected one stack")
        stack.add(plane, _grey(source, index))
    if stack is None:
        raise StopError(NOT_REMOVED, "an instance of the series without frames; expected images")
    return stack


def _grey(source: frames.PixelData, index: int) -> Array:
    values, layout = source.frame(index)
    if values.shape[2] != 1:
        raise StopError(NOT_REMOVED, "an instance of the series in colour; expected grey images")
    plain = values[:, :, 0] if layout.floating else stored(values[:, :, 0], layout)
    return -plain.astype("f4") if layout.photometric == "MONOCHROME1" else plain
