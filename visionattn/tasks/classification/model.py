"""The classifier of a config, and published classifiers by name."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from visionattn.backbones import list_models
from visionattn.backbones.registry import is_foreign
from visionattn.config.schema import chosen
from visionattn.errors import UserError
from visionattn.models import Classifier, create_model, load_checkpoint
from visionattn.models.weights.download import Report, fetch
from visionattn.models.weights.folders import open_folder, timm_config
from visionattn.models.weights.hub import LOCAL_DIR, model_folder
from visionattn.models.weights.records import find_record, named_weights, split_name
from visionattn.names import typed
from visionattn.tasks.base import PublishedModel, Target
from visionattn.tasks.classification.settings import ClassifierConfig, ClassifyConfig
from visionattn.tasks.images import with_normalisation


def build_classifier(config: ClassifyConfig, num_classes: int) -> Classifier:
    """The model with initial weights.

    Raises:
        UserError: VA-M001, VA-M002.
    """
    settings, head = config.model, config.model.classifier
    record = named_weights(settings.name, settings.weights)
    try:
        model = create_model(
            record.name if record else settings.name,
            num_classes=num_classes,
            in_chans=settings.channels,
            img_size=settings.size,
            drop_rate=settings.drop_rate,
            drop_path_rate=chosen(settings.drop_path_rate, "model.drop_path_rate"),
            classifier=head.name,
            classifier_args={"queries": head.queries or 32, "reduction": head.reduction} if head.name == "ep" else {},
            **settings.args,
        )
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # from torch, about the value of an argument
        what = f"{settings.name} cannot be built with model.args {settings.args}"
        raise UserError("VA-M002", what, why=str(error), fix=f"visionattn models info {settings.name}") from error
    classifier: Classifier = with_normalisation(model, config)
    return classifier


def _open_folder(folder: Path) -> PublishedModel:
    """The classifier of a folder that timm or transformers wrote."""
    found = open_folder(folder)
    if not found.num_classes:
        fix = f"train one: visionattn train --model {found.name} {typed(f'model.weights={folder}')} --data FOLDER"
        raise UserError("VA-M003", f"the model in {folder} has no classifier", fix=fix)
    model: Classifier = create_model(f"{LOCAL_DIR}{folder}")
    load_checkpoint(model, found.weights, allow=("position",)).log(found.weights)  # with its own classifier, or not at all
    size = model.pretrained_cfg["input_size"][1:]
    args = {key: value for key, value in found.args.items() if key in signature(type(model.backbone)).parameters}
    settings = ClassifierConfig(name=found.name, weights="none", in_chans=found.in_chans, img_size=size, args=args)
    target: dict[str, Any] = {"classes": list(found.classes) or [str(number) for number in range(found.num_classes)]}
    if found.descriptions:
        target["display_classes"] = list(found.descriptions)
    return PublishedModel(ClassifyConfig(model=settings), model, target)


def exchange_config(config: ClassifyConfig, target: Target, model: Classifier) -> dict[str, Any]:
    """`config.json` in timm's form."""
    settings, head = config.model, config.model.classifier
    args = dict(settings.args)
    if head.name == "ep":
        args |= {"classifier": "ep", "classifier_args": {"queries": head.queries or 32, "reduction": head.reduction}}
    if "img_size" in signature(type(model.backbone)).parameters:
        args.setdefault("img_size", list(settings.size))
    content = timm_config(model, args, target["classes"], target.get("display_classes"))
    if config.eval.crop_pct is not None:
        content["pretrained_cfg"]["crop_pct"] = config.eval.crop_pct
    return content


def open_published(source: str, report: Report | None) -> PublishedModel | None:
    """The model of weights by name (`swin_tiny.in1k`) or of a folder laid out as on the hub, with the classes they were trained for.

    Raises:
        UserError: VA-M003, weights without a classifier; VA-W001 to VA-W007.
    """
    if (folder := model_folder(source, report)) is not None:
        return _open_folder(folder)
    name = split_name(source)[0]
    if name not in list_models() and not is_foreign(name):
        return None
    record = find_record(source)
    if record.num_classes is None:
        raise UserError(
            "VA-M003",
            f"{record.name} has no classifier",
            fix=f"train one: visionattn train --model {record.model} model.weights={record.tag} --data FOLDER",
        )
    file = fetch(record, report=report)
    model = create_model(record.name, in_chans=record.in_chans)
    load_checkpoint(model, file.path, allow=("position",)).log(file.path)  # with its own classifier, or not at all
    settings = ClassifierConfig(name=record.model, weights=record.tag, in_chans=record.in_chans, img_size=record.input_size[1:])
    config = ClassifyConfig(model=settings)
    if record.label_set is None:
        classes = list(record.class_names) or [str(number) for number in range(record.num_classes)]
        return PublishedModel(config, model, {"classes": classes})
    labels = ImageNetInfo(record.label_set)
    synsets = labels.label_names()  # the names of ImageNet's folders
    names = [f"{labels.index_to_description(number)} ({synset})" for number, synset in enumerate(synsets)]
    return PublishedModel(config, model, {"classes": synsets, "display_classes": names})
