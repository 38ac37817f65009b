"""Random captions of pictures of the demo world: correct but incomplete, as on the web."""

from __future__ import annotations

import numpy as np

from clipseg_jax.demo.world import SCENERY, Picture, Thing

PLACES = {
    "water": ("on the water", "in the water", "at sea", "on a lake", "by the water"),
    "grass": ("on the grass", "in a field", "in a meadow", "on green grass"),
    "sand": ("in the desert", "on the sand", "on a beach", "on sand"),
    "sky": ("in the sky", "in the clouds", "in the air"),
}
TEMPLATES = {
    "a photo of {}.": 0.25,
    "a picture of {}.": 0.12,
    "{}.": 0.12,
    "{}": 0.10,
    "an image of {}.": 0.08,
    "there is {}.": 0.08,
    "a small photo of {}.": 0.07,
    "a good picture of {}.": 0.07,
    "a view of {}.": 0.06,
    "my photo of {}.": 0.05,
}
SCENERY_TEMPLATES = ("a photo of {}.", "a picture of {}.", "the {}.", "a view of {}.")


def captions(picture: Picture, count: int) -> list[str]:
    """Samples `count` captions of a picture with `picture.rng`."""
    return [_caption(picture) for _ in range(count)]


def _caption(picture: Picture) -> str:
    rng = picture.rng
    pick = lambda items: items[rng.integers(len(items))]  # noqa: E731
    areas = np.bincount(picture.scenery.ravel(), minlength=4) / picture.scenery.size
    first, second = np.argsort(-areas)[:2]
    if not picture.classes:
        if areas[second] > 0.2 and rng.random() < 0.4:
            words = f"{SCENERY[first]} and {SCENERY[second]}"
        else:
            other = areas[second] > 0.2 and rng.random() > 0.7
            words = SCENERY[second if other else first]
        return pick(SCENERY_TEMPLATES).format(words)

    def salience(thing: Thing) -> float:
        return thing.radius * (1 - 1.1 * max(abs(thing.x - 0.5), abs(thing.y - 0.5)))

    visible = zip(picture.things, picture.visible, strict=True)
    things = sorted((t for t, area in visible if area > 0.004), key=salience, reverse=True)
    named = []
    for i, thing in enumerate(things):  # things near the border are often not mentioned
        edge = max(abs(thing.x - 0.5), abs(thing.y - 0.5))
        chance = 0.98 if i == 0 else np.clip(1.15 - 1.4 * edge, 0.4, 0.95)
        if rng.random() < chance:
            named.append(thing)
    named = named or things[:1]
    if rng.random() < 0.25:
        named.reverse()
    parts: list[str] = []
    for thing in named:
        name = f"{thing.colour} {thing.name}" if rng.random() < 0.5 else thing.name
        parts.append(f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
    if rng.random() < 0.55:
        text += f" {pick(PLACES[picture.kind])}"
    if areas[SCENERY.index("sky")] > 0.05 and rng.random() < 0.2:
        text += pick((" under a blue sky", " under the sky", " and the sky"))
    chosen = rng.choice(list(TEMPLATES), p=np.array(list(TEMPLATES.values())))
    return str(chosen).format(text)
