"""What a demo scene can contain, in words: attribute names, the caption grammar, prompts for the evaluation.

Needs only the standard library, so that prompts can be written without torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = {  # sRGB, 0..1
    "red": (0.86, 0.11, 0.12),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.87, 0.14),
    "green": (0.13, 0.68, 0.22),
    "blue": (0.12, 0.34, 0.90),
    "purple": (0.50, 0.18, 0.78),
    "pink": (0.99, 0.52, 0.74),
    "white": (0.95, 0.95, 0.95),
}
TEXTURES = ("plain", "striped", "checkered")
FLOORS = ("green", "blue", "grey", "red", "brown", "yellow", "checkerboard", "stripes", "grass", "sand", "wood")
SKIES = ("day", "sunset", "night")
MOTIONS = ("left", "right", "towards", "away", "rise", "fall", "bounce", "circle", "spin")
CAMERAS = ("static", "pan left", "pan right", "zoom in", "orbit")

STATED = 0.7  # chance that an optional part (floor, sky, texture, camera) is stated

NOUNS = {
    "sphere": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "box", "block"),
    "cylinder": ("cylinder", "cylinder", "can", "tube"),
    "cone": ("cone",),
}
FLOOR_NAMES = {
    "checkerboard": ("a checkerboard floor", "a checkered floor", "a chessboard floor", "a floor of squares"),
    "stripes": ("a striped floor", "a striped ground", "a floor with stripes"),
    "grass": ("grass", "the grass", "a lawn", "green grass", "a meadow"),
    "sand": ("sand", "the sand", "a sandy ground", "a sandy floor"),
    "wood": ("a wooden floor", "a wooden floor", "wooden planks", "a wooden surface"),
}
SKY_PHRASES = {
    "day": ("by day", "in daylight", "under a blue sky", "on a sunny day", "in the sunshine", "during the day"),
    "sunset": ("at sunset", "at sunset", "in the evening light", "under a sunset sky", "in the evening", "at dusk"),
    "night": ("at night", "at night", "under the stars", "in the moonlight", "under a night sky", "by night"),
}
CAMERA_SENTENCES = {
    "static": ("the camera is still", "the camera does not move", "the camera stays still"),
    "pan left": ("the camera pans left", "the camera pans to the left", "the camera turns left"),
    "pan right": ("the camera pans right", "the camera pans to the right", "the camera turns right"),
    "zoom in": ("the camera zooms in", "the camera slowly zooms in", "the camera zooms in slowly"),
    "orbit": ("the camera orbits around it", "the camera orbits", "the camera moves around it"),
}
CAMERA_NOTES = {
    "static": ("static camera", "still camera", "static shot"),
    "pan left": ("pan left", "camera panning left", "panning to the left"),
    "pan right": ("pan right", "camera panning right", "panning to the right"),
    "zoom in": ("zoom in", "camera zooming in", "slow zoom in"),
    "orbit": ("orbit", "orbiting camera", "camera orbiting around it"),
}
OPENINGS = ("a video of", "a clip of", "a film of", "a short video of")


class SceneFields(NamedTuple):
    """The attributes of one scene, by name (members of SHAPES, COLOURS, TEXTURES, FLOORS, SKIES, MOTIONS, CAMERAS)."""

    shape: str
    colour: str
    texture: str
    floor: str
    sky: str
    motion: str
    camera: str


class Prompt(NamedTuple):
    """A prompt of the evaluation and what its video has to show."""

    text: str
    shape: str
    colour: str
    motion: str


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether this combination is kept out of training: a fixed, balanced tenth of all (shape, colour, motion)."""
    s, c, m = SHAPES.index(shape), list(COLOURS).index(colour), MOTIONS.index(motion)
    return (3 * s + c + 7 * m + (s * c) // 3) % 10 == 4


def triples(split: str = "all") -> list[tuple[str, str, str]]:
    """All (shape, colour, motion) of a split: "train", "held_out" or "all"; ValueError for another name."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"The split {split!r} does not exist. Choose train, held_out or all.")
    every: list[tuple[str, str, str]] = list(product(SHAPES, COLOURS, MOTIONS))
    return every if split == "all" else [t for t in every if is_held_out(*t) == (split == "held_out")]


def needs_texture(shape: str, motion: str) -> bool:
    """A plain round object that spins looks as if it stood still, so it always carries a texture."""
    return motion == "spin" and shape != "cube"


def random_fields(rng: random.Random, split: str = "all") -> SceneFields:
    """A scene's attributes in words alone, with the frequencies of `scenes.sample_scenes`."""
    shape, colour, motion = rng.choice(triples(split))
    texture = rng.choice(TEXTURES[1:]) if needs_texture(shape, motion) or rng.random() < 0.5 else "plain"
    camera = "static" if rng.random() < 0.5 else rng.choice(CAMERAS[1:])
    return SceneFields(shape, colour, texture, rng.choice(FLOORS), rng.choice(SKIES), motion, camera)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _subject(fields: SceneFields, rng: random.Random) -> str:
    noun = f"{fields.colour} {rng.choice(NOUNS[fields.shape])}"
    if fields.texture == "plain":
        return _with_article("plain " + noun if rng.random() < 0.2 else noun)
    if rng.random() >= STATED:
        return _with_article(noun)
    patterned = {
        "striped": (f"striped {noun}", f"striped {noun}", f"{noun} with stripes"),
        "checkered": (f"checkered {noun}", f"checkered {noun}", f"{noun} with a checkered pattern"),
    }
    return _with_article(rng.choice(patterned[fields.texture]))


def _floor(fields: SceneFields, rng: random.Random) -> str:
    if fields.floor in FLOOR_NAMES:
        return rng.choice(FLOOR_NAMES[fields.floor])
    return f"{rng.choice(('a', 'a', 'the'))} {fields.floor} {rng.choice(('floor', 'floor', 'ground', 'surface'))}"


def _travel_verb(shape: str, rng: random.Random) -> tuple[str, str]:
    own = [("rolls", "rolling")] * 3 if shape == "sphere" else [("slides", "sliding")] * 2 + [("glides", "gliding")]
    return rng.choice([*own, ("moves", "moving"), ("moves", "moving"), ("travels", "travelling")])


def _motion(fields: SceneFields, rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    """(finite verb, gerund, rest of the verb phrase, prepositions that lead to the floor)."""
    motion = fields.motion
    travel = _travel_verb(fields.shape, rng)
    over = ("over", "on", "across")
    if motion in ("left", "right"):
        other = "right" if motion == "left" else "left"
        ways = (motion, motion, f"to the {motion}", f"to the {motion}", f"{motion}wards", f"from {other} to {motion}")
        return (*travel, rng.choice(ways), over)
    if motion == "towards":
        ways = (
            (*travel, "towards the camera"),
            (*travel, "towards us"),
            (*travel, "closer"),
            ("comes", "coming", "closer"),
            ("comes", "coming", "towards the camera"),
            ("approaches", "approaching", "the camera"),
        )
        return (*rng.choice(ways), over)
    if motion == "away":
        ways = (
            (*travel, "away from the camera"),
            (*travel, "away"),
            (*travel, "away from us"),
            (*travel, "into the distance"),
        )
        return (*rng.choice(ways), over)
    if motion == "rise":
        ways = (
            ("rises", "rising", ""),
            ("rises", "rising", "into the air"),
            ("floats", "floating", "up"),
            ("floats", "floating", "upwards"),
            ("moves", "moving", "up"),
            ("lifts", "lifting", "off"),
        )
        return (*rng.choice(ways), ("above", "over", "from"))
    if motion == "fall":
        ways = (
            ("falls", "falling", ""),
            ("falls", "falling", "down"),
            ("drops", "dropping", ""),
            ("drops", "dropping", "down"),
        )
        return (*rng.choice(ways), ("onto", "on", "to"))
    if motion == "bounce":
        ways = (
            ("bounces", "bouncing", ""),
            ("bounces", "bouncing", "up and down"),
            ("jumps", "jumping", "up and down"),
            ("hops", "hopping", "up and down"),
        )
        return (*rng.choice(ways), ("on", "on", "over"))
    if motion == "circle":
        ways = (
            (*travel, "in a circle"),
            (*travel, "in a circle"),
            (*travel, "around in a circle"),
            ("circles", "circling", "around"),
            ("goes", "going", "round in a circle"),
        )
        return (*rng.choice(ways), ("on", "over", "across"))
    ways = (
        ("spins", "spinning", ""),
        ("spins", "spinning", "in place"),
        ("spins", "spinning", "on the spot"),
        ("rotates", "rotating", ""),
        ("turns", "turning", "on the spot"),
        ("whirls", "whirling", "around"),
    )
    return (*rng.choice(ways), ("on",))


def caption(fields: SceneFields, rng: random.Random) -> str:
    """One of many wordings of a scene: lower case, one or two sentences, at most about 30 words.

    Shape, colour and motion are always stated; texture, floor, sky and camera each with the chance `STATED`.
    """
    subject = _subject(fields, rng)
    verb, gerund, rest, prepositions = _motion(fields, rng)
    floor = _floor(fields, rng) if rng.random() < STATED else ""
    sky = rng.choice(SKY_PHRASES[fields.sky]) if rng.random() < STATED else ""
    # Half of all cameras stand still, and nobody says so as often as they mention a move.
    camera = rng.random() < (STATED if fields.camera != "static" else STATED / 2)

    opening, action = "", verb
    style = rng.random()
    if style < 0.15:
        opening, action = rng.choice(OPENINGS), gerund
    elif style < 0.22:
        action = gerund
    where = f"{rng.choice(prepositions)} {floor}" if floor else ""
    lead = ""
    order = rng.random()
    if sky and not opening and order < 0.2:
        lead, sky = sky + ",", ""
    elif floor and not opening and fields.motion not in ("rise", "fall") and order < 0.35:
        lead, where = f"on {floor},", ""
    words = " ".join(part for part in (lead, opening, subject, action, rest, where, sky) if part)
    if not camera:
        return words + rng.choice(("", "", "."))
    style = rng.random()
    if style < 0.45:
        return f"{words}. {rng.choice(CAMERA_SENTENCES[fields.camera])}."
    if style < 0.65:
        return f"{words} while {rng.choice(CAMERA_SENTENCES[fields.camera])}"
    note = rng.choice(CAMERA_NOTES[fields.camera])
    return f"{words}, {note}" if style < 0.9 else f"{note}: {words}"


def training_vocabulary_text(n: int, seed: int) -> Iterator[str]:
    """`n` captions of random scenes (all combinations), as text to train a tokenizer on."""
    rng = random.Random(seed)
    for _ in range(n):
        yield caption(random_fields(rng), rng)


def evaluation_prompts(n: int, seed: int) -> list[Prompt]:
    """`n` prompts whose (shape, colour, motion) never occur in training, each combination about equally often."""
    rng = random.Random(seed)
    pool: list[tuple[str, str, str]] = []
    prompts = []
    for _ in range(n):
        if not pool:
            pool = triples("held_out")
            rng.shuffle(pool)
        shape, colour, motion = pool.pop()
        texture = rng.choice(TEXTURES[1:]) if needs_texture(shape, motion) else rng.choice(TEXTURES)
        camera = "static" if rng.random() < 0.5 else rng.choice(CAMERAS[1:])
        fields = SceneFields(shape, colour, texture, rng.choice(FLOORS), rng.choice(SKIES), motion, camera)
        prompts.append(Prompt(caption(fields, rng), shape, colour, motion))
    return prompts
