"""Text of the About tab: models, limits, privacy, API, licences."""

from __future__ import annotations

from lineament import engines
from lineament.demo.config import DemoConfig
from lineament.demo.models import Models
from lineament.landmarks.schema import SCHEMAS

_WHOLE_SETS = ("crop", "flip", " px", "held out")
"""endings of the names of figures for a whole data set"""


def about(cfg: DemoConfig, models: Models) -> str:
    """Markdown."""
    return "\n\n".join((_models(models), _limits(cfg), _PRIVACY, _INTERFACE, _LICENCES))


def _models(models: Models) -> str:
    cards = []
    for name in models.names:
        card = models[name].card
        height, width = card.input_hw
        points = len(SCHEMAS[card.schema])
        line = f"- **{name}**: {engines.MODELS.get(name, card.name)}. {points} points of {card.schema}, "
        line += f"crops of {width} x {height} px, {card.precision}."
        # a card also has figures per part and attribute
        errors = [f"  - {nme:.2f} % NME on {where}" for where, nme in card.nme.items() if where.endswith(_WHOLE_SETS)]
        cards += [line, *(errors or ["  - error not measured"])]
    return (
        "## Models\n\n" + "\n".join(cards) + "\n\n"
        "NME is the mean point error divided by the distance between the outer eye corners. wflw-mini test is 200 "
        "easy faces of WFLW and wflw-hard-dev test 61 hard ones; neither is the WFLW test set. Profile, small, "
        "blurred and occluded faces have larger errors than the mean. Landmarks locate a face; they do not identify "
        "the person. Do not use them to make decisions about people."
    )


def _limits(cfg: DemoConfig) -> str:
    limits = cfg.limits
    return (
        "## Limits\n\n"
        f"- File: {limits.upload_mb} MB. Picture: {limits.picture_megapixels:g} million pixels.\n"
        f"- Clip: {limits.clip_s:g} s, {limits.clip_frames} frames of {limits.clip_megapixels:g} million pixels.\n"
        f"- {limits.visitors} live views at a time; {limits.camera_s / 60:g} minutes per network camera.\n"
        f"- {limits.waiting} queued jobs."
    )


_PRIVACY = """## Privacy

Pictures, clips and frames are processed on the machine that serves this page and are not sent anywhere else. Webcam
frames are never written to disk. Snapshots and recordings are made in your browser. Your uploads and results are
deleted when you close the page, or some minutes after their last use. There is no usage tracking, and the page loads no
third-party scripts."""

_INTERFACE = """## API

```python
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
found = client.predict(handle_file("photo.jpg"), api_name="/landmarks")
for face in found["faces"]:
    print(face["id"], face["confidence"], face["box_xyxy"], face["points"][96])  # px of the picture
```

Other parameters: `model`, `max_faces` (0, the default, means all), `confidence`, `schema` (`wflw98` or `ibug68`)."""

_LICENCES = """## Licences

Lineament is Apache-2.0. The mesh and iris models are Google's (Apache-2.0); their mapping to the 98 points was fitted
on an excerpt of WFLW, which is licensed for research: ask its authors before commercial use. The sample is made from a
public domain NASA portrait."""
