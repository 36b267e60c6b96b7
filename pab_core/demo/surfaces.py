"""What the rays of the demo clips see: the patterns of objects and floors, and the sky, as functions of a place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pab_core.demo.materials import PATTERNS

Frames = dict[str, Tensor]  # numbers per frame [N, 1, 1], by name; see render.frame_table
Vec = tuple[Tensor, Tensor, Tensor]


def paint_pattern(f: Frames, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """0 = first, 1 = second colour of the object's pattern, in its own coordinates."""
    around = torch.atan2(z, x)
    # Sectors become narrower than a pixel towards an axis; fade them out there.
    calm = ((x * x + z * z) * 40 / (f["half_width"] * f["half_width"])).clamp(max=1.0)
    scale_x, scale_y = x / f["half_width"], y / f["half_height"]
    scale_z = z / f["half_width"]
    cube = f["is_cube"]
    k = 1.35 * math.pi  # three cells a side, with the faces inside the outer cells
    cell = torch.cos(k * scale_x) * torch.cos(k * scale_y) * torch.cos(k * scale_z)
    diagonal = torch.sin(2.2 * math.pi * (scale_x + scale_y + scale_z) / 1.5)
    sectors = torch.sin(5 * around)
    rings = torch.cos(k * scale_y * 0.99)
    stripes = sectors * calm + (diagonal - sectors * calm) * cube
    checks = sectors * rings * calm
    checks = checks + (cell - checks) * cube
    striped = ((stripes - 0.35) * 6 + 0.5).clamp(0.0, 1.0)
    checked = (checks * 9 + 0.5).clamp(0.0, 1.0)
    return f["striped"] * striped + f["checkered"] * checked


def sky_colour(f: Frames, ray: Vec) -> list[Tensor]:
    """Gradient, soft clouds, stars, a glow at the side of the sun, and hills on the horizon."""
    azimuth = torch.atan2(ray[0], -ray[2])
    elevation = ray[1].clamp(min=0.0)
    seed = f["backdrop"]
    climb = 1 - torch.exp(-elevation * 4.5)
    bend = torch.sin(azimuth * 7 + seed * 3) * 0.8
    puffs = torch.sin(azimuth * 11 + seed + bend + elevation * 9) + torch.sin(elevation * 42 + bend * 2 + seed * 2.3)
    puffs = puffs + 0.6 * torch.sin(azimuth * 23 - elevation * 31 + seed * 1.7)
    cloud = ((puffs - 0.2) * 0.55).clamp(0.0, 1.0) * f["cloud_amount"] * (elevation * 9).clamp(max=1.0)
    glow = torch.exp(-((azimuth - f["glow_side"]) ** 2) * 5 - elevation * 9)
    # Stars: at most one in each cell of a grid of directions, at a hashed place.
    cell_x, cell_y = torch.floor(azimuth * 22), torch.floor(elevation * 22)
    chance = scatter(cell_x + seed, cell_y * 3.7)
    offset = scatter(cell_y * 1.3 - seed, cell_x)
    star_x, star_y = (
        azimuth * 22 - cell_x - 0.2 - 0.6 * offset,
        elevation * 22 - cell_y - 0.2 - 0.6 * torch.frac(chance * 7),
    )
    star = torch.exp(-(star_x**2 + star_y**2) * 110) * (chance > 0.62) * (0.25 + 0.55 * offset)
    moon_x, moon_y = azimuth - f["glow_side"] * 0.75, elevation - 0.095
    moon_distance = torch.sqrt(moon_x * moon_x + moon_y * moon_y)
    moon = ((0.033 - moon_distance) * 250 + 0.5).clamp(0.0, 1.0) * 0.75 + torch.exp(-moon_distance * 14) * 0.12
    star = (star + moon) * f["stars"]
    hill = 0.030 + 0.016 * torch.sin(azimuth * 5 + seed) + 0.009 * torch.sin(azimuth * 13 + seed * 2.1)
    far_hill = 0.045 + 0.020 * torch.sin(azimuth * 4 + seed * 1.3 + 2) + 0.006 * torch.sin(azimuth * 17 + seed)
    in_hill, in_far = ray[1] < hill, ray[1] < far_hill
    mist = torch.exp(-elevation * 45) * 0.55
    colours = []
    for channel in "rgb":
        horizon, hills = f[f"horizon_{channel}"], f[f"hills_{channel}"]
        above = horizon + (f[f"zenith_{channel}"] - horizon) * climb + f[f"glow_{channel}"] * glow
        above = above + (f[f"cloud_{channel}"] - above) * cloud + star
        back = hills + (horizon - hills) * 0.5
        relief = torch.where(in_hill, hills, back)
        relief = relief + (horizon - relief) * mist
        colours.append(torch.where(in_hill | in_far, relief, above))
    return colours


def floor_pattern(f: Frames, x: Tensor, z: Tensor, distance: Tensor) -> Tensor:
    """0..1 between the two colours of the floor; patterns soften with the distance instead of flickering."""
    p = x * f["floor_cos"] + z * f["floor_sin"] + f["floor_x"]
    q = z * f["floor_cos"] - x * f["floor_sin"] + f["floor_z"]
    sharp = 6.0 / (1 + 0.01 * distance * distance * distance)
    near = torch.exp(-distance * distance * 0.012)
    wave_p, wave_q = torch.sin(math.pi * p / 0.8), torch.sin(math.pi * q / 0.8)
    checks = (wave_p * wave_q * sharp * 1.5 + 0.5).clamp(0.0, 1.0)
    bands = (wave_p * sharp + 0.5).clamp(0.0, 1.0)
    plain = 0.5 + 0.5 * torch.sin(p * 0.9 + torch.sin(q * 0.7)) * near
    blades = noise(p * 7, q * 7) * 0.6 + noise(p * 2.1, q * 2.1) * 0.4
    grass = 0.45 + (blades - 0.5) * (0.25 + 0.9 * near)
    ripples = 0.55 + 0.40 * near * torch.sin(p * 7 + 1.3 * torch.sin(q * 1.9) + 0.8 * torch.sin(p * 1.7 + q))
    plank = torch.floor(p / 0.55)
    seam = ((p / 0.55 - plank - 0.5).abs() * 2 - 0.93).clamp(min=0.0) * 14
    tone = scatter(plank, plank * 0.7)
    grain = torch.sin(p * 31 + 2 * torch.sin(q * 1.7 + tone * 20)) * near
    planks = (0.30 + 0.55 * tone + 0.10 * grain) * (1 - 0.75 * seam.clamp(max=1.0) * near)
    patterns = {"plain": plain, "checks": checks, "bands": bands, "grass": grass, "ripples": ripples, "planks": planks}
    terms = [f[f"floor_{name}"] * patterns[name] for name in PATTERNS]
    return sum(terms[1:], start=terms[0])


def unit(v: Vec) -> Vec:
    """The vector at length 1."""
    scale = torch.rsqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    return v[0] * scale, v[1] * scale, v[2] * scale


def dot(a: Vec, b: Vec) -> Tensor:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def scatter(x: Tensor, y: Tensor) -> Tensor:
    """Noise in 0..1 that depends on two whole numbers."""
    return torch.frac(torch.sin(x * 12.9898 + y * 78.233).abs() * 4375.5453)


def noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth value noise in 0..1."""
    cell_x, cell_y = torch.floor(x), torch.floor(y)
    s, t = x - cell_x, y - cell_y
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    near = scatter(cell_x, cell_y) * (1 - s) + scatter(cell_x + 1, cell_y) * s
    far = scatter(cell_x, cell_y + 1) * (1 - s) + scatter(cell_x + 1, cell_y + 1) * s
    return near * (1 - t) + far * t
