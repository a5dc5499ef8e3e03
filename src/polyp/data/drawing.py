"""Colonoscopy drawn from a seed: mucosa, folds, vessels, highlights, and polyps of all sizes with masks."""

import cmath
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from polyp.processors import count_processors

Array = np.ndarray


def draw(seed: int, height: int, width: int) -> tuple[Array, Array]:
    """Draw one picture: the wall of the colon, its folds and its lumen, with one to three polyps.

    Args:
        seed: the number of the picture; the same arguments always give the same pixels.
        height, width: of the picture in pixels, at least 32.

    Returns:
        The image, (height, width, 3) uint8 RGB, and the mask of the visible polyps, (height, width) uint8 in
        {0, 1}.
    """
    scene = _Scene(seed, height, width)
    scene.frame()
    scene.wall()
    scene.vessels()
    scene.polyps()
    scene.residue()
    return scene.photograph(), scene.mask.astype(np.uint8)


def draw_dataset(folder: Path, count: int, size: int, seed: int) -> None:
    """Draw pictures of different sizes.

    Args:
        folder: gets images/synthetic_0000.jpg, ... (RGB) and masks/synthetic_0000.png, ... (0 and
            255).
        count: the number of pictures.
        size: heights are between `size` and 1.3 `size` pixels, widths between `size` and 1.5 `size`.
        seed: of all pictures.

    Raises:
        OSError: the folder cannot be written.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)

    def save(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        height, width = int(size * rng.uniform(1, 1.3)), int(size * rng.uniform(1, 1.5))
        image, mask = draw(int(rng.integers(2**32)), height, width)
        jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        png = cv2.imencode(".png", mask * 255)[1]
        # Not cv2.imwrite, which ignores a full disk.
        (folder / f"images/synthetic_{number:04}.jpg").write_bytes(jpeg.tobytes())
        (folder / f"masks/synthetic_{number:04}.png").write_bytes(png.tobytes())

    with ThreadPoolExecutor(min(4, count_processors())) as pool:
        list(pool.map(save, range(count)))  # list: raises here what a thread raises


def _step(x: Array, width: float) -> Array:
    """0 below zero, 1 above, and between them a ramp of that width: an edge without jags."""
    return np.clip(x * (1 / width) + 0.5, 0, 1)


def _rgb(red: float, green: float, blue: float) -> Array:
    """A colour, (3, 1, 1) float32: pictures are planar until the end, which is much faster."""
    return np.array([[[red]], [[green]], [[blue]]], np.float32)


class _Scene:
    """One picture. Lengths are in halves of its shorter side, positions are complex numbers."""

    def __init__(self, seed: int, height: int, width: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = height, width
        self.unit = min(height, width) / 2
        self.corner = complex(width, height) / 2 / self.unit
        x = (np.arange(width, dtype=np.float32) + 0.5) / self.unit - self.corner.real
        y = (np.arange(height, dtype=np.float32) + 0.5) / self.unit - self.corner.imag
        self.z = x + 1j * y[:, None]
        self.mask = np.zeros(self.shape, bool)

    def vector(self, length: float = 1) -> complex:
        """A vector of this length in any direction."""
        return cmath.rect(length, self.rng.uniform(0, 2 * math.pi))

    def noise(self, cells: float) -> Array:
        """Smooth noise, float32, about N(0, 0.7): a random grid of `cells` to the shorter side, enlarged."""
        # Two cells more than are seen, so that the smooth part begins before the border.
        grid = [max(2, min(side, round(cells * side / self.unit / 2))) + 2 for side in self.shape]
        rows, cols = (math.ceil(side * n / (n - 2)) for side, n in zip(self.shape, grid, strict=True))
        small = self.rng.standard_normal(grid, dtype=np.float32)
        if cells < 20:  # cubic, but not to the full size, which takes much longer
            finer = max(3, round(48 / cells))
            small = cv2.resize(small, None, fx=finer, fy=finer, interpolation=cv2.INTER_CUBIC)
        return cv2.resize(small, (cols, rows))[: self.shape[0], : self.shape[1]]

    def outline(self, direction: Array, strength: float) -> Array:
        """The radius, about 1, of a random smooth closed curve in each direction (complex, of length 1)."""
        power, radius = direction, np.ones(self.shape, np.float32)
        for order in range(1, 5):
            power = power * direction
            radius += (power * self.vector(strength * abs(self.rng.normal()) / order)).real
        return np.maximum(radius, 0.4)

    def shade(self, relief: Array) -> Array:
        """How much light each point of a relief (heights) gets: 1 if flat, more if it faces the lamp."""
        dx = cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=self.unit / 8)
        dy = cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=self.unit / 8)
        cosine = (1 - dx * self.lamp.real - dy * self.lamp.imag) / np.sqrt(1 + dx * dx + dy * dy)
        return np.clip(cosine, 0.25, 1.5)

    def frame(self) -> None:
        """The black frame: cut corners and, in half of the pictures, a box at the lower left."""
        x, y, rng = np.abs(self.z.real), np.abs(self.z.imag), self.rng
        right, bottom = self.corner.real - rng.uniform(0.01, 0.06), self.corner.imag - 0.01
        cut = (x + y - (right + bottom - rng.uniform(0.4, 0.7))) * 0.7
        self.inside = _step(-np.maximum(cut, np.maximum(x - right, y - bottom)), 1.5 / self.unit)
        if rng.random() < 0.5:
            rows = round(self.shape[0] * rng.uniform(0.24, 0.36))
            self.inside[-rows:, : round(self.shape[1] * rng.uniform(0.22, 0.33))] = 0

    def wall(self) -> None:
        """The mucosa and its light: bright nearby, dark in the lumen, with folds that hide a part of it."""
        rng = self.rng
        # The lumen is often beside the picture; the light comes from the lens, a little from one side.
        self.lumen, self.lamp = self.vector(rng.uniform(0, 1.5)), self.vector(rng.uniform(0.15, 0.6))
        offset = self.z - self.lumen
        distance = np.abs(offset) + 1e-3
        direction = offset / distance
        depth = distance * (1 + 0.08 * self.noise(2.5) + 0.012 * self.noise(9))
        depth = depth * self.outline(direction, 0.08)
        slope, power = rng.uniform(0.8, 1.4), rng.uniform(0.8, 1.6)
        smooth = 0.12 + slope * depth**power
        if rng.random() < 0.4:  # a wall close to the lens is too bright for the camera
            spot = self.z - self.vector(rng.uniform(0.8, 1.3))
            smooth += rng.uniform(0.5, 3) * np.exp((spot * spot.conj()).real * -rng.uniform(3, 10))
        self.light = 0.10 + 0.5 * smooth * depth**0.5
        radius = rng.uniform(0.15, 0.4)
        common = self.outline(direction, 0.08)
        for _ in range(rng.integers(1, 5)):
            gap = depth / (radius * common * self.outline(direction, 0.09)) - 1  # below 0: behind this fold
            height = np.clip(0.6 + 0.8 * (direction * self.vector()).real, 0, 1)  # a fold is not all around
            in_front = _step(gap, rng.uniform(3, 6) / self.unit / radius)
            shade = 1 - 0.75 * height * np.exp(np.minimum(gap, 0) * 4)
            crest = rng.uniform(0.06, 0.14)
            rim = smooth * (1 + height * (0.65 * np.exp(-np.square(gap / crest - 1)) - 0.2))
            fold = height * rim + (1 - height) * self.light
            self.light = self.light * shade * (1 - in_front) + fold * in_front
            radius *= rng.uniform(1.4, 2.1)
        self.light *= self.shade(self.noise(3) * 0.07 + self.noise(9) * 0.012)
        self.gloss = self.light.copy()
        # Between orange, pink and red; the hue wanders within the picture too.
        green = rng.uniform(0.28, 0.46)
        self.tint = _rgb(0.95, green, green * rng.uniform(0.55, 0.9))
        self.albedo = self.tint * (1 + self.noise(2.5) * _rgb(0.03, 0.1, 0.1))
        self.albedo *= 1 + 0.05 * self.noise(14) + 0.03 * self.noise(50)

    def vessels(self) -> None:
        """Thin red branching vessels, sharper in some places than in others."""
        rng, ink = self.rng, np.zeros(self.shape, np.uint8)
        start = [self.vector(rng.uniform(0, 1.2)) for _ in range(rng.integers(2, 8))]
        trees = [(at, rng.uniform(0, 2 * math.pi), 1.6) for at in start]
        for at, heading, length in trees:  # grows while it is walked
            step = np.exp(1j * (heading + np.cumsum(rng.normal(0, 0.3, 12)))) * length / 12
            path = at + np.cumsum(step)
            points = np.stack([path.real + self.corner.real, path.imag + self.corner.imag], 1) * self.unit
            thick = max(1, round(self.unit * length / 100))
            cv2.polylines(ink, [np.int32(points * 16)], False, 110 + 80 * length, thick, cv2.LINE_AA, 4)
            if length > 0.6:
                for twig in rng.integers(1, 11, 2):
                    turn = rng.choice([-0.7, 0.7])
                    trees.append((path[twig], np.angle(step[twig]) + turn, length * 0.55))
        depth = np.clip(0.6 + 0.7 * self.noise(2.5), 0, 1) * rng.uniform(0.2, 1) / 255
        self.albedo *= 1 - cv2.blur(ink, (2, 2)) * depth * _rgb(0.25, 0.6, 0.5)

    def polyps(self) -> None:
        """One polyp, seldom two or three, each mostly inside the frame and beside the others."""
        for number in range(self.rng.choice([1, 2, 3], p=[0.86, 0.11, 0.03])):
            share = float(np.clip(self.rng.lognormal(math.log(0.11), 0.8), 0.018, 0.36)) / (1 + 2 * number)
            radius = math.sqrt(share * 4 * self.corner.real * self.corner.imag / math.pi)
            window = (round(radius * self.unit) | 1,) * 2
            room = cv2.boxFilter(self.inside - self.mask, -1, window, borderType=cv2.BORDER_CONSTANT)
            places = np.flatnonzero(room >= min(0.98, room.max()))
            self.polyp(complex(self.z.flat[self.rng.choice(places)]), radius)

    def polyp(self, spot: complex, radius: float) -> None:
        """A dome on the wall with its own hue and grain, and a shadow on the side towards the lumen."""
        rng = self.rng
        stretch = math.sqrt(rng.uniform(1, 1.5))
        offset = self.z - spot
        local = offset * self.vector()
        local = local.real / stretch + 1j * (local.imag * stretch)
        size = np.abs(local) + 1e-4
        edge = radius * self.outline(local / size, rng.uniform(0.06, 0.14))
        level = size / edge  # 0 in the middle, 1 at the edge
        solid = _step(1 - level, 2.5 / self.unit / radius)

        axis = self.lumen - spot + self.lamp
        # 1 at the edge towards the lumen, -1 at the near one
        side = (offset * (axis / abs(axis)).conjugate()).real / radius
        lobes = self.noise(1.6 / radius) * rng.uniform(0, 0.16)
        lobes += self.noise(5 / radius) * rng.uniform(0, 0.04)
        dome = radius * (rng.uniform(0.4, 1.0) * np.sqrt(np.clip(1 - level * level, 0.02, 1)) + lobes)
        wall_light = float(self.light[solid > 0.5].mean())
        relief = 1 + (self.shade(dome) - 1) * np.clip(0.7 + 0.5 * side, 0.35, 1)  # flat at the near edge
        shade = 1 - 0.25 * np.clip(side, -1, 1) - 0.35 * level * level
        light = max(wall_light, 0.5) * rng.uniform(1.3, 2.1) * relief * shade
        shadow = rng.uniform(0.4, 0.8) * np.clip(0.4 + 0.6 * side, 0.25, 1)
        shadow = shadow * np.exp(np.minimum(1 - level, 0) * 5)
        wall = self.light * (1 - shadow)
        self.light = wall + solid * (light - wall)
        self.gloss += solid * (light + 0.2 - self.gloss)

        hue = self.tint * _rgb(1.03, rng.uniform(0.62, 0.84), rng.uniform(0.62, 0.95))
        grain = 1 + rng.uniform(0.04, 0.1) * self.noise(24) + rng.uniform(0.05, 0.14) * self.noise(60)
        skin = 0.15 * self.albedo + 0.85 * hue * grain
        self.albedo += solid * (skin - self.albedo)
        self.mask |= (solid > 0.5) & (self.inside > 0.5)

    def residue(self) -> None:
        """Now and then yellow-brown residue, and foam."""
        rng = self.rng
        if rng.random() < 0.35:
            field = self.noise(2) + 0.5 * self.noise(7) + 0.3 * self.noise(20)
            cover = _step(field - rng.uniform(1.5, 2.4), 0.8) * rng.uniform(0.4, 0.9)
            stain = _rgb(0.85, rng.uniform(0.42, 0.6), 0.15) * (1 + 0.2 * self.noise(30))
            self.albedo += cover * (stain - self.albedo)
            self.light *= 1 + cover * 0.3 * self.noise(10)
        if rng.random() < 0.15:
            centre = self.vector(rng.uniform(0, 0.9))
            for _ in range(rng.integers(5, 25)):
                distance = np.abs(self.z - centre - complex(*rng.normal(0, 0.13, 2)))
                radius = rng.uniform(0.015, 0.05)
                self.light *= 1 + 0.5 * np.exp(-(((distance - radius) * (self.unit / 1.2)) ** 2))

    def photograph(self) -> Array:
        """The picture that the lens takes, uint8 RGB: exposure, highlights, blur, noise, frame and text."""
        rng = self.rng
        image = 1 - np.exp(self.light * -rng.uniform(1.0, 1.7) * self.albedo)
        # Highlights: spots of many sizes, in clusters, where the wet surface faces the lamp.
        wet = np.minimum(self.gloss, 1.5) + 0.45 * self.noise(4) + 0.4 * self.noise(14) + 0.4 * self.noise(36)
        spark = _step(wet - np.quantile(wet[::3, ::3], 1 - rng.uniform(0.003, 0.025)), 0.3)
        image += spark * (1 - image)
        image = cv2.GaussianBlur(cv2.merge(list(image)), (0, 0), 0.3 + rng.exponential(0.5) * self.unit / 120)
        image += cv2.merge([self.noise(1e4) * rng.uniform(0.004, 0.015)] * 3)
        picture = (np.clip(image, 0, 1) * cv2.merge([self.inside * 255] * 3)).astype(np.uint8)
        if rng.random() < 0.5:  # the recorder's text, too small to read: characters of 3 x 5 dots
            dots = rng.random((7 * rng.integers(2, 6), 4 * rng.integers(4, 8))) < 0.45
            dots &= (np.arange(dots.shape[0]) % 7 < 5)[:, None] & (np.arange(dots.shape[1]) % 4 < 3)
            text = np.kron(dots, np.ones((max(1, round(self.unit / 110)),) * 2, bool))
            place = picture[round(0.5 * self.unit) :][: text.shape[0], : text.shape[1]]
            place[text[: place.shape[0], : place.shape[1]]] = 190
        return picture
