"""Settings of a small run that segments."""

from __future__ import annotations

CLASSES = ["background", "polyp"]
TINY = (
    "task=segment",
    "data.classes=[background,polyp]",
    "data.workers=0",
    "model.name=eca_resnet18",
    "model.args={width: 8}",
    "model.img_size=32",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.steps=4",
    "log.to=[]",
    "log.every_steps=1",
)
