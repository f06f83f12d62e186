"""The pictures of docs/transformer.md; docs/draw_lesson.py trains what they show."""

from io import BytesIO
from pathlib import Path

from matplotlib import pyplot, rc_context
from PIL import Image

from lesson import attention, layers, training
from lesson.material import DOTS, STYLE, Material

__all__ = ["PICTURES", "Material", "draw_all"]

COLOURS = 128
PICTURES = {picture.__name__: picture for picture in (
    attention.tokens, attention.positions, attention.scores, attention.heads, attention.mask,
    attention.reading, layers.feedforward, layers.residual, layers.norms, layers.lens,
    training.pretraining, training.finetuning, training.generation)}


def draw_all(material: Material, folder: Path) -> None:
    """Every picture into a folder, by its name, in so few colours that it is a small file."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        for name, picture in PICTURES.items():
            figure, drawn = picture(material), BytesIO()
            figure.savefig(drawn, dpi=DOTS, facecolor="white")
            pyplot.close(figure)
            few = Image.open(drawn).convert("RGB").quantize(COLOURS, kmeans=1)
            few.save(folder / f"{name}.png", optimize=True)
