"""What an unknown option probably means: an option or a key of ours, with the command as it should be."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from visionattn.errors import UserError

# Options that are short for a key, where a command has them.
SHORTCUTS = {
    "data.root": "--data",
    "data.val_fraction": "--val-fraction",
    "model.name": "--model",
    "model.weights": "--weights",
    "optim.lr": "--lr",
    "train.batch_size": "--batch-size",
    "train.device": "--device",
    "train.epochs": "--epochs",
}

_OPTION_KEYS = {option.lstrip("-"): key for key, option in SHORTCUTS.items()}

# Keys by what other programs call them; a value after `=` is meant where the option has none.
_KEYS = {
    "aa": "augment.rand_augment",
    "accumulate": "train.accum",
    "accumulation-steps": "train.accum",
    "amp": "train.precision=auto",
    "arch": "model.name",
    "auto-augment": "augment.rand_augment",
    "b": "train.batch_size",
    "backbone": "model.name",
    "base-lr": "optim.lr",
    "batch": "train.batch_size",
    "bf16": "train.precision=bf16",
    "bs": "train.batch_size",
    "checkpoint": "model.weights",
    "clip-norm": "optim.clip_grad",
    "color-jitter": "augment.color_jitter",
    "cos-lr": "schedule.name=cosine",
    "cpu": "train.device=cpu",
    "crop-size": "model.img_size",
    "d": "data.root",
    "data-dir": "data.root",
    "data-path": "data.root",
    "dataset": "data.root",
    "decay": "optim.weight_decay",
    "drop-path": "model.drop_path_rate",
    "e": "train.epochs",
    "exp-name": "output.name",
    "experiment": "output.name",
    "fp16": "train.precision=fp16",
    "grad-accum": "train.accum",
    "grad-accum-steps": "train.accum",
    "gradient-accumulation-steps": "train.accum",
    "gradient-checkpointing": "model.grad_checkpointing=true",
    "half": "train.precision=auto",
    "image-size": "model.img_size",
    "img": "model.img_size",
    "imgsz": "model.img_size",
    "input-size": "model.img_size",
    "iterations": "train.steps",
    "j": "data.workers",
    "learning-rate": "optim.lr",
    "log-wandb": "log.to=wandb",
    "log-with": "log.to",
    "lr-scheduler": "schedule.name",
    "lr0": "optim.lr",
    "max-epochs": "train.epochs",
    "max-iters": "train.steps",
    "max-steps": "train.steps",
    "min-lr": "schedule.min_lr",
    "mixed-precision": "train.precision",
    "mlflow": "log.to=mlflow",
    "model-ema": "train.ema=0.999",
    "model-ema-decay": "train.ema",
    "n-epochs": "train.epochs",
    "name": "output.name",
    "num-epochs": "train.epochs",
    "num-workers": "data.workers",
    "opt": "optim.name",
    "optimizer": "optim.name",
    "out": "output.dir",
    "output": "output.dir",
    "output-dir": "output.dir",
    "precision": "train.precision",
    "pretrained": "model.weights=pretrained",
    "project": "output.dir",
    "random-state": "seed",
    "report-to": "log.to",
    "reprob": "augment.random_erasing",
    "resolution": "model.img_size",
    "root": "data.root",
    "save-dir": "output.dir",
    "save-freq": "train.save_every",
    "save-period": "train.save_every",
    "sched": "schedule.name",
    "scheduler": "schedule.name",
    "size": "model.img_size",
    "smoothing": "loss.label_smoothing",
    "train-batch-size": "train.batch_size",
    "val-split": "data.val_fraction",
    "validation-split": "data.val_fraction",
    "wandb": "log.to=wandb",
    "wd": "optim.weight_decay",
    "work-dir": "output.dir",
}

# Options and positional arguments ("") of a command by what other programs call them.
_PROCESSES = dict.fromkeys(("nproc", "nproc-per-node", "num-gpus", "num-processes", "world-size"), "--processes")
_DEVICES = dict.fromkeys(("device-ids", "gpu", "gpu-id", "gpu-ids", "gpus"), "--devices")
_SAMPLES = dict.fromkeys(("b", "batch", "bs"), "--batch-size")
_MODELS = dict.fromkeys(("checkpoint", "ckpt", "model", "run", "weights"), "")
_OWN: dict[str, dict[str, str]] = {
    "train": {**_PROCESSES, **_DEVICES, "k-fold": "--folds", "kfold": "--folds", "n-folds": "--folds", "cv": "--folds"},
    "eval": {**_SAMPLES, **_MODELS, "source": "--data", "input": "--data"},
    "predict": {
        **_SAMPLES,
        **_MODELS,
        **dict.fromkeys(("data", "dataset", "images", "image", "img", "input", "path"), "--source"),
        "top-k": "--topk",
        **dict.fromkeys(("conf", "confidence", "confidence-threshold", "thres", "thresh", "thresholds"), "--threshold"),
    },
    "explain": {
        **_MODELS,
        **dict.fromkeys(("img", "input", "path", "source"), "--image"),
        **dict.fromkeys(("class-name", "target-class"), "--class"),
        **dict.fromkeys(("point", "xy"), "--query"),
        "stage": "--layer",
    },
    "export": _MODELS,
    "serve": {
        **_MODELS,
        **dict.fromkeys(("address", "bind", "ip", "server-name"), "--host"),
        **dict.fromkeys(("p", "server-port"), "--port"),
    },
    "bench": {
        **dict.fromkeys(("b", "batch-size", "bs"), "--batch"),
        **dict.fromkeys(("image-size", "img", "img-size", "imgsz", "input-size", "resolution"), "--size"),
        **dict.fromkeys(("amp", "dtype"), "--precision"),
        **dict.fromkeys(("iterations", "repeat", "repeats", "runs"), "--rounds"),
        **dict.fromkeys(("model", "models"), ""),
    },
    "features": {**_SAMPLES, **_MODELS, **dict.fromkeys(("data", "source", "images", "input"), "")},
    "neighbors": {
        **_SAMPLES,
        **_MODELS,
        **dict.fromkeys(("image", "images", "query", "source"), ""),
        **dict.fromkeys(("n-neighbors", "topk", "top-k"), "--k"),
    },
    "data check": {"data": "", "root": "", "source": ""},
    "data preview": {"data": "", "root": "", "source": ""},
}


# `--out` of every command that has it, by what other programs call it.
_OUT = ("o", "output", "output-dir", "output-file", "project", "save-dir", "work-dir")

# What the data decide on.
_FOLLOWS = {"nc", "num-class", "num-classes", "n-classes"}

_ALIKE = 0.75  # how like a known name a misspelt one is


class _Meaning(NamedTuple):
    """What an option means: another option ("": an argument without a name), or a key, with a value if it has none of its own."""

    option: str | None
    key: str
    value: str = ""


def unknown_option(error: Any, words: Sequence[str]) -> UserError:
    """The message for an option that a command does not have.

    Args:
        error: click's `NoSuchOption`.
        words: everything that was typed after `visionattn`.
    """
    command, context = error.ctx.command, error.ctx
    if hasattr(command, "commands"):
        return _of_a_group(context, error.option_name, list(words))
    path = context.command_path.partition(" ")[2]
    what, changed = _repaired(command, path, error.option_name, list(words))
    if changed is None:
        keys = "\nvisionattn config show" * _takes_keys(command)
        return UserError("VA-C001", what, fix=f"visionattn {path} --help{keys}")
    while (other := _next_unknown(command, context, changed[len(path.split()) :])) is not None:  # all of them, so that the command works
        _, again = _repaired(command, path, other, changed)
        if again is None:
            break
        changed = again
    return UserError("VA-C001", what, fix=_typed(changed))


def _next_unknown(command: Any, context: Any, words: list[str]) -> str | None:
    """The first option of a command that it does not have."""
    try:
        command.make_parser(context).parse_args(args=list(words))
    except Exception as error:  # click's, of which typer may have a copy of its own
        return getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None
    return None


def _repaired(command: Any, path: str, option: str, words: list[str]) -> tuple[str, list[str] | None]:
    """What an unknown option is, and the command with what was meant; None if nobody knows."""
    place = next((index for index, word in enumerate(words) if _is_option(word, option)), None)
    if place is None:  # the second letter of `-hb`
        return f"visionattn {path} has no option {option}", None
    name, value = _parted(words[place], option)
    before, after = words[:place], words[place + 1 :]
    bare, what = name.lstrip("-").replace("_", "-").lower(), f"visionattn {path} has no option {name}"
    if bare in _FOLLOWS and _takes_keys(command):
        return f"{what}: the data decide on the classes", [*before, *after[value is None and bool(after) and after[0].isdigit() :]]
    meaning, near = _meaning(command, path, bare), ""
    if meaning is None:
        near = next(iter(get_close_matches(bare, _names(command, path), 1, _ALIKE)), "")
        meaning = _meaning(command, path, near) if near else None
        if meaning is None:
            return what, None
    takes_value = _takes_value(command, meaning)
    if value is None and takes_value and (not meaning.value or (after and _belongs(after[0]))):
        value = after.pop(0) if after and not after[0].startswith("-") else "VALUE"
        while meaning.key == "model.img_size" and value.isdigit() and after and after[0].isdigit():
            value = f"[{value},{after.pop(0)}]"
    value = meaning.value if value is None else value
    if bare == "gpus" and value.isdigit() and int(value):  # a number of them; --devices 2 is the third
        meaning = _Meaning("--processes", "")
    if meaning.option is None and (fixed := _fixed(path, meaning.key)):
        return f"{what}: {meaning.key} is fixed by the trained model; what can change: {fixed}", [*before, *after]
    if meaning.option is None:
        instead = [f"{meaning.key}={value.lower() if meaning.key == 'optim.name' else value}"]
    else:
        instead = [part for part in (meaning.option, value if takes_value else "") if part]
    called = ", or ".join(filter(None, [meaning.option, meaning.key and f"the key {meaning.key}"])) or "an argument without a name"
    return f"{what}: {'did you mean ' * bool(near)}{'it is ' * (not near)}{called}{'?' * bool(near)}", [*before, *instead, *after]


def _meaning(command: Any, path: str, bare: str) -> _Meaning | None:
    """What a name means to a command."""
    options = _options(command)
    if f"--{bare}" in options:
        return _Meaning(f"--{bare}", "")
    if bare in _OWN.get(path, {}):
        return _Meaning(_OWN[path][bare], "")
    if bare in _OUT and "--out" in options:
        return _Meaning("--out", "")
    if not _takes_keys(command):
        return None
    key, _, value = _key_of(bare).partition("=")
    short = SHORTCUTS.get(key)
    return _Meaning(short if short in options else None, key, value) if key else None


def _names(command: Any, path: str) -> list[str]:
    """Everything that `_meaning` knows."""
    options = _options(command)
    names = [*(option.lstrip("-") for option in options), *_OWN.get(path, ()), *(_OUT if "--out" in options else ())]
    if _takes_keys(command):
        names += [*_KEYS, *_OPTION_KEYS, *(key.rpartition(".")[2].replace("_", "-") for key in config_keys())]
    return names


def _options(command: Any) -> list[str]:
    return [option for param in command.params for option in param.opts if option.startswith("--")]


def _takes_value(command: Any, meaning: _Meaning) -> bool:
    flags = {option for param in command.params if getattr(param, "is_flag", False) for option in param.opts}
    return meaning.option not in flags


def _is_option(word: str, option: str) -> bool:
    """Whether a word is an option, perhaps with its value; of `-b32` and `-lr` click reports the first letter."""
    return word.partition("=")[0] == option or (len(option) == 2 and word.startswith(option) and not word.startswith("--"))


def _parted(word: str, option: str) -> tuple[str, str | None]:
    """An option as it was meant, and its value if that is in the same word."""
    name, sign, value = word.partition("=")
    if len(option) == 2 and not sign and len(word) > 2 and not word[1:].isalpha():
        return option, word[2:]
    return name, value if sign else None


def _belongs(word: str) -> bool:
    """Whether a word can be the value of an option that may have none."""
    return not word.startswith("-") and "=" not in word


def _takes_keys(command: Any) -> bool:
    return any("KEY=VALUE" in (param.metavar or "") for param in command.params)


def _key_of(bare: str) -> str:
    """The key that an option means: its own name, what others call it, or the last part of one key, before those deeper below."""
    keys = config_keys()
    if bare.replace("-", "_") in keys:
        return bare.replace("-", "_")
    if bare in _KEYS or bare in _OPTION_KEYS:
        return _KEYS.get(bare) or _OPTION_KEYS[bare]
    found = sorted((key for key in keys if key.rpartition(".")[2] == bare.replace("-", "_")), key=_depth)
    return found[0] if found and (len(found) == 1 or _depth(found[0]) < _depth(found[1])) else ""


def _depth(key: str) -> int:
    return key.count(".")


def config_keys() -> list[str]:
    """The keys with a value, of all tasks."""
    from visionattn.config.messages import all_keys
    from visionattn.tasks import TASKS

    every = dict.fromkeys(key for task in TASKS.values() for key in all_keys(task.config))
    return [key for key in every if not any(other.startswith(f"{key}.") for other in every)]


def _fixed(path: str, key: str) -> str:
    """What can change on a trained model, if the command uses one and the key cannot."""
    if path not in ("eval", "predict", "explain", "export", "features", "neighbors", "serve"):
        return ""
    from visionattn.tasks import CHANGEABLE

    return "" if any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE) else ", ".join(CHANGEABLE)


def _of_a_group(context: Any, name: str, words: list[str]) -> UserError:
    """An option before the command that has it, or of no command."""
    path = context.command_path.partition(" ")[2]
    commands: Mapping[str, Any] = context.command.commands
    place = next((index for index, word in enumerate(words) if _is_option(word, name)), 0)
    later = next((index for index, word in enumerate(words) if index > place and word in commands), None)
    if later is not None and name in _options(commands[words[later]]):
        fix = _typed([*words[:place], words[later], *words[place:later], *words[later + 1 :]])
        return UserError("VA-C001", f"options follow the command: {name} comes after {words[later]}", fix=fix)
    owner = next((each for each, inner in commands.items() if name in _options(inner)), None) if later is None else None
    fix = _typed([*words[:place], owner, *words[place:]]) if owner else _typed([*path.split(), "--help"])
    return UserError("VA-C001", f"visionattn {path}".rstrip() + f" has no option {name}", fix=fix)


def _typed(words: Sequence[str]) -> str:
    return f"visionattn {shlex.join(words)}"
