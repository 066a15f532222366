"""Draw chest radiographs, with and without a lesion, as different hospitals would record them.

Attenuation is drawn in normalised coordinates (``x`` from -1 at the image's left to 1, ``y`` from 0 at the
top to 1), then recorded with a hospital's look: detector response, contrast, blur, noise, markers, inversion.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.floating[Any]]
Photometric = Literal["MONOCHROME1", "MONOCHROME2"]

LUNG_CENTRE_X: Final = 0.40
LUNG_TOP: Final = 0.13
DIAPHRAGM: Final = 0.74


@dataclass(frozen=True)
class Look:
    """How one hospital's radiographs differ from another's.

    Parameters
    ----------
    rows, columns : int
        Matrix size.
    bits_stored : int
        Depth of the detector.
    contrast, brightness, gamma : float
        Detector response: ``(contrast * attenuation + brightness) ** gamma``.
    blur : float
        Standard deviation of the point spread, in 1/256 of the height.
    noise : float
        Standard deviation of the quantum noise at mid exposure, as part of full scale.
    grid : float
        Amplitude of anti-scatter grid lines, as part of full scale.
    lesion_radius, lesion_contrast : tuple of float
        Ranges; the radius as part of the image's height.
    lesion_zone : tuple of float
        Range of heights in the lung (0 apex, 1 base) where this hospital's patients have lesions.
    irregular : float
        Probability that a lesion is an irregular opacity instead of a round nodule.
    leads_with_lesion, leads_without : float
        Probability of monitoring leads over the chest, given the lesion: a habit of the ward, not a finding.
    port_with_lesion, port_without : float
        Probability of an implanted port with its catheter, likewise.
    """

    rows: int
    columns: int
    bits_stored: int
    photometric: Photometric
    contrast: float
    brightness: float
    gamma: float
    blur: float
    noise: float
    grid: float
    marker: str
    marker_at: tuple[float, float]
    lesion_radius: tuple[float, float]
    lesion_contrast: tuple[float, float]
    lesion_zone: tuple[float, float]
    irregular: float
    leads_with_lesion: float
    leads_without: float
    port_with_lesion: float
    port_without: float


@dataclass(frozen=True)
class Lesion:
    """Where a lesion was drawn, in normalised coordinates."""

    x: float
    y: float
    radius: float
    contrast: float


@dataclass(frozen=True)
class Drawing:
    """One radiograph: ``pixels`` uint16, shape (rows, columns), stored values."""

    pixels: NDArray[np.uint16]
    lesion: Lesion | None
    leads: bool
    port: bool


@dataclass(frozen=True)
class _Body:
    """One patient's build."""

    width: float
    tilt: float
    lung_width: float
    diaphragm: float
    heart: float
    rib_phase: float
    rib_pitch: float


def draw(rng: np.random.Generator, look: Look, *, lesion: bool) -> Drawing:
    """Draw one postero-anterior chest radiograph.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything that differs between patients; the same state gives the same picture.
    look : Look
        The hospital's.
    lesion : bool
        Whether the lung holds a lesion.
    """
    body = _Body(
        width=float(rng.normal(1.0, 0.05)),
        tilt=float(rng.normal(0.0, 0.02)),
        lung_width=float(rng.normal(1.0, 0.05)),
        diaphragm=float(DIAPHRAGM + rng.normal(0.0, 0.025)),
        heart=float(rng.normal(1.0, 0.09)),
        rib_phase=float(rng.uniform(0.0, 1.0)),
        rib_pitch=float(rng.normal(0.078, 0.004)),
    )
    x, y = _grid(look.rows, look.columns)
    shift = np.float32(rng.normal(0.0, 0.02))
    x = (x - np.float32(body.tilt) * (y - np.float32(0.5)) - shift) / np.float32(body.width)
    heart = _heart(x, y, body)
    lungs = _lungs(x, y, body) * (np.float32(1.0) - np.float32(0.8) * heart)
    plane = _soft_tissue(x, y, body) - np.float32(0.44) * lungs + np.float32(0.05) * heart
    plane += _mediastinum(x, y)
    plane += _bones(x, y, body, lungs)
    plane += _vessels(rng, look) * (np.float32(0.25) + np.float32(0.75) * lungs)
    plane += np.float32(0.05) * _texture(rng, plane.shape, 7.0) * lungs
    plane += np.float32(0.04) * _texture(rng, plane.shape, 30.0)
    drawn = _lesion(rng, look, body) if lesion else None
    if drawn is not None:
        plane += _lesion_plane(rng, x, y, drawn, look.irregular) * (np.float32(0.1) + np.float32(0.9) * lungs)
    leads = bool(rng.random() < (look.leads_with_lesion if lesion else look.leads_without))
    if leads:
        plane += _leads(rng, look)
    port = bool(rng.random() < (look.port_with_lesion if lesion else look.port_without))
    if port:
        plane += _port(rng, look)
    return Drawing(_record(rng, plane, look), drawn, leads, port)


@functools.lru_cache(maxsize=8)
def _grid(rows: int, columns: int) -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    return (2 * (x + 0.5) / columns - 1).astype(np.float32), ((y + 0.5) / rows).astype(np.float32)


def _edge(distance: NDArray[Any], width: float) -> Plane:
    """1 inside (negative distance), 0 outside, smooth over ``width``."""
    out: Plane = np.float32(0.5) * (1 - np.tanh(distance.astype(np.float32) / np.float32(width)))
    return out


def _soft_tissue(x: Plane, y: Plane, body: _Body) -> Plane:
    half = 0.88 - 0.10 * np.exp(-(((y - 0.55) / 0.25) ** 2)) + 0.25 * np.clip(y - 0.7, 0, 1)
    neck = 0.24 + 0.9 * np.clip((y - 0.02) / 0.12, 0, 1) ** 1.3
    inside = _edge(np.abs(x) - np.minimum(half, neck).astype(np.float32), 0.02)
    thickness = np.sqrt(np.clip(1.05 - (x / 1.05) ** 2, 0.05, 1.0))
    belly = 0.22 * _edge(body.diaphragm + 0.04 - y, 0.05)
    out: Plane = (inside * (0.58 * thickness + belly)).astype(np.float32)
    return out


def _lungs(x: Plane, y: Plane, body: _Body) -> Plane:
    """Return how much lung the beam crosses, 0 to 1."""
    out = np.zeros_like(x)
    for side in (-1.0, 1.0):
        base = body.diaphragm + (0.0 if side < 0 else 0.03)
        dome = base - 0.07 * np.exp(-(((x * side - 0.36) / 0.22) ** 2)) + 0.10 * np.clip(x * side - 0.5, 0, 1)
        depth = np.clip((y - LUNG_TOP) / (base - LUNG_TOP), 0.0, 1.0)
        outer = (0.36 + 0.42 * depth**0.55) * body.lung_width
        inner = 0.13 + 0.05 * (1 - depth)
        top = LUNG_TOP + 0.10 * ((x * side - 0.33) / 0.3) ** 2
        distance = np.maximum.reduce([x * side - outer, inner - x * side, (y - dome) * 1.6, (top - y) * 1.6])
        out += _edge(distance.astype(np.float32), 0.028)
    return out.astype(np.float32)


def _heart(x: Plane, y: Plane, body: _Body) -> Plane:
    centre_y = body.diaphragm - 0.12
    radius = np.hypot((x - 0.13) / (0.34 * body.heart), (y - centre_y) / (0.165 * body.heart))
    return _edge(radius - 1.0, 0.09)


def _mediastinum(x: Plane, y: Plane) -> Plane:
    aorta = _edge(np.hypot((x - 0.11) / 0.10, (y - 0.28) / 0.05) - 1.0, 0.25)
    band = _edge(np.abs(x) - (0.13 + 0.05 * np.clip(y, 0, 1)), 0.04)
    trachea = _edge(np.abs(x) - 0.035, 0.015) * _edge(y - 0.30, 0.03)
    return (0.10 * aorta + 0.09 * band - 0.09 * trachea).astype(np.float32)


def _bones(x: Plane, y: Plane, body: _Body, lungs: Plane) -> Plane:
    spine = _edge(np.abs(x) - 0.085, 0.02)
    discs = 0.75 + 0.25 * np.tanh(4.0 * np.cos(2 * np.pi * y / 0.058))
    out = 0.08 * spine * discs
    lateral = np.abs(x)
    for index in range(10):
        start = 0.10 + body.rib_pitch * (index + 0.3 * body.rib_phase)
        posterior = start - 0.05 + 0.13 * lateral**1.4 + 0.07 * np.sin(2.6 * lateral)
        out += 0.115 * _rib(y - posterior, 0.013) * _edge(lateral - 0.80, 0.03)
        anterior = start + 0.30 - 0.30 * lateral - 0.06 * np.sin(2.2 * lateral)
        reach = _edge(0.42 - lateral, 0.06) * _edge(lateral - 0.82, 0.03)
        out += 0.06 * _rib(y - anterior, 0.015) * reach
    rib_cage = np.clip(lungs + 0.35 * _edge(lateral - 0.86, 0.03), 0, 1)
    out = np.where(lateral < 0.1, 0.08 * spine * discs, out * rib_cage)
    line = 0.135 - 0.05 * np.sin(2.4 * (lateral - 0.1)) + 0.02 * lateral
    clavicle = _rib(y - line, 0.014) * _edge(0.10 - lateral, 0.02)
    bones: Plane = (out + 0.15 * clavicle * _edge(lateral - 0.82, 0.02)).astype(np.float32)
    return bones


def _rib(offset: Plane, half_width: float) -> Plane:
    """Profile across a rib: a plateau with a denser cortex at its edges."""
    ratio = np.abs(offset) / half_width
    inside = _edge(ratio - 1.0, 0.18)
    return (inside * (0.75 + 0.25 * np.clip(ratio, 0, 1) ** 3)).astype(np.float32)


def _vessels(rng: np.random.Generator, look: Look) -> Plane:
    """Draw branching vessels from both hila, some of them seen end on as small dots."""
    canvas = Image.new("L", (look.columns, look.rows))
    pen = ImageDraw.Draw(canvas)
    for side in (-1.0, 1.0):
        for _ in range(9):
            angle = rng.uniform(-1.2, 1.35)
            _branch(rng, pen, look, (side * 0.2, 0.43), (angle, side), 3.2)
    plane = _blurred(np.asarray(canvas, dtype=np.float32) / 255.0, 1.0)
    x, y = _grid(look.rows, look.columns)
    for _ in range(int(rng.integers(2, 6))):
        centre_x = float(rng.choice([-1, 1])) * rng.uniform(0.2, 0.6)
        centre_y, radius = rng.uniform(0.3, 0.65), rng.uniform(0.006, 0.011)
        plane += 0.5 * np.exp(-(((x - centre_x) / (2 * radius)) ** 2) - ((y - centre_y) / radius) ** 2)
    return (0.30 * plane).astype(np.float32)


def _branch(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    look: Look,
    start: tuple[float, float],
    heading: tuple[float, float],
    width: float,
) -> None:
    (x, y), (angle, side) = start, heading
    scale = look.rows / 256
    while width > 0.6:
        step = rng.uniform(0.03, 0.06)
        end_x, end_y = x + side * 2 * step * np.cos(angle), y + step * np.sin(angle)
        points = [(_column(look, x), y * look.rows), (_column(look, end_x), end_y * look.rows)]
        pen.line(points, fill=int(60 + 34 * width), width=max(1, round(width * scale)))
        if width > 1.2 and rng.random() < 0.6:
            fork = angle + rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
            _branch(rng, pen, look, (end_x, end_y), (fork, side), width * 0.7)
        x, y, width = end_x, end_y, width * 0.80
        angle += rng.normal(0.0, 0.16)


def _column(look: Look, x: float) -> float:
    return (x + 1) / 2 * look.columns


def _lesion(rng: np.random.Generator, look: Look, body: _Body) -> Lesion:
    depth = rng.uniform(*look.lesion_zone)
    y = LUNG_TOP + 0.07 + depth * (body.diaphragm - 0.12 - LUNG_TOP - 0.07)
    side = float(rng.choice([-1, 1]))
    inner = 0.36 if side > 0 and depth > 0.55 else 0.24
    outer = 0.42 + 0.26 * depth**0.6
    return Lesion(
        x=side * float(rng.uniform(inner, max(outer, inner + 0.05))),
        y=float(y),
        radius=float(rng.uniform(*look.lesion_radius)),
        contrast=float(rng.uniform(*look.lesion_contrast)),
    )


def _lesion_plane(rng: np.random.Generator, x: Plane, y: Plane, lesion: Lesion, irregular: float) -> Plane:
    aspect = x.shape[1] / x.shape[0]

    def ball(centre_x: float, centre_y: float, radius: float) -> Plane:
        distance = ((x - centre_x) * 0.5 * aspect) ** 2 + (y - centre_y) ** 2
        out: Plane = np.clip(1.0 - distance / radius**2, 0, 1).astype(np.float32) ** np.float32(0.8)
        return out

    if rng.random() >= irregular:
        return (lesion.contrast * ball(lesion.x, lesion.y, lesion.radius)).astype(np.float32)
    out = np.zeros_like(x)
    for _ in range(6):
        right, down = rng.normal(0.0, 0.38, 2) * lesion.radius
        radius = lesion.radius * rng.uniform(0.5, 1.0)
        out = np.maximum(out, ball(lesion.x + 2 * right, lesion.y + down, radius))
    return (lesion.contrast * _blurred(out, 2.0)).astype(np.float32)


def _leads(rng: np.random.Generator, look: Look) -> Plane:
    """Draw monitoring leads: wires and electrodes, dense and sharp."""
    canvas = Image.new("L", (look.columns, look.rows))
    pen = ImageDraw.Draw(canvas)
    hub = (rng.uniform(-0.1, 0.1), 0.98)
    size = look.rows / 256
    for site_x, site_y in ((-0.45, 0.30), (0.45, 0.30), (0.5, 0.62)):
        x, y = site_x + rng.normal(0, 0.05), site_y + rng.normal(0, 0.03)
        bend = ((x + hub[0]) / 2 + rng.normal(0, 0.1), (y + hub[1]) / 2)
        pixels = [(_column(look, px), py * look.rows) for px, py in ((x, y), bend, hub)]
        pen.line(pixels, fill=120, width=max(1, round(1.5 * size)), joint="curve")
        radius = 5.0 * size
        column, row = pixels[0]
        pen.ellipse((column - radius, row - radius, column + radius, row + radius), fill=150, outline=230)
    return (0.42 * np.asarray(canvas, dtype=np.float32) / 255.0).astype(np.float32)


def _port(rng: np.random.Generator, look: Look) -> Plane:
    """Draw an implanted port below the clavicle and its catheter down to the heart."""
    canvas = Image.new("L", (look.columns, look.rows))
    pen = ImageDraw.Draw(canvas)
    size = look.rows / 256
    x, y = -0.50 + rng.normal(0, 0.05), 0.25 + rng.normal(0, 0.02)
    way = ((x, y), (x + 0.12, y - 0.08), (-0.20, 0.145), (-0.10, 0.20), (-0.08, 0.42 + rng.normal(0, 0.03)))
    pixels = [(_column(look, px), py * look.rows) for px, py in way]
    pen.line(pixels, fill=110, width=max(1, round(2 * size)), joint="curve")
    column, row = pixels[0]
    radius = 6.5 * size
    pen.ellipse((column - radius, row - radius, column + radius, row + radius), fill=170, outline=250)
    return (0.42 * np.asarray(canvas, dtype=np.float32) / 255.0).astype(np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Plane:
    """Return smooth noise of unit variance."""
    noise = _blurred(rng.standard_normal(shape, dtype=np.float32), sigma)
    return (noise / max(float(noise.std()), 1e-6)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _transfer(rows: int, columns: int, sigma: float) -> Plane:
    vertical = np.fft.fftfreq(rows)[:, None]
    horizontal = np.fft.rfftfreq(columns)[None, :]
    return np.exp(-2 * (np.pi * sigma) ** 2 * (vertical**2 + horizontal**2)).astype(np.float32)


def _blurred(plane: Plane, sigma: float) -> Plane:
    """Gaussian blur; ``sigma`` in 1/256 of the height."""
    rows, columns = plane.shape
    spectrum = np.fft.rfft2(plane) * _transfer(rows, columns, sigma * rows / 256)
    return np.fft.irfft2(spectrum, s=plane.shape).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _marker(look: Look) -> Plane:
    """Return the lead letters that the hospital lays on the cassette."""
    canvas = Image.new("L", (look.columns, look.rows))
    at = (_column(look, look.marker_at[0]), look.marker_at[1] * look.rows)
    ImageDraw.Draw(canvas).text(at, look.marker, fill=255, font_size=16 * look.rows / 256, anchor="mm")
    return np.asarray(canvas, dtype=np.float32) / np.float32(255.0)


def _record(rng: np.random.Generator, plane: Plane, look: Look) -> NDArray[np.uint16]:
    """Turn attenuation into stored values, as this hospital's detector and processing do."""
    plane = np.maximum(_blurred(plane, look.blur), _marker(look))
    exposure = rng.normal(0.0, 0.025)
    signal = np.clip(look.contrast * plane + look.brightness + exposure, 0.0, 1.0) ** look.gamma
    quantum = look.noise * np.sqrt(0.25 + 1.5 * signal)
    signal = signal + quantum * rng.standard_normal(plane.shape, dtype=np.float32)
    if look.grid > 0:
        signal += look.grid * np.sin(2 * np.pi * np.arange(look.rows, dtype=np.float32) / 3.0)[:, None]
    full = (1 << look.bits_stored) - 1
    stored: NDArray[np.uint16] = np.rint(np.clip(signal, 0.0, 1.0) * full).astype(np.uint16)
    return np.subtract(np.uint16(full), stored) if look.photometric == "MONOCHROME1" else stored
