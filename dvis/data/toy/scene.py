"""The toy world: what is in a synthetic video and how a frame of it looks.

Everything is analytic (signed distances, value noise) and drawn from one generator, so a seed fixes every
pixel.

Coordinates: *screen* coordinates are pixels, x to the right, y down. *World* coordinates are pixels of a
camera at rest. *Local* coordinates of an object have their origin in its centre and are 1 at its radius.

Source: project choice.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Rng = np.random.Generator

THINGS = ("disc", "square", "triangle", "star", "ring", "cross")
STUFF = ("sky", "grass", "sand", "water", "post")
VOID = 255  # label of pixels that belong to no class

_FINENESS = 1.5  # points of a painted background per pixel of a frame, in each direction


@dataclass(frozen=True)
class ToyLevel:
    """How hard a video is; counts are drawn from closed ranges, lengths are fractions of the frame height.

    Attributes:
        length: frames per video, if nobody asks for another number.
        frame_step: only every so many frames of the scene is shown; more is a lower frame rate.
        objects: number of objects.
        species: number of different looks; objects of a species share the class and nearly the look.
        radius: radius of an object.
        variety: how much the shades of two objects of a species differ; 0 makes them twins.
        odd_color: probability that a species has another colour than most of its class.
        distractors: unlabelled blobs.
        camouflage: how much distractors look like objects: 0 are grey stones, 1 have their colours.
        posts: posts that stand in front of everything.
        post_width: width of a post, as a fraction of the frame width.
        cross: probability that an object of a species that is already there swaps places with its fellow.
        hide: probability that a waypoint of an object lies at that of a fellow, so that one covers the other.
        leave: probability that a waypoint lies outside of the picture.
        waypoint_frames: frames from one waypoint of a path to the next; fewer is faster.
        pan: amplitude of the camera's sway.
        zoom: largest relative change of the camera's zoom.
        tilt: largest rotation of the camera, in degrees.
    """

    length: int = 16
    frame_step: int = 1
    objects: tuple[int, int] = (2, 4)
    species: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.11, 0.2)
    variety: float = 0.02
    odd_color: float = 0.3
    distractors: tuple[int, int] = (0, 3)
    camouflage: float = 1.0
    posts: tuple[int, int] = (0, 1)
    post_width: tuple[float, float] = (0.05, 0.085)
    cross: float = 0.6
    hide: float = 0.0
    leave: float = 0.15
    waypoint_frames: float = 9.0
    pan: float = 0.25
    zoom: float = 0.1
    tilt: float = 5.0


_EASY = ToyLevel(
    objects=(1, 3),
    species=(2, 3),
    radius=(0.16, 0.26),
    odd_color=0.0,
    distractors=(0, 1),
    camouflage=0.15,
    cross=0.4,
    leave=0.1,
    waypoint_frames=12.0,
    pan=0.2,
)
# "easy" is what a small model learns on a CPU within minutes. A frame of the others is about as easy; what is
# hard is to know who is who.
LEVELS = {
    "easy": _EASY,
    "occluded": replace(
        _EASY,
        length=24,
        objects=(2, 3),
        species=(2, 3),
        radius=(0.15, 0.21),
        variety=0.15,
        posts=(1, 2),
        post_width=(0.14, 0.26),
        cross=0.5,
        hide=0.15,
        pan=0.1,
    ),
    "crowded": replace(
        _EASY,
        objects=(6, 9),
        species=(2, 4),
        radius=(0.1, 0.15),
        variety=0.04,
        distractors=(1, 2),
        cross=0.6,
        waypoint_frames=8.0,
    ),
    "long": replace(_EASY, length=96, objects=(2, 4), posts=(0, 2), cross=0.5, leave=0.25),
    "low_frame_rate": replace(_EASY, length=12, frame_step=4, objects=(2, 3), cross=0.5, pan=0.3),
}


def toy_name(level: str) -> str:
    """Name of a level's data sets and of its folder: ``toy`` for the easy one, else ``toy_<level>``."""
    return "toy" if level == "easy" else f"toy_{level}"


@dataclass(frozen=True)
class ToyVideo:
    """A rendered video with its complete ground truth.

    Attributes:
        frames: RGB, ``T H W 3`` uint8.
        labels: index into ``STUFF + THINGS`` or ``VOID``, ``T H W`` uint8.
        instances: 1-based object number, 0 where there is none, ``T H W`` uint8.
        classes: index into ``THINGS`` of each object, ``N``.
        hidden: share of an object's pixels inside the picture that something covers, ``N T``; NaN where the
            object is outside of the picture.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    classes: list[int]
    hidden: Float


@dataclass(frozen=True)
class _Look:
    """Surface of a species: two colours (RGB 0..1) and a pattern of a frequency and phase."""

    colors: tuple[Float, Float]
    pattern: str
    frequency: float
    phase: float


@dataclass(frozen=True)
class _Body:
    """Something that moves: an object, or a distractor if ``thing`` is None."""

    thing: int | None
    look: _Look
    radius: float  # pixels
    path: Float  # world position per frame, T 2
    angle: Float  # radians per frame, T
    scale: Float  # relative size per frame, T
    wobble: Float  # amplitudes and phases of a distractor's outline, 4 2


@dataclass(frozen=True)
class _Camera:
    """Camera per frame: position (pixels), zoom and rotation (radians)."""

    position: Float  # T 2
    zoom: Float  # T
    angle: Float  # T


def render_video(rng: Rng, height: int, width: int, length: int, level: ToyLevel) -> ToyVideo:
    """Draw a scene from ``rng`` and render it.

    Args:
        rng: the only source of randomness.
        height: frame height in pixels.
        width: frame width in pixels.
        length: number of frames, those that a lower frame rate leaves out not counted.
        level: difficulty.

    Raises:
        ValueError: if a size or the length is too small to hold anything.
    """
    if min(height, width) < 16 or length < 1:
        raise ValueError(
            f"a toy video needs at least 16 x 16 pixels and a frame, got {height} x {width}, {length}"
        )
    duration = length * level.frame_step
    camera = _draw_camera(rng, height, duration, level)
    background = _Canvas(_Background(rng, height, width), camera, height, width)
    objects, distractors = _draw_bodies(rng, height, width, duration, level)
    posts = _draw_posts(rng, width, level, objects)
    order = rng.permutation(len(objects) + len(distractors))
    bodies = [(objects + distractors)[i] for i in order]
    numbers = [int(i) + 1 if i < len(objects) else 0 for i in order]  # 0: distractor
    brightness = 1 + 0.05 * np.sin(rng.uniform(0, 2 * np.pi) + np.arange(duration) * rng.uniform(0.1, 0.4))

    shape = (length, height, width)
    frames = np.empty((*shape, 3), dtype=np.uint8)
    labels = np.empty(shape, dtype=np.uint8)
    instances = np.zeros(shape, dtype=np.uint8)
    hidden = np.full((len(objects), length), np.nan)
    for t, moment in enumerate(range(0, duration, level.frame_step)):
        world = _to_world(camera, moment, height, width)
        image, labels[t] = background.view(world)
        coverage = np.zeros(len(objects) + 1)
        for number, body in zip(numbers, bodies, strict=True):
            mask = _paint_body(image, body, camera, moment)
            label = VOID if body.thing is None else len(STUFF) + body.thing
            labels[t][mask] = label
            instances[t][mask] = number
            coverage[number] = mask.sum()
        for post in posts:
            mask = _paint_post(image, post, world)
            labels[t][mask] = STUFF.index("post")
            instances[t][mask] = 0
        visible = np.bincount(instances[t].ravel(), minlength=len(objects) + 1)
        inside = coverage > 0
        inside[0] = False
        hidden[inside[1:], t] = 1 - visible[inside] / coverage[inside]
        image = image * brightness[moment] + rng.normal(0, 0.006, image.shape)
        frames[t] = (image.clip(0, 1) * 255).round()
    classes = [body.thing for body in objects if body.thing is not None]
    return ToyVideo(frames, labels, instances, classes, hidden)


def _sway(rng: Rng, length: int, size: int) -> Float:
    """Slow smooth noise of about unit amplitude, ``T size``: two sines per channel."""
    time = np.arange(length)[:, None, None]
    frequency = rng.uniform(0.05, 0.35, (size, 2))
    phase = rng.uniform(0, 2 * np.pi, (size, 2))
    return np.sin(time * frequency + phase).mean(axis=-1)


def _draw_camera(rng: Rng, height: int, length: int, level: ToyLevel) -> _Camera:
    sway = _sway(rng, length, 4)
    return _Camera(
        position=sway[:, :2] * level.pan * height * np.array([1.0, 0.4]),
        zoom=1 + level.zoom * sway[:, 2],
        angle=np.deg2rad(level.tilt) * sway[:, 3],
    )


def _to_world(camera: _Camera, t: int, height: int, width: int) -> Float:
    """World coordinates of every pixel centre, ``H W 2``; origin in the middle of a camera at rest."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    screen = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], axis=-1)
    return _rotate(screen, -camera.angle[t]) / camera.zoom[t] + camera.position[t]


def _rotate(points: Float, angle: float) -> Float:
    # Written out: a matrix product may round differently from one machine to the next.
    x, y, cos, sin = points[..., 0], points[..., 1], np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


# ---- noise and colours


class _Noise:
    """Smooth periodic noise in [0, 1]: values on a lattice, blended, summed over octaves."""

    def __init__(self, rng: Rng, octaves: int = 3, size: int = 32) -> None:
        self.lattices = [rng.random(size * size) for _ in range(octaves)]
        self.size = size

    def __call__(self, points: Float) -> Float:
        """Value at ``... 2`` lattice coordinates."""
        total = np.zeros(points.shape[:-1])
        for octave, lattice in enumerate(self.lattices):
            scaled = points * 2**octave + 7.3 * octave
            cell = np.floor(scaled).astype(np.int64)
            u, v = np.moveaxis(_smooth(scaled - cell), -1, 0)
            (x0, y0), (x1, y1) = (np.moveaxis((cell + step) % self.size, -1, 0) for step in (0, 1))
            y0, y1 = y0 * self.size, y1 * self.size
            top = lattice.take(y0 + x0) * (1 - u) + lattice.take(y0 + x1) * u
            bottom = lattice.take(y1 + x0) * (1 - u) + lattice.take(y1 + x1) * u
            total += (top * (1 - v) + bottom * v) * 0.5**octave
        return total / sum(0.5**octave for octave in range(len(self.lattices)))


def _smooth(x: Float) -> Float:
    return x * x * (3 - 2 * x)


def _step(x: Float, edge: float, width: float) -> Float:
    return _smooth(((x - edge) / width + 0.5).clip(0, 1))


def _mix(a: Float, b: Float, share: Float) -> Float:
    """Blend colours ``3`` or ``... 3`` by a share ``...``."""
    return a + (b - a) * share[..., None]


def _color(hue: float, saturation: float, value: float) -> Float:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)))


# ---- background


class _Background:
    """A landscape (sky above ground) or a ground seen from above, with a patch of a second ground."""

    def __init__(self, rng: Rng, height: int, width: int) -> None:
        self.unit = height / 6
        self.noise = _Noise(rng)
        self.patches = _Noise(rng, octaves=2)
        self.ground, self.patch = rng.permutation(["grass", "sand", "water"])[:2].tolist()
        self.horizon = rng.uniform(-0.28, -0.02) * height if rng.random() < 0.7 else None
        self.hill_height = rng.uniform(0.01, 0.06) * height
        self.hill_phase = rng.uniform(0, 2 * np.pi, 3)
        self.patch_level = rng.uniform(0.55, 0.75)
        hues = {"sky": 0.57, "grass": 0.28, "sand": 0.11, "water": 0.6}
        values = {"sky": (0.35, 0.9), "grass": (0.55, 0.5), "sand": (0.35, 0.82), "water": (0.65, 0.55)}
        self.colors = {
            name: _color(
                hues[name] + rng.normal(0, 0.015),
                values[name][0] + rng.uniform(-0.1, 0.1),
                values[name][1] + rng.uniform(-0.1, 0.08),
            )
            for name in hues
        }
        self.height, self.width = height, width

    def paint(self, world: Float) -> tuple[Float, NDArray[np.uint8]]:
        """Colours ``H W 3`` in 0..1 and labels ``H W`` at the world coordinates ``H W 2``."""
        x, y = world[..., 0], world[..., 1]
        image = self._surface(self.ground, world)
        labels = np.full(x.shape, STUFF.index(self.ground), dtype=np.uint8)
        depth = np.ones_like(x) if self.horizon is None else ((y - self.horizon) / self.height).clip(0.05, 1)
        patch = self.patches(np.stack([x, y / depth**0.5], axis=-1) / (3.2 * self.unit))
        image = _mix(image, self._surface(self.patch, world), _step(patch, self.patch_level, 0.03))
        labels[patch > self.patch_level] = STUFF.index(self.patch)
        if self.horizon is not None:
            hills = sum(
                np.sin(x * frequency / self.width + phase) / (k + 1)
                for k, (frequency, phase) in enumerate(zip((2.5, 6.0, 13.0), self.hill_phase, strict=True))
            )
            above = self.horizon + self.hill_height * hills - y
            image *= (0.8 + 0.2 * _step(-above, 0.1 * self.height, 0.4 * self.height))[..., None]
            image = _mix(image, self._surface("sky", world), _step(above, 0.0, 1.5))
            labels[above > 0] = STUFF.index("sky")
        return image, labels

    def _surface(self, name: str, world: Float) -> Float:
        x, y = world[..., 0] / self.unit, world[..., 1] / self.unit
        color = self.colors[name]
        if name == "sky":
            clouds = _step(self.noise(np.stack([x * 0.5, y * 1.1], axis=-1)), 0.58, 0.25)
            fade = (0.5 - world[..., 1] / self.height).clip(0, 1)
            return _mix(_mix(color * 0.4 + 0.6, color, fade), np.ones(3), clouds * 0.85)
        if name == "water":
            wave = np.sin(y * 9 + 3 * self.noise(np.stack([x, y], axis=-1)) * 2 * np.pi + x)
            return _mix(color * 0.85, color * 0.6 + 0.4, _step(wave, 0.75, 0.8) * 0.55)
        if name == "sand":
            ripple = np.sin(y * 5 + x * 1.5 + 4 * self.noise(np.stack([x * 0.7, y * 0.7], axis=-1)))
            grain = self.noise(np.stack([x * 9, y * 9], axis=-1))
            return color * (0.9 + 0.06 * ripple + 0.22 * (grain - 0.5))[..., None]
        blades = self.noise(np.stack([x * 7, y * 3], axis=-1))
        field = self.noise(np.stack([x * 0.6, y * 0.6], axis=-1))
        return color * (0.65 + 0.5 * blades + 0.4 * (field - 0.5))[..., None]


class _Canvas:
    """The part of a background that a camera ever sees, painted once and then looked at frame by frame."""

    def __init__(self, background: _Background, camera: _Camera, height: int, width: int) -> None:
        views = [
            _to_world(camera, t, height, width)[:: height - 1, :: width - 1] for t in range(len(camera.zoom))
        ]
        self.origin = np.min(views, axis=(0, 1, 2)) - 1
        columns, rows = np.ceil((np.max(views, axis=(0, 1, 2)) + 1 - self.origin) * _FINENESS).astype(int) + 1
        y, x = np.mgrid[:rows, :columns] / _FINENESS
        self.image, self.labels = background.paint(np.stack([x, y], axis=-1) + self.origin)

    def view(self, world: Float) -> tuple[Float, NDArray[np.uint8]]:
        """Colours (blended) and labels (nearest) at the world coordinates ``H W 2``."""
        place = (world - self.origin) * _FINENESS
        cell = np.floor(place).astype(np.int64)
        u, v = np.moveaxis((place - cell)[..., None], 2, 0)
        x, y = cell[..., 0], cell[..., 1]
        top = self.image[y, x] * (1 - u) + self.image[y, x + 1] * u
        bottom = self.image[y + 1, x] * (1 - u) + self.image[y + 1, x + 1] * u
        x, y = np.moveaxis(np.rint(place).astype(np.int64), -1, 0)
        return top * (1 - v) + bottom * v, self.labels[y, x]


@dataclass(frozen=True)
class _Post:
    x: float  # world coordinates
    width: float
    color: Float
    phase: float


def _draw_posts(rng: Rng, width: int, level: ToyLevel, objects: list[_Body]) -> list[_Post]:
    count = int(rng.integers(level.posts[0], level.posts[1] + 1))
    posts = [
        _Post(
            x=rng.uniform(-0.42, 0.42) * width,
            width=rng.uniform(*level.post_width) * width,
            color=_color(rng.uniform(0.04, 0.09), rng.uniform(0.35, 0.6), rng.uniform(0.35, 0.55)),
            phase=rng.uniform(0, 2 * np.pi),
        )
        for _ in range(count)
    ]
    if level.hide and posts and objects:
        # The first one stands where an object passes.
        path = objects[int(rng.integers(len(objects)))].path[:, 0]
        x = float(path[int(rng.integers(len(path)))])
        posts[0] = replace(posts[0], x=min(max(x, -0.42 * width), 0.42 * width))
    return posts


def _paint_post(image: Float, post: _Post, world: Float) -> NDArray[np.bool_]:
    across = (world[..., 0] - post.x) / (post.width / 2)
    distance = (np.abs(across) - 1) * post.width / 2
    grain = np.sin(across * 7 + post.phase + np.sin(world[..., 1] * 0.15 + post.phase))
    shade = (1 - 0.45 * (across + 0.3) ** 2).clip(0.3, 1) * (1 + 0.1 * grain)
    _blend(image, post.color * shade[..., None], distance)
    return distance < 0


def _blend(image: Float, color: Float, distance: Float) -> None:
    """Draw ``color`` into ``image`` where the signed distance (pixels) is negative, with a soft edge."""
    image[...] = _mix(image, color, (0.5 - distance).clip(0, 1))


# ---- bodies


def _regular(points: Float, corners: int, inradius: float) -> Float:
    angles = np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    sides = [points[..., 0] * np.cos(angle) + points[..., 1] * np.sin(angle) for angle in angles]
    return np.max(sides, axis=0) - inradius


def _box(points: Float, half_x: float, half_y: float) -> Float:
    return np.maximum(np.abs(points[..., 0]) - half_x, np.abs(points[..., 1]) - half_y)


def _star(points: Float) -> Float:
    sector = 2 * np.pi / 5
    angle = np.arctan2(points[..., 0], -points[..., 1])
    folded = np.abs((angle + sector / 2) % sector - sector / 2)
    radius = np.hypot(points[..., 0], points[..., 1])
    x, y = radius * np.cos(folded) - 1.12, radius * np.sin(folded)
    inner = np.array([np.cos(sector / 2), np.sin(sector / 2)]) * 0.5
    edge = inner - np.array([1.12, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return x * normal[0] + y * normal[1]


_DISTANCES: dict[str, Callable[[Float], Float]] = {
    "disc": lambda p: np.hypot(p[..., 0], p[..., 1]) - 0.95,
    "square": lambda p: _box(p, 0.82, 0.82),
    "triangle": lambda p: _regular(p, 3, 0.56),
    "star": _star,
    "ring": lambda p: np.abs(np.hypot(p[..., 0], p[..., 1]) - 0.7) - 0.28,
    "cross": lambda p: np.minimum(_box(p, 1.0, 0.33), _box(p, 0.33, 1.0)),
}
# Hue that most objects of a class have, as most oranges are orange.
_HUES = dict(zip(THINGS, (0.0, 0.62, 0.14, 0.8, 0.48, 0.93), strict=True))


def _blob(points: Float, wobble: Float) -> Float:
    angle = np.arctan2(points[..., 1], points[..., 0])
    outline = 0.8 + sum(a * np.sin((k + 2) * angle + phase) for k, (a, phase) in enumerate(wobble))
    return np.hypot(points[..., 0], points[..., 1]) - outline


def _draw_look(rng: Rng, hue: float, saturation: float = 1.0) -> _Look:
    first = _color(hue, saturation * rng.uniform(0.65, 0.95), rng.uniform(0.75, 1.0))
    second = _color(hue + rng.normal(0, 0.05), saturation * rng.uniform(0.3, 0.9), rng.uniform(0.3, 1.0))
    pattern = str(rng.choice(["plain", "stripes", "checker", "dots", "rings"]))
    return _Look((first, second), pattern, rng.uniform(3.5, 6.5), rng.uniform(0, 2 * np.pi))


def _vary(rng: Rng, look: _Look, variety: float) -> _Look:
    """Nearly the same look, as two animals of a species have."""
    shift = rng.normal(0, variety, 3)
    first, second = (np.clip(color + shift, 0, 1) for color in look.colors)
    return _Look((first, second), look.pattern, look.frequency * rng.uniform(0.95, 1.05), look.phase)


def _draw_bodies(
    rng: Rng, height: int, width: int, length: int, level: ToyLevel
) -> tuple[list[_Body], list[_Body]]:
    num_objects = int(rng.integers(level.objects[0], level.objects[1] + 1))
    num_species = int(rng.integers(level.species[0], level.species[1] + 1))
    things = [int(thing) for thing in rng.integers(len(THINGS), size=num_species)]
    looks = []
    for thing in things:
        usual = rng.random() >= level.odd_color
        looks.append(_draw_look(rng, _HUES[THINGS[thing]] + rng.normal(0, 0.02) if usual else rng.random()))

    num_points = int(np.ceil((length - 1) / level.waypoint_frames)) + 1
    start = _spread_points(rng, num_objects)
    objects: list[_Body] = []
    routes: list[tuple[int, Float]] = []
    for i in range(num_objects):
        species = int(rng.integers(num_species))
        fellows = [route for other, route in routes if other == species]
        if fellows and rng.random() < level.cross:
            fellow = fellows[int(rng.integers(len(fellows)))]
            waypoints = np.roll(fellow, -1, axis=0) + rng.normal(0, 0.05, fellow.shape)
        else:
            waypoints = rng.uniform([-0.38, -0.25], [0.38, 0.33], (num_points + 1, 2))
            waypoints[0] = start[i]
            outside = rng.random(num_points + 1) < level.leave
            outside[0] = False
            waypoints[outside, 0] = np.sign(waypoints[outside, 0]) * rng.uniform(0.62, 0.75, outside.sum())
            if level.hide and routes:
                other = (fellows or [route for _, route in routes])[-1]
                meets = rng.random(num_points + 1) < level.hide
                meets[0] = False  # everybody shows at the start
                waypoints[meets] = other[meets] + rng.normal(0, 0.03, (meets.sum(), 2))
        routes.append((species, waypoints))
        size = rng.uniform(*level.radius) * height
        path = _follow(waypoints * [width, height], length, level.waypoint_frames)
        look = _vary(rng, looks[species], level.variety)
        objects.append(_draw_body(rng, things[species], look, size, path, length))

    distractors = []
    for _ in range(int(rng.integers(level.distractors[0], level.distractors[1] + 1))):
        size = rng.uniform(*level.radius) * height * 0.8
        place = rng.uniform([-0.5, -0.3], [0.5, 0.45]) * [width, height]
        path = place + _sway(rng, length, 2) * 0.1 * height
        look = _draw_look(rng, rng.random(), level.camouflage)
        distractors.append(_draw_body(rng, None, look, size, path, length))
    return objects, distractors


def _draw_body(rng: Rng, thing: int | None, look: _Look, radius: float, path: Float, length: int) -> _Body:
    time = np.arange(length)
    amplitudes = rng.uniform(0.03, 0.15, 4)
    return _Body(
        thing=thing,
        look=look,
        radius=radius,
        path=path,
        angle=np.asarray(rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.08) * time),
        scale=1 + 0.18 * np.sin(rng.uniform(0, 2 * np.pi) + rng.uniform(0.1, 0.35) * time),
        wobble=np.stack([amplitudes, rng.uniform(0, 2 * np.pi, 4)], axis=1),
    )


def _spread_points(rng: Rng, count: int, tries: int = 12) -> Float:
    """Starting points, ``count 2`` in fractions of the frame, each the farthest of some candidates."""
    points = rng.uniform([-0.38, -0.25], [0.38, 0.33], (1, 2))
    while len(points) < count:
        candidates = rng.uniform([-0.38, -0.25], [0.38, 0.33], (tries, 2))
        distances = np.linalg.norm(candidates[:, None] - points[None], axis=-1).min(axis=1)
        points = np.concatenate([points, candidates[distances.argmax()][None]])
    return points


def _follow(waypoints: Float, length: int, frames_per_step: float) -> Float:
    """Positions per frame on the smooth curve through the waypoints (Catmull-Rom), ``T 2``."""
    place = np.arange(length) / frames_per_step
    k = np.floor(place).astype(np.int64)
    u = (place - k)[:, None]
    before, here, there, after = (waypoints[(k + step).clip(0, len(waypoints) - 1)] for step in (-1, 0, 1, 2))
    return 0.5 * (
        2 * here
        + (there - before) * u
        + (2 * before - 5 * here + 4 * there - after) * u**2
        + (3 * (here - there) + after - before) * u**3
    )


def _paint_body(image: Float, body: _Body, camera: _Camera, t: int) -> NDArray[np.bool_]:
    """Draw the body with its shadow into ``image`` (in place) and return its mask ``H W``, covered or not."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), dtype=bool)
    # Bodies follow the camera for the most part, so that they stay in view; the background does not.
    centre = _rotate((body.path[t] - 0.3 * camera.position[t]) * camera.zoom[t], camera.angle[t])
    centre += np.array([(width - 1) / 2, (height - 1) / 2])
    radius = body.radius * body.scale[t] * camera.zoom[t]
    reach = 1.35 * radius + 2
    x0, y0 = np.floor(centre - reach).astype(int).clip(0)
    x1, y1 = np.minimum(np.ceil(centre + reach).astype(int) + 1, [width, height])
    if x0 >= x1 or y0 >= y1:
        return mask
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    screen = np.stack([x, y], axis=-1) - centre
    angle = body.angle[t] + camera.angle[t]
    local = _rotate(screen, -angle) / radius
    distance = _distance(body, local) * radius
    shadow = _distance(body, _rotate(screen - 0.12 * radius, -angle) / radius) * radius
    window = image[y0:y1, x0:x1]
    window *= (1 - 0.3 * (0.5 - shadow / (0.12 * radius)).clip(0, 1))[..., None]
    light = 1 - 0.16 * screen.sum(axis=-1) / radius
    edge = 1 - 0.35 * _step(distance, -0.06 * radius, 0.1 * radius)
    color = _texture(body.look, local) * (light * edge)[..., None]
    _blend(window, color.clip(0, 1), distance)
    mask[y0:y1, x0:x1] = distance < 0
    return mask


def _distance(body: _Body, local: Float) -> Float:
    return _blob(local, body.wobble) if body.thing is None else _DISTANCES[THINGS[body.thing]](local)


def _texture(look: _Look, local: Float) -> Float:
    x, y = local[..., 0] * look.frequency, local[..., 1] * look.frequency
    if look.pattern == "plain":
        value = 0.25 + 0.1 * np.sin(x + look.phase) * np.sin(y)
    elif look.pattern == "stripes":
        value = _step(np.sin(1.6 * x + look.phase), 0.1, 0.5)
    elif look.pattern == "checker":
        value = _step(np.sin(x + look.phase) * np.sin(y + look.phase), 0.0, 0.25)
    elif look.pattern == "dots":
        value = _step(np.cos(1.2 * x) * np.cos(1.2 * y), 0.35, 0.3)
    else:
        value = _step(np.sin(1.8 * np.hypot(x, y) + look.phase), 0.0, 0.5)
    return _mix(look.colors[0], look.colors[1], value)
