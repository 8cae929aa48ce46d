"""Random appearance of people: body, hair, clothes, patterns, bags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Color = tuple[int, int, int]

# All colors are RGB, 0 to 255. The palettes of clothes are short so that people share colors.
CLOTHES: dict[str, Color] = {
    "black": (38, 38, 44),
    "white": (232, 230, 224),
    "grey": (132, 134, 138),
    "navy": (38, 52, 98),
    "blue": (62, 112, 190),
    "red": (186, 46, 48),
    "maroon": (104, 36, 48),
    "green": (56, 120, 70),
    "olive": (108, 106, 62),
    "yellow": (222, 186, 62),
    "orange": (216, 118, 48),
    "beige": (204, 182, 146),
    "brown": (110, 76, 52),
    "pink": (220, 140, 164),
    "purple": (112, 70, 138),
    "teal": (44, 132, 138),
}
LOWER_COLORS = ("black", "navy", "grey", "blue", "beige", "brown", "olive", "white", "maroon")
SKIN: tuple[Color, ...] = (
    (242, 208, 180),
    (226, 182, 148),
    (198, 148, 112),
    (158, 108, 76),
    (112, 74, 52),
    (78, 52, 40),
)
HAIR: tuple[Color, ...] = (
    (30, 26, 26),
    (66, 44, 32),
    (112, 74, 42),
    (190, 150, 86),
    (150, 70, 36),
    (170, 168, 166),
)
UPPERS = ("tshirt", "shirt", "jacket", "coat", "vest", "hoodie")
LOWERS = ("trousers", "shorts", "skirt", "long_skirt", "dress", "leggings")
UPPER_PATTERNS = (
    "plain",
    "stripes_wide",
    "stripes_thin",
    "pinstripes",
    "checks",
    "dots",
    "yoke",
    "band",
    "logo",
    "back_print",
    "halves",
)
LOWER_PATTERNS = ("plain", "plain", "side_stripe", "checks", "pinstripes", "stripes_wide", "cuffs")
HAIR_STYLES = ("short", "bald", "long", "ponytail", "bun", "afro", "headscarf", "fringe")
HATS = ("none", "none", "none", "none", "cap", "beanie", "sunhat")
BAGS = ("none", "none", "backpack", "backpack", "handbag", "shopping", "messenger", "tote")


@dataclass(frozen=True)
class Cloth:
    """A fabric: main color, accent color and a pattern with its period in body heights."""

    pattern: str
    color: Color
    accent: Color
    period: float


@dataclass(frozen=True)
class Appearance:
    """Traits of a person that are the same in all images."""

    height_m: float
    build: float
    skin: Color
    hair_style: str
    hair_color: Color
    beard: bool
    hat: str
    hat_color: Color
    upper: str
    upper_cloth: Cloth
    inner_color: Color
    lower: str
    lower_cloth: Cloth
    sock_color: Color
    shoe_color: Color
    bag: str
    bag_color: Color
    bag_side: int
    scarf: bool

    def structure(self) -> tuple:
        """The traits besides the colors of the clothes."""
        return (
            self.upper,
            self.upper_cloth.pattern,
            self.lower,
            self.lower_cloth.pattern,
            self.bag,
            self.hat,
            self.hair_style,
            self.skin,
        )


def _pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def draw_outfit(rng: np.random.Generator) -> tuple[str, str, str]:
    """Names of the colors that a group of identities shares: upper, its accent, lower."""
    names = tuple(CLOTHES)
    upper = _pick(rng, names)
    accent = _pick(rng, [n for n in names if _contrast(n, upper) > 90])
    lower = _pick(rng, [n for n in LOWER_COLORS if n != upper])
    return upper, accent, lower


def _contrast(a: str, b: str) -> float:
    difference = np.subtract(CLOTHES[a], CLOTHES[b])
    return float(np.abs(difference).sum())


def draw_appearance(rng: np.random.Generator, outfit: tuple[str, str, str]) -> Appearance:
    """A random person in the colors of ``outfit`` (see :func:`draw_outfit`)."""
    upper_color, accent, lower_color = (CLOTHES[name] for name in outfit)
    hair_style = _pick(rng, HAIR_STYLES)
    covered = hair_style == "headscarf"
    feminine = hair_style in ("long", "ponytail", "bun", "headscarf") or rng.random() < 0.2
    lower = _pick(rng, LOWERS) if feminine else _pick(rng, ("trousers", "trousers", "shorts"))
    upper = _pick(rng, UPPERS)
    if lower == "dress":
        upper = _pick(rng, ("tshirt", "shirt", "vest"))
    upper_cloth = Cloth(
        _pick(rng, UPPER_PATTERNS), upper_color, accent, float(rng.uniform(0.055, 0.085))
    )
    lower_accent = accent if _contrast(outfit[1], outfit[2]) > 90 else CLOTHES["white"]
    if outfit[2] == "white":
        lower_accent = CLOTHES["grey"] if accent == CLOTHES["white"] else accent
    lower_cloth = Cloth(
        _pick(rng, LOWER_PATTERNS), lower_color, lower_accent, float(rng.uniform(0.05, 0.08))
    )
    hair_color = _pick(rng, HAIR)
    return Appearance(
        height_m=float(rng.uniform(1.56, 1.92)),
        build=float(rng.uniform(0.86, 1.28)),
        skin=_pick(rng, SKIN),
        hair_style=hair_style,
        hair_color=_pick(rng, tuple(CLOTHES.values())) if covered else hair_color,
        beard=bool(not feminine and rng.random() < 0.35),
        hat="none" if hair_style in ("headscarf", "afro", "bun") else _pick(rng, HATS),
        hat_color=_pick(rng, tuple(CLOTHES.values())),
        upper=upper,
        upper_cloth=upper_cloth,
        inner_color=_pick(rng, (CLOTHES["white"], CLOTHES["grey"], CLOTHES["black"], accent)),
        lower=lower,
        lower_cloth=lower_cloth,
        sock_color=_pick(rng, (CLOTHES["white"], CLOTHES["black"], accent)),
        shoe_color=_pick(rng, ((30, 28, 30), (236, 234, 230), (120, 80, 50), (150, 40, 40))),
        bag=_pick(rng, BAGS),
        bag_color=_pick(rng, tuple(CLOTHES.values())),
        bag_side=int(rng.choice((-1, 1))),
        scarf=bool(upper in ("jacket", "coat") and rng.random() < 0.3),
    )


def draw_stranger(rng: np.random.Generator) -> Appearance:
    """A random person in random colors."""
    return draw_appearance(rng, draw_outfit(rng))


def draw_identities(
    rng: np.random.Generator, count: int, ids_per_outfit: int
) -> tuple[Appearance, ...]:
    """``count`` people, in groups with the same colors and at least three different traits."""
    people: list[Appearance] = []
    while len(people) < count:
        outfit = draw_outfit(rng)
        group: list[Appearance] = []
        while len(group) < min(ids_per_outfit, count - len(people)):
            person = draw_appearance(rng, outfit)
            if all(_differences(person, other) >= 3 for other in group):
                group.append(person)
        people.extend(group)
    return tuple(people)


def _differences(a: Appearance, b: Appearance) -> int:
    return sum(x != y for x, y in zip(a.structure(), b.structure()))
