"""A custom task: predict a number from an image, with samples in train.csv, val.csv and test.csv, columns `path,value`.

visionattn data check houses plugins=[own_task.py] task=regress
visionattn train plugins=[own_task.py] task=regress data.root=houses loss=huber
visionattn eval runs/houses-eca_resnet18/001 --split test
visionattn predict runs/houses-eca_resnet18/001 --source photos/ --out predictions
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure

import visionattn
from visionattn.config import RunConfig, setting
from visionattn.data.images.sets import ImageSet
from visionattn.data.images.settings import AugmentConfig, ImageDataConfig
from visionattn.data.images.transforms import eval_transform, train_transform
from visionattn.data.sources import FileImages
from visionattn.data.splits import Data
from visionattn.errors import UserError
from visionattn.tasks.base import Display, Objective, Panel, Pictures, Prediction, Scores, Task, Writer
from visionattn.tasks.images import LabelledImages, image_files, normalisation, with_normalisation


class RegressConfig(RunConfig):
    task: Literal["regress"] = setting("regress", "Kind of job.")
    data: ImageDataConfig = ImageDataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: Literal["l1", "huber"] = setting("l1", "Absolute error, or Huber's loss, which is quadratic for small errors.")


class StandardisedError(Objective):
    def __init__(self, name, target):
        self.error, self.target = F.l1_loss if name == "l1" else F.huber_loss, target

    def loss(self, outputs, batch):
        values = (batch["label"].to(outputs.device) - self.target["mean"]) / self.target["std"]
        return {"loss": self.error(outputs[:, 0].float(), values.float())}


def in_units(outputs, target):
    return (outputs[:, 0].float() * target["std"] + target["mean"]).tolist()


class RegressMeter:
    def __init__(self, target):
        self.target, self.rows = target, []

    def update(self, predictions, batch):
        values = in_units(predictions, self.target)
        self.rows += zip(batch.indices, batch.ids, batch.cases, batch["label"].tolist(), values, strict=True)

    def state(self):
        return self.rows

    def merge(self, states):
        self.rows += [row for rows in states for row in rows]

    def result(self):
        rows = [dict(zip(("index", "id", "case", "value", "prediction"), row, strict=True)) for row in sorted(self.rows)]
        value, prediction = np.array([[row["value"], row["prediction"]] for row in rows]).T
        r2 = float(1 - ((value - prediction) ** 2).sum() / max(((value - value.mean()) ** 2).sum(), 1e-12))
        return Scores({"mae": float(np.abs(value - prediction).mean()), "r2": r2}, [], rows)


class RegressPictures(Pictures):
    def panels(self, evaluation):
        value, prediction = ([row[name] for row in evaluation.scores.per_case] for name in ("value", "prediction"))
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="value", ylabel="prediction")
        axes.scatter(value, prediction, s=12)
        axes.axline((value[0], value[0]), slope=1, color="grey", lw=1)
        return [Panel("scatter", "Prediction against value", figure)]


@dataclass(frozen=True)
class Number(Prediction):
    path: str
    value: float


class NumberWriter(Writer):
    def __init__(self, target):
        self.target = target

    def write(self, predictions, batch):
        return [Number(*pair) for pair in zip(batch.ids, in_units(predictions, self.target), strict=True)]


class Regression(Task):
    name, config, default_formats = "regress", RegressConfig, ("csv",)
    display = Display(metrics=("mae", "r2"), curves=("mae", "r2"), names={"mae": "MAE", "r2": "R2"}, plain=frozenset({"mae", "r2"}))

    def read_data(self, config):
        test = self.read_split(config, "test", {}) if (Path(config.data.root) / "test.csv").is_file() else None
        train, val = (self.read_split(config, split, {}) for split in ("train", "val"))
        return Data(Path(config.data.root).name, train, val, test, [])

    def read_split(self, config, split, target):
        file = Path(config.data.root) / f"{split}.csv"
        if not file.is_file():
            raise UserError("VA-D002", f"{file} not found", fix="a CSV file with columns path,value")
        with file.open(encoding="utf-8-sig", newline="") as lines:
            ids, values = zip(*((row["path"], float(row["value"])) for row in csv.DictReader(lines)), strict=True)
        paths = tuple(str(file.parent / name) for name in ids)
        return ImageSet(split, FileImages(paths, config.data, config.model.channels), np.array(values), list(ids), None)

    def target(self, config, data):
        return {"mean": float(data.train.labels.mean()), "std": float(data.train.labels.std()) or 1.0}

    def train_dataset(self, config, model, data, report):
        return LabelledImages(data.train, train_transform(config.augment, config.model.size, **normalisation(model)), config.seed)

    def eval_dataset(self, config, model, split):
        return LabelledImages(split, self.preprocessing(config, model))

    def file_dataset(self, config, model, files):
        return image_files(config, files, self.preprocessing(config, model))

    def preprocessing(self, config, model):
        cfg = model.pretrained_cfg
        return eval_transform(config.model.size, **normalisation(model), interpolation=cfg["interpolation"], crop_pct=1.0)

    def build_model(self, config, target):
        settings = config.model
        args = {"in_chans": settings.channels, "drop_path_rate": settings.drop_path_rate, **settings.args}
        return with_normalisation(visionattn.create_model(settings.name, num_classes=1, img_size=settings.size, **args), config)

    def objective(self, config, target, dataset):
        return StandardisedError(config.loss, target)

    def meter(self, config, target):
        return RegressMeter(target)

    def monitor(self, config):
        return "r2"

    def pictures(self, target):
        return RegressPictures()

    def writer(self, config, target, request):
        return NumberWriter(target)


visionattn.register_task(Regression())
