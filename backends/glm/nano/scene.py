"""What a picture shows: the vocabulary of shapes, colours and places, and the Scene value."""

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star")

RGB = tuple[int, int, int]

# Several tints a name: Pillow's own named colour first (what a stranger types), then common
# palette tints. Tints between two names (dark red, gold, magenta, brown, cyan) are left out.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (214, 39, 40), (229, 57, 53), (200, 20, 20)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (50, 205, 50), (76, 175, 80)),
    "blue": ((0, 0, 255), (30, 100, 255), (65, 105, 225), (0, 0, 139), (31, 110, 190)),
    "yellow": ((255, 255, 0), (255, 235, 0), (250, 225, 40), (255, 240, 70)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (245, 130, 32)),
    "purple": ((128, 0, 128), (148, 0, 211), (120, 40, 170), (142, 36, 170)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 190), (244, 143, 177)),
    "black": ((0, 0, 0), (18, 18, 18)),
    "white": ((255, 255, 255), (250, 250, 250)),
    "gray": ((128, 128, 128), (105, 105, 105), (150, 150, 150)),
}
PASTELS: dict[str, RGB] = {
    "light blue": (200, 222, 255),
    "light green": (204, 240, 204),
    "light yellow": (255, 250, 200),
    "light pink": (255, 220, 228),
}
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. x, y: centre as a fraction of width and height; size: of the shorter side."""

    shape: str
    colour: str
    x: float
    y: float
    size: float

    @property
    def place(self) -> str:
        """The cell of a 3x3 grid that holds the centre."""
        return PLACES[self.row * 3 + min(2, int(self.x * 3))]

    @property
    def row(self) -> int:
        return min(2, int(self.y * 3))


@dataclass(frozen=True, slots=True)
class Scene:
    """True contents of a drawn picture; `things` are in reading order."""

    background: str
    things: tuple[Thing, ...]


def reading_order(things: list[Thing]) -> tuple[Thing, ...]:
    """Row of the 3x3 grid first, then left to right."""
    return tuple(sorted(things, key=lambda thing: (thing.row, thing.x)))
