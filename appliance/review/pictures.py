"""Pictures of an instance for a person's eye: some of its frames as PNG, scaled down where they are large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from anonymizer import frames, part10, pixels, renderings
from anonymizer.errors import AnonymizerError
from anonymizer.mapping import mapped

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

MAX_FRAMES: Final = 8
LONG_SIDE: Final = 1400  # pixels
_DARKEST, _BRIGHTEST = 0.5, 99.8  # percentiles of what is shown as black and as white


@dataclass(frozen=True)
class Shown:
    """What was drawn: frames from zero with the values shown as black and white, size before scaling."""

    windows: dict[int, tuple[float, float]]
    rows: int
    columns: int

    @property
    def frames(self) -> tuple[int, ...]:
        """Numbers of the frames."""
        return tuple(self.windows)


def draw(
    source: Path, folder: Path, name: str, wanted: Collection[int] = (), like: Shown | None = None
) -> Shown | None:
    """Write frames of a Part 10 file as ``NAME-FRAME.png``; return None where there is no picture to draw.

    Parameters
    ----------
    source, folder : Path
    name : str
        Beginning of the files' names.
    wanted : collection of int
        Frames from zero that are drawn before others; at most :data:`MAX_FRAMES` are.
    like : Shown or None
        Draw the same frames as before, in the same brightness.
    """
    with mapped(source) as content:
        try:
            file = part10.read(content)
            found = pixels.cleaned(file.item, file.item, file.transfer_syntax_uid, file.syntax)
            if not found:
                return None
            data = frames.read(found, file.item, file.transfer_syntax_uid, file.syntax)
            description = data.description
            windows = {} if like is None else dict(like.windows)
            for index in tuple(windows) or _chosen(description.frames, wanted):
                values, layout = data.frame(index)
                shown = renderings.displayed(values, layout, file.item, little=data.little)
                windows.setdefault(index, _window(shown))
                _write(_as_bytes(shown, *windows[index]), folder / f"{name}-{index}.png")
        except AnonymizerError:  # what cannot be decoded cannot be shown; the page says so
            return None
    return Shown(windows, description.rows, description.columns)


def _chosen(count: int, wanted: Collection[int]) -> tuple[int, ...]:
    """Choose frames: those asked for, then some that lie evenly."""
    first = sorted(index for index in set(wanted) if index < count)
    even = sorted({round(at) for at in np.linspace(0, count - 1, min(count, MAX_FRAMES))})
    chosen = dict.fromkeys([*first[: MAX_FRAMES // 2], *even])
    return tuple(sorted(list(chosen)[:MAX_FRAMES]))


def _window(shown: Any) -> tuple[float, float]:
    """Return what is shown as black and as white; colours are shown as they are."""
    if shown.ndim == 3:
        return 0.0, 255.0
    low, high = np.percentile(shown, (_DARKEST, _BRIGHTEST))
    return float(low), float(high)


def _as_bytes(shown: Any, low: float, high: float) -> Any:
    return np.clip((shown - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def _write(picture: Any, path: Path) -> None:
    image = Image.fromarray(picture)
    scale = LONG_SIDE / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(path, format="PNG")
