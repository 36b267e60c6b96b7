"""Where the object and the camera of a demo scene are in every frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pab_core.demo.scenes import CAMERAS, CLIP_SECONDS, MOTIONS, SHAPES, Scenes

# shape -> (half extent, or radius, in x and z; half height), before the scale of the scene
HALF_WIDTH = (0.50, 0.43, 0.43, 0.58)
HALF_HEIGHT = (0.50, 0.43, 0.50, 0.56)
FOCAL = 1.0 / math.tan(math.radians(38.0) / 2)  # vertical field of view of 38 degrees
BOUNCE_SECONDS = 0.72
SPIN_TURNS = 1.2
SPHERE = SHAPES.index("sphere")


def clip_time(scenes: Scenes, num_frames: int, fps: float) -> Tensor:
    """[B, T]: 0 at the first frame, 1 after `CLIP_SECONDS`; the speed of things does not depend on `num_frames`."""
    time = torch.arange(num_frames, device=scenes.device, dtype=torch.float32) / (fps * CLIP_SECONDS)
    return time[None].expand(len(scenes), num_frames)


def object_path(scenes: Scenes, num_frames: int, fps: float) -> tuple[Tensor, Tensor]:
    """Centre [B, T, 3] of the object and rotation [B, T, 3, 3] from its own to world coordinates."""
    u = clip_time(scenes, num_frames, fps)

    def per_clip(values: Tensor) -> Tensor:
        return values[:, None]

    motion = per_clip(scenes.motion)
    moves = {name: (motion == i).float() for i, name in enumerate(MOTIONS)}
    extent, sense = per_clip(scenes.extent), per_clip(scenes.sense)
    half_height = per_clip(torch.tensor(HALF_HEIGHT, device=u.device)[scenes.shape] * scenes.size)
    along = 2 * u - 1  # -1 .. 1 over the clip

    # Straight paths and circles on the floor.
    sideways = moves["right"] - moves["left"]
    in_depth = moves["towards"] - moves["away"]
    angle = 2 * math.pi * (per_clip(scenes.phase) + sense * u)
    slope = per_clip(scenes.drift)
    x = per_clip(scenes.start_x) + extent * (along * (sideways + slope * in_depth) + moves["circle"] * torch.cos(angle))
    z = per_clip(scenes.start_z) + extent * (along * (in_depth + slope * sideways) + moves["circle"] * torch.sin(angle))

    # Heights: a smooth rise, a fall with a small rebound, a row of parabolas.
    eased = u.clamp(0, 1)
    rise = eased * eased * (3 - 2 * eased)
    landing, rebound = 0.78, 0.22
    after = ((u - landing) / rebound).clamp(0, 1)
    fall = (1 - (u / landing) ** 2).clamp(min=0) + 0.07 * 4 * after * (1 - after)
    beat = torch.frac(u * (CLIP_SECONDS / BOUNCE_SECONDS) + per_clip(scenes.phase))
    bounce = 4 * beat * (1 - beat)
    lift = moves["rise"] * rise + moves["fall"] * fall + moves["bounce"] * bounce
    centre = torch.stack([x, half_height + extent * lift, z], dim=-1)

    # Orientation = heading (about y) * roll or tilt (about a level axis) * orientation at the start.
    is_sphere = per_clip((scenes.shape == SPHERE).float())
    travelled = extent * along / half_height
    rolled = is_sphere * travelled * (moves["left"] + moves["right"] + moves["towards"] + moves["away"])
    rolled = rolled + is_sphere * moves["circle"] * extent * 2 * math.pi * u / half_height
    tilt = 0.22 * lift.clamp(0, 1) * sense * (1 - is_sphere) + 0.8 * is_sphere * lift * sense
    roll_x = in_depth
    roll_z = -sideways + (1 - (sideways + in_depth).abs()) * (1 - moves["circle"])
    # On a circle the ball rolls about the radius, which is x at angle 0 and turns with the heading.
    roll_x = roll_x + moves["circle"] * sense
    heading = -moves["circle"] * angle * is_sphere
    slides = (1 - is_sphere) * (1 - moves["spin"])
    yaw = per_clip(scenes.yaw) + slides * per_clip(scenes.turn) * u
    yaw = yaw + moves["spin"] * sense * 2 * math.pi * SPIN_TURNS * u
    own = _about_y(yaw)
    own = own @ _about_axis(is_sphere * 0.9 * torch.ones_like(u), torch.zeros_like(u), torch.ones_like(u))
    return centre, _about_y(heading) @ _about_axis(rolled + tilt, roll_x, roll_z) @ own


def camera_path(scenes: Scenes, num_frames: int, fps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Position [B, T, 3], axes [B, T, 3, 3] (rows: right, up, forward), focal length [B, T] (1: half the height)."""
    u = clip_time(scenes, num_frames, fps)

    def per_clip(values: Tensor) -> Tensor:
        return values[:, None]

    camera, amount = per_clip(scenes.camera), per_clip(scenes.camera_amount)
    moves = {name: (camera == i).float() for i, name in enumerate(CAMERAS)}
    swing = amount * (u - 0.5)
    orbit = moves["orbit"] * per_clip(scenes.sense) * swing
    distance = per_clip(scenes.distance)
    rise = per_clip(scenes.height).expand_as(u)
    position = torch.stack([distance * torch.sin(orbit), rise, distance * torch.cos(orbit)], dim=-1)
    # Turning to the left moves the forward direction towards -x.
    yaw = -orbit + (moves["pan right"] - moves["pan left"]) * swing
    pitch = torch.atan2(rise - per_clip(scenes.look_y), distance)
    sin_y, cos_y, sin_p, cos_p = torch.sin(yaw), torch.cos(yaw), torch.sin(pitch), torch.cos(pitch)
    right = torch.stack([cos_y, torch.zeros_like(u), sin_y], dim=-1)
    forward = torch.stack([sin_y * cos_p, -sin_p, -cos_y * cos_p], dim=-1)
    up = torch.stack([sin_y * sin_p, cos_p, -cos_y * sin_p], dim=-1)
    focal = FOCAL * torch.exp(moves["zoom in"] * amount * u)
    return position, torch.stack([right, up, forward], dim=-2), focal


def _about_y(angle: Tensor) -> Tensor:
    sin, cos = torch.sin(angle), torch.cos(angle)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(row, dim=-1) for row in ((cos, zero, sin), (zero, one, zero), (-sin, zero, cos))]
    return torch.stack(rows, dim=-2)


def _about_axis(angle: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Rotation [..., 3, 3] about the level unit axis (x, 0, z) (Rodrigues' formula)."""
    sin, cos = torch.sin(angle), torch.cos(angle)
    rest = 1 - cos
    x, z = x + torch.zeros_like(angle), z + torch.zeros_like(angle)
    rows = (
        (cos + x * x * rest, -z * sin, x * z * rest),
        (z * sin, cos, -x * sin),
        (x * z * rest, x * sin, cos + z * z * rest),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
