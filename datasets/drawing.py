"""Small drawings of one object before a background, from integers alone.

A drawing is a shape, filled with a pattern in a colour, before a background with clutter, seen in some
light. All arithmetic is on integers, and all chance comes from the `random_sample` of one
`numpy.random.RandomState`, whose stream numpy has frozen; so one seed gives one picture, pixel for pixel, on
any machine.

Lengths are in half pixels: the object is drawn on a grid twice as fine as the picture and averaged down. `u`
and `v` are an object's own axes, in 1/1024 of its radius; colours are 0-255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 64  # pixels
ONE = 1024  # fixed-point unit: an object's radius, and the cosine of 0 degrees

Grid = np.ndarray  # int32 or bool, (rows, columns)
Light = tuple[tuple[int, int, int], ...]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (40, 160, 60),
    "cyan": (50, 200, 210),
    "blue": (45, 70, 210),
    "purple": (140, 50, 180),
    "pink": (245, 130, 190),
    "brown": (130, 80, 40),
}
SECOND_COLOURS = ((240, 240, 240), (25, 25, 25))  # of a pattern, with any colour


def cosine(degrees: int) -> int:
    """The cosine in 1/1024; the sine is `cosine(degrees - 90)`."""
    return round(ONE * math.cos(math.radians(degrees)))


def _turned(x: Grid, y: Grid, degrees: int) -> tuple[Grid, Grid]:
    """The axes turned by `degrees`, still in the units of `x` and `y` but 1024 times as fine."""
    c, s = cosine(degrees), cosine(degrees - 90)
    return x * c + y * s, y * c - x * s


# ----------------------------------------------------------------------------------------- shapes


def _inside(u: Grid, v: Grid, directions: Sequence[int], distance: int) -> Grid:
    """How many of the half-planes, given by their outward directions in degrees, each point lies in."""
    count = np.zeros(u.shape, np.int8)
    for degrees in directions:
        count += (u * cosine(degrees) + v * cosine(degrees - 90)) < distance * ONE
    return count


def _disc(u: Grid, v: Grid, x: int, y: int, radius: int) -> Grid:
    return (u - x) ** 2 + (v - y) ** 2 < radius**2


def _square(u: Grid, v: Grid) -> Grid:
    return np.maximum(abs(u), abs(v)) < 800


def _polygon(corners: int, distance: int) -> Callable[[Grid, Grid], Grid]:
    directions = [90 + 360 * k // corners for k in range(corners)]  # one side lies flat at the bottom
    return lambda u, v: _inside(u, v, directions, distance) == corners


def _star(u: Grid, v: Grid) -> Grid:
    # a pentagram is what lies in at least four of the five half-planes of its inner pentagon
    return _inside(u, v, [90 + 72 * k for k in range(5)], 400) >= 4


def _heart(u: Grid, v: Grid) -> Grid:
    tip = (abs(u) * 72 + v * 70 < 66 * ONE) & (v > -340)
    return tip | _disc(abs(u), v, 450, -400, 540)


def _cross(u: Grid, v: Grid) -> Grid:
    return (np.minimum(abs(u), abs(v)) < 330) & (np.maximum(abs(u), abs(v)) < 980)


def _arrow(u: Grid, v: Grid) -> Grid:
    head = (v < 50) & (abs(u) < (v + 1000))
    return head | ((abs(u) < 330) & (v >= 50) & (v < 980))


SHAPES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda u, v: _disc(u, v, 0, 0, 960),
    "square": _square,
    "triangle": _polygon(3, 560),
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "ring": lambda u, v: _disc(u, v, 0, 0, 1000) & ~_disc(u, v, 0, 0, 480),
    "moon": lambda u, v: _disc(u, v, 0, 0, 1000) & ~_disc(u, v, 480, -120, 800),
    "diamond": lambda u, v: abs(u) * 5 + abs(v) * 3 < 3 * ONE,
    "arrow": _arrow,
}

# --------------------------------------------------------------------------------------- patterns
# Each tells which points of the object have the second colour; x, y and period are in half pixels.


def _dotted(x: Grid, y: Grid, period: int) -> Grid:
    return _disc(x % period, y % period, period // 2, period // 2, (period * 11) // 32)


def _checkered(x: Grid, y: Grid, period: int) -> Grid:
    side = period * 5 // 8
    return (x // side + y // side) % 2 == 1


PATTERNS: dict[str, Callable[[Grid, Grid, int], Grid]] = {
    "plain": lambda x, y, period: np.zeros(x.shape, bool),
    "striped": lambda x, y, period: y % period < period // 2,
    "dotted": _dotted,
    "checkered": _checkered,
    "gridded": lambda x, y, period: (x % period < period // 4) | (y % period < period // 4),
    "halved": lambda x, y, period: y < 0,
}

# ----------------------------------------------------------------------------------------- chance


class Chance:
    """Integers from one seed; only `random_sample` is used, as its stream never changes."""

    def __init__(self, *seed: int) -> None:
        self._state = np.random.RandomState(list(seed))

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return low + int(self._state.random_sample() * (high - low + 1))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        return low + (self._state.random_sample(shape) * (high - low + 1)).astype(np.int32)

    def choice(self, values: Sequence):
        return values[self.integer(0, len(values) - 1)]

    def happens(self, percent: int) -> bool:
        return self.integer(0, 99) < percent


# ------------------------------------------------------------------------------------ backgrounds
# Each gives the share of the second shade, 0-255.

_axis = (2 * np.arange(SIZE) + 1 - SIZE).astype(np.int32)  # centres of pixels, -63 ... 63 half pixels
_X, _Y = np.meshgrid(_axis, _axis)


def _flat(chance: Chance) -> Grid:
    return np.zeros((SIZE, SIZE), np.int32)


def _gradient(chance: Chance) -> Grid:
    u, _ = _turned(_X, _Y, chance.integer(0, 359))
    return np.clip(128 + (u >> 9), 0, 255)


def _cloudy(chance: Chance) -> Grid:
    """Random values at the nodes of a coarse net, joined by straight lines."""
    step = chance.choice((8, 16))
    nodes = chance.integers(0, 255, (SIZE // step + 1, SIZE // step + 1))
    w = np.arange(SIZE, dtype=np.int32) % step
    top, bottom = np.repeat(nodes[:-1], step, axis=0), np.repeat(nodes[1:], step, axis=0)
    rows = top * (step - w)[:, None] + bottom * w[:, None]
    left, right = np.repeat(rows[:, :-1], step, axis=1), np.repeat(rows[:, 1:], step, axis=1)
    return (left * (step - w) + right * w) // step**2


def _tiled(chance: Chance) -> Grid:
    step = chance.choice((4, 8))
    tiles = chance.integers(0, 255, (SIZE // step, SIZE // step))
    return np.repeat(np.repeat(tiles, step, axis=0), step, axis=1)


def _woven(chance: Chance) -> Grid:
    u, v = _turned(_X, _Y, chance.integer(0, 359))
    period = ONE * chance.integer(24, 64)
    return 128 * (u % period < period // 2) + 127 * (v % period < period // 2)


BACKGROUNDS: dict[str, Callable[[Chance], Grid]] = {
    "flat": _flat,
    "gradient": _gradient,
    "cloudy": _cloudy,
    "tiled": _tiled,
    "woven": _woven,
}

# ---------------------------------------------------------------------------------------- drawing

DAYLIGHT: Light = ((256, 0, 0), (0, 256, 0), (0, 0, 256))


@dataclass(frozen=True)
class Style:
    """What a family of drawings has in common; ranges include both ends."""

    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    tint: int = 40  # how far a background's channels stray from grey
    contrast: int = 60  # between a background's two shades
    shade: int = 25  # how far an object's colour strays from its name's
    radius: tuple[int, int] = (42, 56)
    offset: int = 8  # of the object's centre
    turn: int = 20  # degrees either way
    period: tuple[int, int] = (14, 22)  # of the pattern
    clutter: tuple[int, int] = (0, 4)  # pieces behind the object
    cover: tuple[int, int] = (0, 0)  # pieces before it
    noise: int = 8  # per pixel and channel, either way
    light: Light = DAYLIGHT  # a picture's red is `light[0] . (red, green, blue) / 256`, and so on


def draw(shape: str, pattern: str, colour: str, style: Style, chance: Chance) -> np.ndarray:
    """One drawing as uint8 `(64 64 3)`; `chance` decides all that `style` leaves open."""
    canvas = _background(style, chance)
    _scatter(canvas, style.clutter, chance)
    _object(canvas, shape, pattern, colour, style, chance)
    _scatter(canvas, style.cover, chance)
    pixels = (canvas @ np.array(style.light, np.int32).T) >> 8
    pixels += chance.integers(-style.noise, style.noise, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _background(style: Style, chance: Chance) -> np.ndarray:
    share = BACKGROUNDS[chance.choice(style.backgrounds)](chance)[:, :, None]
    one = chance.integer(60, 200) + chance.integers(-style.tint, style.tint, (3,))
    step = chance.integer(-style.contrast, style.contrast) + chance.integers(
        -style.tint // 2, style.tint // 2, (3,)
    )
    return np.clip(one + (step * share >> 8), 0, 255).astype(np.int32)


def _scatter(canvas: np.ndarray, count: tuple[int, int], chance: Chance) -> None:
    """Specks and strokes of any colour."""
    for _ in range(chance.integer(*count)):
        x, y = chance.integer(-60, 60), chance.integer(-60, 60)
        if chance.happens(50):
            mask = _disc(_X, _Y, x, y, chance.integer(4, 9))
        else:
            u, v = _turned(_X - x, _Y - y, chance.integer(0, 359))
            mask = (abs(u) < ONE * chance.integer(10, 40)) & (abs(v) < ONE * chance.integer(1, 3))
        canvas[mask] = chance.integers(0, 255, (3,))


def _object(canvas: np.ndarray, shape: str, pattern: str, colour: str, style: Style, chance: Chance) -> None:
    radius = chance.integer(*style.radius)
    x, y = (chance.integer(-style.offset, style.offset) for _ in "xy")
    angle = chance.integer(-style.turn, style.turn)
    slant = chance.choice((0, 45, 90, 135)) + chance.integer(-15, 15)
    shift = (0, 0) if pattern == "halved" else (chance.integer(0, 63), chance.integer(0, 63))
    period = chance.integer(*style.period)
    first = _strayed(COLOURS[colour], style.shade, chance)
    second = _strayed(chance.choice(SECOND_COLOURS), style.shade, chance)

    left, right = (max(0, (SIZE + x - radius) // 2), min(SIZE, (SIZE + x + radius) // 2 + 1))
    top, bottom = (max(0, (SIZE + y - radius) // 2), min(SIZE, (SIZE + y + radius) // 2 + 1))
    fine = np.repeat(np.repeat(canvas[top:bottom, left:right], 2, axis=0), 2, axis=1)
    columns = np.arange(2 * left, 2 * right, dtype=np.int32) - (SIZE + x)
    rows = np.arange(2 * top, 2 * bottom, dtype=np.int32) - (SIZE + y)
    dx, dy = np.meshgrid(columns, rows)
    u, v = _turned(dx, dy, angle)
    mask = SHAPES[shape](u // radius, v // radius)
    fine[mask] = first
    if pattern != "plain":
        u, v = _turned(dx, dy, slant)
        fine[mask & PATTERNS[pattern]((u >> 10) + shift[0], (v >> 10) + shift[1], period)] = second
    canvas[top:bottom, left:right] = fine.reshape(bottom - top, 2, right - left, 2, 3).sum((1, 3)) // 4


def _strayed(colour: tuple[int, int, int], shade: int, chance: Chance) -> np.ndarray:
    return np.clip(np.array(colour) + chance.integers(-shade, shade, (3,)), 0, 255)
