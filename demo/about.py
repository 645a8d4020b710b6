"""What the page says of itself: models, limits, privacy, the programming interface, licences."""

from __future__ import annotations

from lineament import engines
from lineament.demo.config import DemoConfig
from lineament.demo.models import Models
from lineament.landmarks.schema import SCHEMAS

_WHOLE_SETS = ("crop", "flip", " px", "held out")
"""how the names of figures of a whole set end"""


def about(cfg: DemoConfig, models: Models) -> str:
    """Markdown."""
    return "\n\n".join((_models(models), _limits(cfg), _PRIVACY, _INTERFACE, _LICENCES))


def _models(models: Models) -> str:
    cards = []
    for name in models.names:
        card = models[name].card
        height, width = card.input_hw
        points = len(SCHEMAS[card.schema])
        told = f"- **{name}**: {engines.MODELS.get(name, card.name)}. {points} points of {card.schema}, "
        told += f"crops of {width} x {height} px, {card.precision}."
        # a card also has figures by part and attribute
        errors = [f"  - {nme:.2f} % NME on {where}" for where, nme in card.nme.items() if where.endswith(_WHOLE_SETS)]
        cards += [told, *(errors or ["  - its error was not measured"])]
    return (
        "## Models\n\n" + "\n".join(cards) + "\n\n"
        "NME is the mean distance of the points, by the distance of the eyes' outer corners; wflw-mini test is 200 "
        "easy faces of WFLW and wflw-hard-dev test 61 hard ones, neither is its test set. Faces in profile, small, "
        "blurred or covered ones come out worse than the mean. Landmarks say where a face is, not whose it is: this "
        "recognises nobody. Do not decide anything about a person by it."
    )


def _limits(cfg: DemoConfig) -> str:
    limits = cfg.limits
    return (
        "## Limits here\n\n"
        f"- A file: {limits.upload_mb} MB. A picture: {limits.picture_megapixels:g} million pixels.\n"
        f"- A clip: {limits.clip_s:g} s, {limits.clip_frames} frames "
        f"of {limits.clip_megapixels:g} million pixels.\n"
        f"- {limits.visitors} live views at a time; a network camera for {limits.camera_s / 60:g} minutes.\n"
        f"- {limits.waiting} jobs may wait for their turn."
    )


_PRIVACY = """## Privacy

Pictures, clips and frames are worked on by the machine that serves this page, and sent nowhere else. Webcam frames are
never written to a disk. Files that you send, and what is made of them, are deleted when you close the page, at the
latest some minutes after their last use. There are no statistics, no trackers and no scripts from elsewhere."""

_INTERFACE = """## Programming interface

```python
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
found = client.predict(handle_file("photo.jpg"), api_name="/landmarks")
for face in found["faces"]:
    print(face["id"], face["confidence"], face["box_xyxy"], face["points"][96])  # px of the picture
```

Further parameters: `model`, `max_faces` (0, the default, for all), `confidence`, `schema` (`wflw98` or `ibug68`)."""

_LICENCES = """## Licences

Lineament is Apache-2.0. The mesh and iris models are Google's (Apache-2.0); their map to the 98 points was fitted on an
excerpt of WFLW, which is for research: ask its authors before commercial use. The sample is made from a NASA portrait
in the public domain."""
