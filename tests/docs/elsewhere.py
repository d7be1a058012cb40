"""What of the documentation is not run here, each with the reason, and what stands in for a reader's data."""

from __future__ import annotations

DOWNLOAD = "downloads: tests/models/test_download.py"
HUB = "needs the hub: tests/models/test_hub.py and tests/cli/test_push.py run the same against a local server"
GPU = "needs GPUs: tests/engine/test_processes.py starts processes without"
MANY = "starts processes: tests/engine/test_processes.py"

# Page -> the first words of a Python block -> why it is only compiled.
PYTHON = {
    "docs/bags.md": {"import visionattn as va": "trains on bags: tests/jobs/test_bags.py"},
    "docs/export.md": {
        "import json, onnxruntime": "needs an exported file: tests/cli/test_export.py reads one in the same way",
        "import coremltools": "needs coremltools, which no extra brings",
        "import torch\n\nprogram": "needs a compiler and most of a minute",
    },
    "docs/hub.md": {"import visionattn": HUB},
    "docs/segmentation.md": {"from visionattn.models import segmenter_from_file": DOWNLOAD},
    "docs/tutorials/classification.md": {"import visionattn as va": "needs a trained run: tests/cli/test_eval_predict.py"},
}

# Programs that are not ours -> what they are.
PROGRAMS = {
    "ovc": "of OpenVINO; the page says that it was not run",
    "curl": "calls a server",
    "docker": "needs a daemon",
}

# Commands that stop here, though they are right -> why.
NOT_HERE = {
    "--devices 0,1,2,3": GPU,
    "--processes 4": GPU,
    "list --device cuda": GPU,
    "wandb": "needs a package that the tests do not install",
    " PRE": "stands for settings",
    "...": "stands for settings",
}

# Python that is changed before it is run: what is downloaded, and what would train for long.
CHANGES = {
    "pretrained=True": "pretrained=False",
    'pretrained="in22k"': "pretrained=False",
    '{"train.epochs": 3}': '{"train.steps": 2, **TINY}',
    '"model.name": "van_b0"}': '"model.name": "eca_resnet18", **TINY}',
}

# What blocks find before they run: page -> statements; pages of operations find q, k and v. `TINY` are settings that make a run short.
KERNELS = "q = k = v = torch.randn(1, 14, 14, 2, 4)"
BEFORE = {
    "README.md": "images = torch.randn(1, 3, 64, 64)\nva_file()",
    "docs/kernels.md": (
        "from visionattn.kernels import neighborhood_attention\n"
        "q = k = v = torch.randn(1, 8, 8, 2, 4)\n"
        "image, model = torch.randn(1, 3, 32, 32), visionattn.create_model('eca_resnet18').eval()"
    ),
    "docs/segmentation.md": "image = torch.randn(2, 3, 64, 64)",
    "docs/kernels/agent_attention.md": "q = k = v = torch.randn(1, 6, 6, 2, 4)\nagents = torch.randn(1, 2, 2, 2, 4)",
    "docs/kernels/aggregated_attention.md": (
        "q = k = v = torch.randn(1, 6, 6, 2, 4)\nk_pool = v_pool = torch.randn(1, 2, 2, 2, 4)\n"
        "BIASES = {'local_bias': torch.randn(2, 9), 'pool_bias': torch.randn(2, 36, 4), 'local_weight': torch.randn(1, 6, 6, 2, 9)}"
    ),
    "docs/kernels/decayed_attention.md": (
        "from visionattn.kernels import decayed_attention\nq = k = v = torch.randn(1, 6, 6, 2, 4)\ndecay = -torch.rand(2)"
    ),
    "docs/kernels/dilated_depthwise_conv2d.md": "x, weight, bias = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 7, 7), torch.randn(4)",
    "docs/kernels/gates.md": (
        "x, weight = torch.randn(1, 16, 6, 6), torch.randn(1, 1, 3)\n"
        "conv_weight, norm_weight, norm_bias = torch.randn(16, 2, 7), torch.randn(16), torch.randn(16)"
    ),
    "docs/kernels/neighborhood_attention.md": "q = k = v = torch.randn(1, 14, 14, 2, 4)\nbias = torch.randn(2, 13, 13)",
    "docs/kernels/rank_augmented_attention.md": "q = k = v = torch.randn(1, 6, 6, 2, 4)\ncos = sin = torch.randn(6, 6, 2)",
    "docs/kernels/routed_attention.md": "q = k = v = torch.randn(1, 6, 6, 2, 4)\nrh, rw, topk = 3, 3, 2",
}

# Data of the pages that are no folder of classes.
LAYOUTS = {
    "roads": "masks",
    "nuclei": "masks",
    "coco-masks": "masks",
    "kvasir_seg": "masks",
    "hippocampus": "volumes",
    "Task04_Hippocampus": "volumes",
    "slides": "bags",
}
