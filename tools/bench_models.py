"""Compare inference and training step of our models with timm's, or with the operations as the authors write them, with equal weights."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping
from functools import partial
from unittest.mock import patch

import opponents
import timm
import torch
import torch.nn.functional as F
from measure import Row, add_common, clock, csv_path, device_of, finish, paired, summary
from torch import Tensor, nn

import visionattn as va
from visionattn.backbones.litv2 import HiLoAttention
from visionattn.kernels import strided
from visionattn.kernels.dispatch import use_backend
from visionattn.models.speed import interleave, machine, milliseconds

THEIRS = {"swin_tiny": "swin_tiny_patch4_window7_224", "swin_small": "swin_small_patch4_window7_224", "davit_tiny": "davit_tiny"}
# For these, the definitions of our operations are written as in the authors' public code.
UPSTREAM = {
    "dinat_tiny": "gather",
    "biformer_tiny": "gather",
    "van_b1": "native convolution",
    "transnext_tiny": "unfold",
    "overlock_xtiny": "gather",
    "crossformer_tiny": "pad and permute",
    **dict.fromkeys(
        ("rmt_tiny", "ravlt_tiny", "agent_pvt_tiny", "inline_pvt_tiny", "litv2_small", "sgformer_small"), "step by step"
    ),  # CAS-ViT and SG-Former's reallocation of tokens have no operation of ours
}
MODELS = [name for name in (*THEIRS, *UPSTREAM) if name != "swin_small"]  # by default
GOAL = 0.97  # unless another is given
TRAINING_GOALS = {
    "cpu": {"dinat_tiny": 2.0, "biformer_tiny": 2.0, "van_b1": 1.2, "transnext_tiny": 1.5},
    "cuda": {"swin_tiny": 1.05},
}
LOGITS_TOLERANCE = 1e-4
TRAINING_TOLERANCE = 1e-3  # AdamW's first step uses only the gradient's sign, which amplifies rounding


class Upstream(nn.Module):
    """Run our model with the definitions of its operations, or with the authors' form where the definition takes further steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            if isinstance(module, HiLoAttention) and module.window_size == 2:
                module.forward = partial(opponents.official_hilo, module)  # type: ignore[method-assign]

    def forward(self, image: Tensor) -> Tensor:
        with use_backend("reference"), patch.object(strided.reference, "strided_attention", square_groups):
            return self.model(image)


def square_groups(
    q: Tensor, k: Tensor, v: Tensor, *, group_size: tuple[int, int], interval: tuple[int, int], bias: Tensor, scale: float
) -> Tensor:
    """CrossFormer's form, which masks padding only where there is any."""
    return opponents.permuted_groups(q, k, v, bias, group_size[0], interval[0])


def build_pair(name: str, device: torch.device) -> tuple[nn.Module, nn.Module, Mapping[str, Tensor]]:
    """Build ours and theirs; return both with their weights in their layout."""
    torch.manual_seed(0)
    theirs: nn.Module
    if name in UPSTREAM:
        theirs = Upstream(va.create_model(name)).to(device)
    else:
        theirs = timm.create_model(THEIRS[name], pretrained=False, drop_path_rate=0.0).to(device)
    own = va.create_model(name).to(device)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    reload(own, theirs, state)
    return own, theirs, state


def reload(own: nn.Module, theirs: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Reset both to the same weights."""
    theirs.load_state_dict(state)
    if isinstance(theirs, Upstream):
        own.load_state_dict(theirs.model.state_dict())
    else:
        va.load_checkpoint(own, state, allow=())


def inference(model: nn.Module, image: Tensor, bf16: bool) -> Tensor:
    """Return the logits."""
    with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        return model(image)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor, bf16: bool) -> Tensor:
    """Run forward, backward and update; return the loss before the update."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        logits = model(image)
    loss = F.cross_entropy(logits.float(), label)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)


def disagreement(own: nn.Module, theirs: nn.Module, state: Mapping[str, Tensor], image: Tensor, label: Tensor) -> list[str]:
    """Report float32 differences between both: logits, or the losses of two training steps; changes the weights of both."""
    problems = []
    a, b = (inference(model.eval(), image, False) for model in (own, theirs))
    error = float((a - b).abs().max() / b.abs().max())
    print(f"  logits: largest difference {error:.1e} of the largest logit")
    if not error <= LOGITS_TOLERANCE:
        problems.append(f"logits differ by {error:.1e}, at most {LOGITS_TOLERANCE:.0e} is allowed")
    losses = []
    for model in (own.train(), theirs.train()):
        optimizer = new_optimizer(model)
        losses.append([float(train_step(model, optimizer, image, label, False)) for _ in range(2)])
    print("  losses of two training steps: " + ", ".join(f"{x:.6f} / {y:.6f}" for x, y in zip(*losses, strict=True)))
    if not all(abs(x - y) <= TRAINING_TOLERANCE * abs(y) for x, y in zip(*losses, strict=True)):
        problems.append(f"training diverges: losses {losses[0]} and {losses[1]}")
    if losses[0][0] == losses[0][1]:
        problems.append("a training step changed nothing")
    return problems


def measure(own: nn.Module, theirs: nn.Module, mode: str, image: Tensor, label: Tensor, bf16: bool, rounds: int, repeats: int) -> Row:
    """Measure medians, spread and ratios of one case, without the first calls of both sides."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, model in (("ours", own), ("theirs", theirs)):
        model.train(mode == "train")
        if mode == "train":
            calls[name] = partial(train_step, model, new_optimizer(model), image, label, bf16)
        else:
            calls[name] = partial(inference, model, image, bf16)
    for call in calls.values():
        milliseconds(call, image.device, min(repeats, 3))
    values = interleave({name: partial(milliseconds, call, image.device, repeats) for name, call in calls.items()}, rounds)
    ratios = paired(values["theirs"], values["ours"])
    return {**summary("ours_ms", values["ours"]), **summary("theirs_ms", values["theirs"]), **summary("theirs/ours", ratios)}


def precisions(name: str, device: torch.device) -> list[str]:
    """Precisions measured by default: bf16 takes minutes on a CPU without instructions for it."""
    if device.type == "cuda":
        return ["bf16"]
    return ["fp32", "bf16"] if name in THEIRS else ["fp32"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "models_<device>", rounds=4)
    parser.add_argument("--models", nargs="+", choices=[*THEIRS, *UPSTREAM], default=MODELS, help="default: all but swin_small")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16"), help="default: on a GPU bf16, else fp32, and bf16 too against timm"
    )
    parser.add_argument("--modes", nargs="+", choices=("infer", "train"), default=["infer", "train"])
    parser.add_argument("--batch", type=int, help="images per call (default 8, on a GPU 128)")
    parser.add_argument("--repeats", type=int, default=None, help="calls per measurement (default 1 on a CPU, 20 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_of(args.device)
    args.batch = args.batch or (128 if device.type == "cuda" else 8)
    repeats = args.repeats or (20 if device.type == "cuda" else 1)
    rounds, batch, repeats = (2, 1, 1) if args.quick else (args.rounds, args.batch, repeats)
    if clock(device)["bf16"] == "emulated":
        print("this device has no hardware for bf16; its rows measure emulation")

    rows, missed = [], []
    for name in args.models:
        opponent = UPSTREAM.get(name, "timm")
        print(f"{name} against {opponent}:")
        own, theirs, state = build_pair(name, device)
        image = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device)
        label = torch.arange(batch, device=device)
        problems = disagreement(own, theirs, state, image[:1], label[:1])
        if problems:
            print("\n".join(f"{name}: {problem}" for problem in problems))
            return 1
        for precision in args.precisions or precisions(name, device):
            for mode in args.modes:
                reload(own, theirs, state)
                row = measure(own, theirs, mode, image, label, precision == "bf16", rounds, repeats)
                goal = TRAINING_GOALS[device.type].get(name, GOAL) if mode == "train" else GOAL
                rows.append({"model": name, "opponent": opponent, "precision": precision, "mode": mode, "goal": goal, **row})
                ratio = row["theirs/ours"]
                print(f"  {precision} {mode}: ours {row['ours_ms']:.1f} ms, theirs {row['theirs_ms']:.1f} ms, {ratio:.3f}x", flush=True)
                if not ratio >= goal:
                    missed.append(f"{name} {precision} {mode}: {ratio:.3f}x of the speed of {opponent}, goal {goal}x")
        del own, theirs
        gc.collect()
    facts = {**machine(device), **clock(device), "batch": batch, "rounds": rounds, "calls": repeats}
    path = csv_path(args, f"models_{device.type}")
    return finish("Models at 224 px, ms per call: median (min-max)", rows, facts, path, missed, key=("model", "precision"))


if __name__ == "__main__":
    sys.exit(main())
