"""An analytic ray tracer for the demo scenes: one object on a floor under a sky, in plain tensor operations.

Sphere, cube, cylinder and cone are all "a quadric cut by a box", so one ray test serves them all; no control
flow depends on data, so that `trace_frames` compiles well. Per frame it reads a dict of numbers [N, 1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pab_core.demo.captions import COLOURS, SHAPES, TEXTURES
from pab_core.demo.materials import PATTERNS, palette
from pab_core.demo.paths import HALF_HEIGHT, HALF_WIDTH, camera_path, object_path
from pab_core.demo.scenes import Scenes
from pab_core.demo.surfaces import Frames, Vec, dot, floor_pattern, paint_pattern, sky_colour, unit

FAR = 1.0e3  # half extent of a box that does not cut


def render(
    scenes: Scenes,
    num_frames: int = 34,
    height: int = 128,
    width: int = 192,
    fps: float = 16,
    supersample: int = 2,
    chunk: int | None = None,
    trace: Callable[[Frames, int, int, int], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Clips of `scenes` on their device: video float [B, 3, T, H, W] in -1..1 and object coverage [B, T, H, W] in 0..1.

    `chunk` is the number of clips made at a time; by default all when `trace` is given, few otherwise. `trace` replaces
    `trace_frames`, usually by `torch.compile(trace_frames)`, which is what makes this fast on a GPU; keep B a multiple
    of `chunk` then, or the last part compiles anew.
    """
    if chunk:
        step = chunk * num_frames
    elif trace:
        step = len(scenes) * num_frames
    else:
        # Uncompiled, every intermediate is a tensor in memory: one frame at a time stays in a CPU's cache.
        step = 1 if scenes.device.type == "cpu" else 4 * num_frames
    trace = trace or trace_frames
    frames = frame_table(scenes, num_frames, fps)
    parts = []
    for start in range(0, len(scenes) * num_frames, step):
        parts.append(trace({k: v[start : start + step] for k, v in frames.items()}, height, width, supersample))
    video = torch.cat([p[0] for p in parts]) if len(parts) > 1 else parts[0][0]
    mask = torch.cat([p[1] for p in parts]) if len(parts) > 1 else parts[0][1]
    video = video.view(len(scenes), num_frames, 3, height, width).transpose(1, 2)
    return video.contiguous(), mask.view(len(scenes), num_frames, height, width)


def frame_table(scenes: Scenes, num_frames: int, fps: float) -> Frames:
    """Everything the tracer needs, one number per frame: name -> [B * T, 1, 1]. Directions are in world coordinates."""
    device, count = scenes.device, len(scenes)
    tables = palette(device)
    centre, rotation = object_path(scenes, num_frames, fps)
    position, axes, focal = camera_path(scenes, num_frames, fps)
    values: Frames = {}

    def put(name: str, value: Tensor) -> None:
        if value.dim() == 1:
            value = value[:, None].expand(count, num_frames)
        values[name] = value.reshape(-1, 1, 1).float().contiguous()

    def put_all(name: str, value: Tensor, labels: str | tuple[str, ...] = "xyz") -> None:
        for i, label in enumerate(labels):
            put(f"{name}_{label}", value[..., i])

    put_all("cam", position)
    put_all("forward", axes[..., 2, :])
    put_all("right", axes[..., 0, :] / focal[..., None])
    put_all("up", axes[..., 1, :] / focal[..., None])
    put_all("centre", centre)
    for i, axis in enumerate("xyz"):  # column i: the object's own axis in the world
        put_all(f"own_{axis}", rotation[..., :, i])

    azimuth, elevation = scenes.light_azimuth, scenes.light_elevation
    level = torch.cos(elevation)
    put_all("light", torch.stack([torch.sin(azimuth) * level, torch.sin(elevation), torch.cos(azimuth) * level], -1))

    # The quadric is round * (x^2 + z^2) + y2 * y^2 + y1 * y + y0 <= 0.
    half_width = torch.tensor(HALF_WIDTH, device=device)[scenes.shape] * scenes.size
    half_height = torch.tensor(HALF_HEIGHT, device=device)[scenes.shape] * scenes.size
    is_shape = {name: (scenes.shape == i).float() for i, name in enumerate(SHAPES)}
    slope2 = (half_width / (2 * half_height)) ** 2
    cone, cube = is_shape["cone"], is_shape["cube"]
    put("round", 1 - cube)
    put("y2", is_shape["sphere"] - cone * slope2)
    put("y1", cone * slope2 * 2 * half_height)
    put("y0", -(1 - cone - cube) * half_width**2 - cone * slope2 * half_height**2 - cube)
    put("box_xz", cube * half_width + (1 - cube) * FAR)
    put("box_y", is_shape["sphere"] * FAR + (1 - is_shape["sphere"]) * half_height)
    put("half_width", half_width)
    put("half_height", half_height)
    put("is_cube", cube)

    base = tables["object"][scenes.colour] * scenes.shade[:, None]
    put_all("paint", base, "rgb")
    put_all("paint2", _second_paint(base, scenes.colour, scenes.texture == TEXTURES.index("striped")), "rgb")
    for i, name in enumerate(TEXTURES[1:], start=1):
        put(name, (scenes.texture == i).float())

    for name in ("floor_low", "floor_high"):
        put_all(name, tables[name][scenes.floor], "rgb")
    put_all("floor", tables["floor_patterns"][scenes.floor], PATTERNS)
    put("floor_cos", torch.cos(scenes.floor_angle))
    put("floor_sin", torch.sin(scenes.floor_angle))
    put("floor_x", scenes.floor_x)
    put("floor_z", scenes.floor_z)
    for name in ("zenith", "horizon", "hills", "cloud", "glow", "sun", "ambient"):
        put_all(name, tables[name][scenes.sky], "rgb")
    put("cloud_amount", tables["cloud_amount"][scenes.sky])
    put("stars", tables["stars"][scenes.sky])
    put("backdrop", scenes.backdrop * 40.0)
    put("glow_side", torch.sign(azimuth) * 0.4)
    return values


def _second_paint(base: Tensor, colour: Tensor, striped: Tensor) -> Tensor:
    """The pattern's other colour: cream stripes or darker checks, and grey on white."""
    cream = base + (torch.tensor((0.92, 0.88, 0.80), device=base.device) - base) * 0.75
    is_white = (colour == list(COLOURS).index("white"))[:, None]
    return torch.where(striped[:, None] & ~is_white, cream, base * torch.where(is_white, 0.22, 0.32))


def trace_frames(f: Frames, height: int, width: int, supersample: int) -> tuple[Tensor, Tensor]:
    """Colour [N, 3, H, W] in -1..1 and coverage [N, H, W] of N frames, each pixel the mean of supersample^2 rays."""
    device, fine = f["cam_x"].device, supersample
    column = torch.arange(width * fine, device=device, dtype=torch.float32).view(1, 1, -1)
    row = torch.arange(height * fine, device=device, dtype=torch.float32).view(1, -1, 1)
    # Image coordinates: v runs from -1 at the bottom to 1 at the top, u has the same scale.
    u = (column * 2 + 1 - width * fine) / (height * fine)
    v = (height * fine - 1 - row * 2) / (height * fine)
    red, green, blue, cover = (
        part.unflatten(2, (width, fine)).unflatten(1, (height, fine)).mean((2, 4)) for part in _trace(f, u, v)
    )
    return torch.stack([red, green, blue], dim=1), cover


def _trace(f: Frames, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour in -1..1 and hit (0 or 1) [N, H, W] of one ray for each image coordinate u [1, 1, W], v [1, H, 1]."""
    x, y, z = (f[f"forward_{a}"] + u * f[f"right_{a}"] + v * f[f"up_{a}"] for a in "xyz")
    ray = unit((x, y, z))
    origin = (f["cam_x"] - f["centre_x"], f["cam_y"] - f["centre_y"], f["cam_z"] - f["centre_z"])
    own_origin, own_ray = _to_own(f, origin), _to_own(f, ray)
    hit, near, _, normal = _meet(f, own_origin, own_ray)
    floor_distance = -f["cam_y"] / ray[1].clamp(max=-1e-4)
    is_floor = ray[1] < -1e-4
    hit = hit & (~is_floor | (near < floor_distance))

    thing = _object_colour(f, own_origin, own_ray, near, normal, ray)
    sky = sky_colour(f, ray)
    ground = _floor_colour(f, ray, floor_distance)
    fade = 1 - torch.exp(-((floor_distance.clamp(max=200) * 0.045) ** 2))
    out = []
    for c, channel in enumerate("rgb"):
        haze = f[f"horizon_{channel}"]
        below = ground[c] + (haze - ground[c]) * fade
        colour = torch.where(hit, thing[c], torch.where(is_floor, below, sky[c]))
        # Gamma per ray, not per pixel: edges then look even on a screen.
        out.append(colour.clamp(0.0, 1.0) ** (1 / 2.2) * 2 - 1)
    return out[0], out[1], out[2], hit.float()


def _to_own(f: Frames, v: Vec) -> Vec:
    """World vector -> the object's own axes."""
    x, y, z = (v[0] * f[f"own_{a}_x"] + v[1] * f[f"own_{a}_y"] + v[2] * f[f"own_{a}_z"] for a in "xyz")
    return x, y, z


def _to_world(f: Frames, v: Vec) -> Vec:
    x, y, z = (v[0] * f[f"own_x_{a}"] + v[1] * f[f"own_y_{a}"] + v[2] * f[f"own_z_{a}"] for a in "xyz")
    return x, y, z


def _meet(f: Frames, o: Vec, d: Vec) -> tuple[Tensor, Tensor, Tensor, Vec]:
    """Where rays o + t d meet the object, in its own coordinates: hit, nearest t, length inside, outward normal."""
    rounded, y2, y1 = f["round"], f["y2"], f["y1"]
    a = rounded * (d[0] * d[0] + d[2] * d[2]) + y2 * d[1] * d[1]
    b = rounded * (o[0] * d[0] + o[2] * d[2]) + y2 * o[1] * d[1] + 0.5 * y1 * d[1]
    c = rounded * (o[0] * o[0] + o[2] * o[2]) + y2 * o[1] * o[1] + y1 * o[1] + f["y0"]
    flat = f["is_cube"] > 0.5
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    discriminant = b * b - a * c
    root = torch.sqrt(discriminant.clamp(min=0.0))
    first, second = (-b - root) / a, (-b + root) / a
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    # A ray steeper than a cone's side is inside beyond its second (going down) or before its first crossing.
    steep, down = a < 0, d[1] < 0
    enter = torch.where(steep, torch.where(down, high, -FAR), low)
    leave = torch.where(steep, torch.where(down, FAR, low), high)
    enter, leave = torch.where(flat, -FAR, enter), torch.where(flat, FAR, leave)
    exists = flat | (discriminant > 0)

    sides = []
    box_enter, box_leave = [], []
    for axis, extent in ((0, f["box_xz"]), (1, f["box_y"]), (2, f["box_xz"])):
        direction = d[axis]
        inverse = 1.0 / torch.where(direction.abs() < 1e-6, 1e-6, direction)
        middle, span = -o[axis] * inverse, extent * inverse.abs()
        box_enter.append(middle - span)
        box_leave.append(middle + span)
        sides.append(-torch.sign(direction))
    box_near = torch.maximum(torch.maximum(box_enter[0], box_enter[1]), box_enter[2])
    near = torch.maximum(enter, box_near)
    far = torch.minimum(leave, torch.minimum(torch.minimum(box_leave[0], box_leave[1]), box_leave[2]))
    hit = exists & (near < far) & (near > 0)

    on_quadric = enter >= box_near
    px, py, pz = (o[i] + near * d[i] for i in range(3))
    curved = unit((rounded * px, y2 * py + 0.5 * y1, rounded * pz + 1e-9))
    normal = []
    for axis in range(3):
        flat_side = torch.where(box_near == box_enter[axis], sides[axis], 0.0)
        normal.append(torch.where(on_quadric, curved[axis], flat_side))
    return hit, near, torch.where(exists, far - near, -1.0), (normal[0], normal[1], normal[2])


def _object_colour(f: Frames, o: Vec, d: Vec, near: Tensor, normal: Vec, ray: Vec) -> list[Tensor]:
    """Shaded colour of the object where the ray enters it: Lambert, Blinn-Phong, light from sky and floor."""
    x, y, z = (o[i] + near * d[i] for i in range(3))
    pattern = paint_pattern(f, x, y, z)
    n = _to_world(f, normal)
    light = (f["light_x"], f["light_y"], f["light_z"])
    facing = dot(n, light)
    lit = (facing * 0.86 + 0.14).clamp(min=0.0)
    half = unit((light[0] - ray[0], light[1] - ray[1], light[2] - ray[2]))
    gloss = dot(n, half).clamp(min=0.0) ** 48 * (facing > 0)
    edge = (1 + dot(n, ray)).clamp(0.0, 1.0) ** 3 * 0.12
    up = n[1] * 0.5 + 0.5
    # Near the floor less of the sky is seen.
    world_y = f["centre_y"] + x * f["own_x_y"] + y * f["own_y_y"] + z * f["own_z_y"]
    open_sky = 1 - 0.45 * torch.exp(-world_y.clamp(min=0.0) * 5.0)
    colours = []
    for channel in "rgb":
        paint = f[f"paint_{channel}"] + (f[f"paint2_{channel}"] - f[f"paint_{channel}"]) * pattern
        sun, ambient = f[f"sun_{channel}"], f[f"ambient_{channel}"]
        bounce = f[f"floor_high_{channel}"] * 0.35 * (sun + ambient)
        around = (bounce + (ambient * 1.35 - bounce) * up) * open_sky
        colours.append(paint * (sun * lit + around) + gloss * sun * 0.45 + edge * f[f"horizon_{channel}"] * up)
    return colours


def _floor_colour(f: Frames, ray: Vec, distance: Tensor) -> list[Tensor]:
    """Patterned floor with the object's soft shadow and the darkness under it."""
    x, z = f["cam_x"] + distance * ray[0], f["cam_z"] + distance * ray[2]
    pattern = floor_pattern(f, x, z, distance)
    light = (f["light_x"], f["light_y"], f["light_z"])
    start = (x - f["centre_x"], -f["centre_y"].expand_as(x), z - f["centre_z"])
    _, near, inside, _ = _meet(f, _to_own(f, start), _to_own(f, light))
    # The less of the object the light has to cross, the lighter: a penumbra that grows with the height of the object.
    blocked = (inside / (0.12 + 0.16 * near.clamp(0.0, 3.0))).clamp(0.0, 1.0) * (near > -0.1)
    blocked = blocked * blocked * (3 - 2 * blocked)
    clearance = (f["centre_y"] - f["half_height"]).clamp(min=0.0)
    spread = f["half_width"] * (1.15 + clearance * 0.5)
    contact = torch.exp(-(start[0] ** 2 + start[2] ** 2) / (spread * spread) * 1.2 - clearance * 2.5)
    open_sky = 1 - 0.55 * contact
    colours = []
    for channel in "rgb":
        low, high = f[f"floor_low_{channel}"], f[f"floor_high_{channel}"]
        albedo = low + (high - low) * pattern
        direct = f[f"sun_{channel}"] * (f["light_y"] * 0.75 + 0.30) * (1 - 0.92 * blocked)
        colours.append(albedo * (direct + f[f"ambient_{channel}"] * 1.1) * open_sky)
    return colours
