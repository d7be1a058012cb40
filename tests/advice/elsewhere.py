"""Commands and settings in messages that have no case here, by file, each with the reason."""

from __future__ import annotations

FAULT = "names the mistake"
FACT = "states what the command does"
IN_A_CARD = "in the card of a model that is shared: tests/cli/test_push.py"
LAUNCHER = "starts several processes: tests/engine/test_processes.py"
PASSED_ON = "is passed on to the processes that are started, not printed"
SERVER = "starts a server, which does not end: tests/cli/test_serve.py"
STANDS_FOR = "what an option stands for, not printed"
HARDWARE = "depends on the run or on hardware; the keys are checked below"

NOT_FOLLOWED: dict[str, dict[str, str]] = {
    "backbones/from_timm.py": {"eval.mode=slide": "as in config/schema.py, of a network that takes images of 224 px only"},
    "backbones/overlock.py": {"model.args={deploy": "of a merged file: tests/backbones/test_overlock.py"},
    "cli/config.py": {"--task": FAULT},
    "cli/data.py": {"--palette": FAULT},
    "cli/features.py": {"--bags": FAULT, "--split": FAULT},
    "cli/kernels.py": {"--device": FAULT, "VISIONATTN_BACKEND=": "is read when torch is loaded: tests/kernels/test_dispatch.py"},
    "cli/launch.py": {"accelerate launch": LAUNCHER, "torchrun": LAUNCHER},
    "cli/main.py": {
        "visionattn -v ...  to see where": "of a fault in the package: tests/cli/test_main.py",
        "visionattn doctor": "takes long: tests/cli/test_kernels.py",
        "visionattn kernels list": "of a variable that is read when torch is loaded: tests/cli/test_models.py, tests/cli/test_kernels.py",
    },
    "cli/options.py": {"task=": "is not printed"},
    "cli/run.py": {
        "--devices": PASSED_ON,
        "--dry-run": PASSED_ON,
        "--folds": FAULT,
        "--json": PASSED_ON,
        "--processes": PASSED_ON,
        "--strict": PASSED_ON,
        "data.fold=[1": STANDS_FOR,
        "data.val_fraction=null": STANDS_FOR,
        "train.batch_size=": STANDS_FOR,
    },
    "cli/unknown.py": {"--host": SERVER, "--port": SERVER},
    "cli/weights.py": {
        "--classes": FAULT,
        "visionattn weights download": "needs a network: tests/models/test_download.py, tests/cli/test_weights.py",
    },
    "config/plugins.py": {"visionattn -v ... shows where": "of a fault in a user's file: tests/cli/test_main.py"},
    "config/schema.py": {"train.batch_size=auto": FAULT},
    "data/bags/check.py": {"data.check=none": FACT},
    "data/bags/sets.py": {
        "--split": "as in data/images/labels.py",
        "data.val_fraction=0.2": "as in data/images/layouts.py",
        "visionattn train --folds": "folds: tests/cli/test_folds.py",
        "visionattn train --val-fraction 0.2 ...": "as in data/images/layouts.py",
    },
    "data/check.py": {"data.check=": FACT, "data.on_error=stop": FACT},
    "data/images/hub.py": {
        "hf download": "needs a network",
        "--repo-type": "needs a network",
        "data.train=default/train": "needs a network: tests/data/images/test_hub.py reads what it leads to",
        "data.format=hf": FAULT,
    },
    "data/images/layouts.py": {
        "data.cache=ram": FAULT,
        "data.format=digits": "the same text as in data/root.py",
        "data.test=NAME": "as data.val=NAME",
    },
    "data/loading.py": {
        "--shm-size": "of a container: tests/data/test_loading.py makes the fault",
        "data.workers=0": "of a lack of shared memory: tests/data/test_loading.py makes the fault",
    },
    "data/masks/convert.py": {"visionattn data masks convert": "a part of what data/masks/check.py suggests"},
    "data/masks/layouts.py": {
        "data.classes=[...]": "as in data/masks/nnunet.py",
        "data.val_fraction=0.2": "as in data/images/layouts.py",
    },
    "data/masks/sets.py": {"--split": "as in data/images/labels.py"},
    "data/volumes/layouts.py": {
        "--folds": "folds: tests/cli/test_folds.py",
        "data.images=FOLDER": "names folders of the user's: tests/data/volumes/test_sets.py",
        "data.images=FOLDER/{split}": "names folders of the user's: tests/data/volumes/test_sets.py",
        "data.labels=FOLDER": "names folders of the user's: tests/data/volumes/test_sets.py",
        "data.labels=FOLDER/{split}": "names folders of the user's: tests/data/volumes/test_sets.py",
        "data.val_fraction=0.2": "as in data/volumes/sets.py",
    },
    "data/volumes/sets.py": {"--split": "as in data/images/labels.py", "data.train=NAME": "as in data/images/layouts.py"},
    "data/splits.py": {"--folds": "folds: tests/cli/test_folds.py", "data.val_fraction=": FAULT},
    "engine/devices.py": {
        "--nproc_per_node": "several processes: tests/engine/test_processes.py starts them",
        "--multi_gpu": "several GPUs",
        "--num_processes": "several GPUs",
        "torchrun": "several processes: tests/engine/test_processes.py starts them",
        "accelerate launch": "several GPUs",
        "train.device=cuda": "several GPUs",
    },
    "engine/diagnosis.py": {
        "eval.mode=slide": HARDWARE,
        "optim.clip_grad=1": HARDWARE,
        "train.device=cpu": HARDWARE,
        "train.precision=bf16": HARDWARE,
        "model.grad_checkpointing=true": HARDWARE,
        "data.workers=0": HARDWARE,
    },
    "engine/optim.py": {
        "train.shard=false": "several processes: tests/engine/test_optim.py",
    },
    "engine/progress.py": {"train.max_time=": FACT, "train.patience=": FACT},
    "engine/trainer.py": {
        "train.max_time=": FACT,
        "data.on_error=skip": "of files that vanish while a run trains: tests/cli/test_resume.py",
        "visionattn train --resume": "of files that vanish while a run trains: tests/cli/test_resume.py",
    },
    "files.py": {"visionattn train --resume RUN": "of a full disk: tests/faults/test_faults.py"},
    "jobs/check.py": {"--strict": FACT},
    "jobs/choices.py": {"data.": FACT},
    "jobs/evaluate.py": {"--split": "folds: tests/cli/test_folds.py"},
    "jobs/export.py": {"--quantize": "takes long: tests/cli/test_export.py"},
    "jobs/folds.py": {
        "visionattn train --folds 5 --processes": "of a launch by torchrun: tests/cli/test_folds.py makes the fault, and trains so",
        "visionattn train --folds has made: runs/<name>/<nnn>": FACT,
    },
    "jobs/predict.py": {"--save": FAULT, "data.channel_files=false": "of a segmentation run: tests/tasks/test_channels.py"},
    "jobs/quantize.py": {"--quantize": FAULT},
    "jobs/serve.py": {"--host": SERVER, "--port": SERVER},
    "jobs/train.py": {
        "train.accum=": FACT,
        "train.batch_size=": FACT,
        "tensorboard --logdir": "a program of its own",
    },
    "models/classifier.py": {"num_classes=0": FACT},
    "models/segmenter_factory.py": {
        "backbone=": "in Python: tests/models/test_segmenter_records.py",
        "num_classes=2": "in Python, followed in test_advice.py",
    },
    "models/weights/download.py": {
        "model.weights=FILE": "of weights of timm, needs a network: tests/backbones/test_from_timm.py",
        "VISIONATTN_CACHE=": "of a full disk: followed in another case, of files.py",
        "pretrained=False": "in Python: tests/models/test_weights.py",
        "visionattn weights download": "needs a network: tests/models/test_download.py",
    },
    "models/weights/importing.py": {
        "--model": "needs large files: tests/models/test_importing.py",
        "model.weights=": "needs large files: tests/models/test_segmenter_records.py",
        "visionattn weights import": "needs large files: tests/models/test_importing.py",
    },
    "models/weights/records.py": {
        "checkpoint_path=FILE": "in Python: tests/models/test_weights.py",
        "model.weights=FILE": "followed in another case, of runs/checkpoint.py",
    },
    "names.py": {"plugins=": "of a run with code of one's own: tests/examples/test_examples.py, and a case of jobs/train.py"},
    "report/verdicts.py": {
        "visionattn train --resume RUN": "of a run that did not end: tests/cli/test_resume.py",
        "visionattn train --resume RUN train.epochs=": "of a run that ended early: tests/cli/test_resume.py",
    },
    "report/card.py": {
        "--source": IN_A_CARD,
        "--weights": IN_A_CARD,
        "pretrained=True": IN_A_CARD,
        "visionattn predict": IN_A_CARD,
        "visionattn train --data FOLDER --model": IN_A_CARD,
    },
    "report/tables.py": {"--json": FACT},
    "runs/calibration.py": {"eval.": FACT},
    "runs/folder.py": {
        "output.dir=FOLDER": "of a file system without locks; followed in another case, of cli/main.py",
        "visionattn train has made: runs/<name>/<nnn>": FACT,
    },
    "runs/state.py": {
        "--processes": "several processes: tests/cli/test_launch.py",
        "train.process_timeout=SECONDS": "several processes: tests/engine/test_processes.py",
        "visionattn train --resume": "of a run that was stopped: tests/cli/test_resume.py, tests/faults/test_faults.py",
    },
    "tasks/bags/output.py": {"eval.thumbnails=FOLDER": FAULT},
    "tasks/base.py": {
        "--calibrate": FAULT,
        "data.sampler=shuffled": "of a task of one's own",
        "visionattn predict RUN --source FILE_OR_FOLDER": "of volumes and bags: tests/cli/test_serve.py",
    },
    "tasks/class_scores.py": {"visionattn eval RUN --calibrate": "in the report: tests/cli/test_calibrate.py"},
    "tasks/images.py": {"--class": FAULT},
    "tasks/segmentation/explain.py": {
        "--class": FAULT,
        "--query": "of a segmentation run: tests/tasks/segmentation/test_explain.py",
    },
    "tasks/classification/__init__.py": {"data.format=digits": "the same text as in data/root.py"},
    "tasks/segmentation/__init__.py": {
        "eval.mode=slide": "of a segmentation run: tests/cli/test_export.py",
        "eval.tile=[": "of a segmentation run: tests/cli/test_export.py",
    },
    "tasks/segmentation/output.py": {
        "--out": "two calls of predict, each with its own: tests/tasks/segmentation/test_output.py makes the fault",
        "--source": "two calls of predict, each with its own: tests/tasks/segmentation/test_output.py makes the fault",
    },
    "tasks/volumes/output.py": {
        "--out": "two calls of predict, as in tasks/segmentation/output.py",
        "--source": "two calls of predict, as in tasks/segmentation/output.py",
    },
}
