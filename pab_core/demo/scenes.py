"""Random scenes for the demo model's training clips: what stands where, how it moves, how the camera moves.

World: y is up, the floor is y = 0, the camera starts on the +z side and looks along -z; lengths are in "object sizes"
(an object is about 1 wide), angles in radians, time in units of one nominal clip of `CLIP_SECONDS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pab_core.demo.captions import (
    CAMERAS,
    COLOURS,
    FLOORS,
    MOTIONS,
    SHAPES,
    SKIES,
    TEXTURES,
    Prompt,
    SceneFields,
    caption,
    evaluation_prompts,
    is_held_out,
    needs_texture,
    random_fields,
    training_vocabulary_text,
    triples,
)

__all__ = [
    "CAMERAS", "CLIP_SECONDS", "COLOURS", "FLOORS", "MOTIONS", "SHAPES", "SKIES", "TEXTURES", "Prompt", "SceneFields",
    "Scenes", "caption", "evaluation_prompts", "is_held_out", "random_fields", "sample_scenes", "scenes_of",
    "training_vocabulary_text",
]  # fmt: skip

CLIP_SECONDS = 33 / 16  # from the first to the last of 34 frames at 16 fps

# motion -> (camera distance, height of the point looked at); rising and falling objects need more room.
FRAMING = {
    "left": ((4.1, 4.5), 0.72),
    "right": ((4.1, 4.5), 0.72),
    "towards": ((4.5, 4.7), 0.70),
    "away": ((4.5, 4.7), 0.70),
    "rise": ((4.7, 5.1), 1.08),
    "fall": ((4.7, 5.1), 1.08),
    "bounce": ((4.4, 4.8), 0.95),
    "circle": ((4.3, 4.7), 0.60),
    "spin": ((3.5, 4.1), 0.68),
}


@dataclass
class Scenes:
    """B scenes as a struct of arrays: every field is a tensor [B], all on one device.

    Index with an int, a slice or an index tensor; the result is again a `Scenes` (an int gives B = 1).
    """

    shape: Tensor  # indices into SHAPES, COLOURS, ... (int64)
    colour: Tensor
    texture: Tensor
    floor: Tensor
    sky: Tensor
    motion: Tensor
    camera: Tensor
    size: Tensor  # scale of the object, about 1
    shade: Tensor  # brightness of its colour, about 1
    start_x: Tensor  # middle of the path on the floor
    start_z: Tensor
    extent: Tensor  # half length of a path, height of a rise, radius of a circle
    drift: Tensor  # sideways slope of a straight path
    yaw: Tensor  # orientation at the start
    turn: Tensor  # how far a sliding object turns during the clip (signed)
    sense: Tensor  # +1 or -1: sense of a circle, spin and orbit
    phase: Tensor  # 0..1: where a bounce or a circle begins
    distance: Tensor  # of the camera
    height: Tensor  # of the camera
    look_y: Tensor  # height of the point it looks at
    camera_amount: Tensor  # angle of the whole pan or orbit; logarithm of the zoom
    light_azimuth: Tensor  # from the camera's side; positive: from the right
    light_elevation: Tensor
    floor_angle: Tensor
    floor_x: Tensor
    floor_z: Tensor
    backdrop: Tensor  # 0..1: which hills, clouds and stars

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Scenes:
        if isinstance(index, int):
            index = slice(index, index + 1 if index != -1 else None)
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes on another device."""
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def device(self) -> torch.device:
        return self.shape.device

    def describe(self) -> list[SceneFields]:
        """The attributes of every scene by name, as `caption` wants them."""
        indices = (self.shape, self.colour, self.texture, self.floor, self.sky, self.motion, self.camera)
        names = (SHAPES, tuple(COLOURS), TEXTURES, FLOORS, SKIES, MOTIONS, CAMERAS)
        columns = [[table[i] for i in index.tolist()] for table, index in zip(names, indices, strict=True)]
        return [SceneFields(*row) for row in zip(*columns, strict=True)]


def sample_scenes(
    n: int, generator: torch.Generator, device: torch.device | str = "cpu", split: str = "train"
) -> Scenes:
    """`n` random scenes on `device`, drawn on the CPU so that a seed means the same scenes everywhere.

    `generator` is a CPU generator; `split` is "train", "held_out" or "all" (see `captions.is_held_out`).
    """
    allowed = torch.tensor([(SHAPES.index(s), tuple(COLOURS).index(c), MOTIONS.index(m)) for s, c, m in triples(split)])
    shape, colour, motion = allowed[torch.randint(len(allowed), (n,), generator=generator)].unbind(1)

    def choose(count: int) -> Tensor:
        return torch.randint(count, (n,), generator=generator)

    def chance() -> Tensor:
        return torch.rand(n, generator=generator)

    textured = torch.tensor([[needs_texture(s, m) for m in MOTIONS] for s in SHAPES])[shape, motion]
    texture = torch.where(textured | (chance() < 0.5), 1 + choose(len(TEXTURES) - 1), 0)
    camera = torch.where(chance() < 0.5, 0, 1 + choose(len(CAMERAS) - 1))
    return _complete(shape, colour, texture, choose(len(FLOORS)), choose(len(SKIES)), motion, camera, generator).to(
        device
    )


def scenes_of(wanted: list[SceneFields], generator: torch.Generator, device: torch.device | str = "cpu") -> Scenes:
    """Scenes with the given attributes; only the continuous parameters are drawn."""
    names = (SHAPES, tuple(COLOURS), TEXTURES, FLOORS, SKIES, MOTIONS, CAMERAS)
    columns = zip(*wanted, strict=True)
    indices = [torch.tensor([table.index(v) for v in column]) for table, column in zip(names, columns, strict=True)]
    return _complete(*indices, generator=generator).to(device)


def _complete(
    shape: Tensor,
    colour: Tensor,
    texture: Tensor,
    floor: Tensor,
    sky: Tensor,
    motion: Tensor,
    camera: Tensor,
    generator: torch.Generator,
) -> Scenes:
    n = len(shape)

    def between(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def sign() -> Tensor:
        return torch.randint(2, (n,), generator=generator) * 2.0 - 1.0

    is_motion = {name: motion == i for i, name in enumerate(MOTIONS)}
    is_camera = {name: camera == i for i, name in enumerate(CAMERAS)}
    sideways = is_motion["left"] | is_motion["right"]
    in_depth = is_motion["towards"] | is_motion["away"]
    vertical = is_motion["rise"] | is_motion["fall"]
    zoom, pan = is_camera["zoom in"], is_camera["pan left"] | is_camera["pan right"]
    # A camera that pans along with the object takes from its way across the frame; one that pans against it adds.
    along = (is_motion["left"] & is_camera["pan left"]) | (is_motion["right"] & is_camera["pan right"])

    extent = torch.where(zoom, between(0.68, 0.78), between(0.8, 0.95))  # circle
    extent = torch.where(is_motion["bounce"], torch.where(zoom, between(0.8, 0.9), between(0.9, 1.1)), extent)
    extent = torch.where(vertical, torch.where(zoom, between(1.05, 1.15), between(1.25, 1.5)), extent)
    extent = torch.where(in_depth, between(1.35, 1.5), extent)
    extent = torch.where(in_depth & zoom & is_motion["towards"], between(1.0, 1.12), extent)
    extent = torch.where(in_depth & zoom & is_motion["away"], between(1.55, 1.65), extent)
    across = torch.where(zoom | (pan & ~along), between(1.0, 1.12), between(1.15, 1.35))
    extent = torch.where(sideways, torch.where(along, between(1.34, 1.44), across), extent)

    framing = torch.tensor([(*distances, look) for distances, look in (FRAMING[name] for name in MOTIONS)])
    low, high, look = framing[motion].unbind(1)
    start_x = between(-0.35, 0.35) * torch.where(sideways | is_motion["circle"], 0.15, torch.where(pan, 0.6, 1.0))
    start_z = torch.where(is_motion["towards"], -0.25, torch.where(is_motion["away"], -0.3, between(-0.15, 0.1)))
    amount = torch.where(pan, between(0.15, 0.18), torch.where(zoom, between(0.18, 0.22), between(0.46, 0.56)))
    elevation = torch.tensor([math.radians(46), math.radians(29), math.radians(45)])[sky] + between(-0.07, 0.07)
    # A cube seen square on looks flat, so a sliding one shows two faces all the way.
    turn = between(0.25, 0.6) * sign()
    oblique = between(0.5, 1.07) - turn / 2 + math.pi / 2 * torch.randint(4, (n,), generator=generator)
    yaw = torch.where(shape == SHAPES.index("cube"), oblique, between(0.0, 2 * math.pi))
    return Scenes(
        shape=shape,
        colour=colour,
        texture=texture,
        floor=floor,
        sky=sky,
        motion=motion,
        camera=camera,
        size=between(1.0, 1.1),
        shade=between(0.94, 1.04),
        start_x=start_x,
        start_z=start_z,
        extent=extent,
        drift=between(-0.12, 0.12),
        yaw=yaw,
        turn=turn,
        sense=sign(),
        phase=between(0.0, 1.0),
        distance=between(low, high),
        height=between(1.35, 1.65),
        look_y=look + between(-0.04, 0.04),
        camera_amount=amount,
        light_azimuth=between(math.radians(30), math.radians(70)) * sign(),
        light_elevation=elevation,
        floor_angle=between(0.0, math.pi / 2),
        floor_x=between(0.0, 8.0),
        floor_z=between(0.0, 8.0),
        backdrop=between(0.0, 1.0),
    )
