"""Write docs/families: a page per family, its drawing, and the table of all systems.

The tables come from the registry, the weight records and docs/benchmarks, the differences from the docstrings of the backbones, the text
from `families.py`. With --check nothing is written; the exit code is 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from draw_block import svg
from families import DESCRIPTIONS, Description
from make_zoo import FAMILIES, ROOT

from visionattn.backbones import Backbone, list_models
from visionattn.backbones.registry import get_variant
from visionattn.models.weights.records import records_of, segmenter_records, shipped_facts

PAGES = ROOT / "docs" / "families"
NOTE = (
    "<!-- Written by tools/make_families.py: change the text in tools/families.py, the differences in the docstrings of the backbones. -->"
)


def description(section: str) -> Description:
    """Text of a family; without an entry a name and nothing else."""
    file = re.sub(r"\W+", "_", section.lower()).strip("_")
    return DESCRIPTIONS.get(section) or Description(file, "-", "", "", ())


def models_of(section: str) -> list[str]:
    """Names of a family, the smallest first."""
    facts = shipped_facts()
    names = [name for module in FAMILIES[section][0] for name in list_models(family=module)]
    return sorted(names, key=lambda name: (facts[name]["params"], name))


def classes_of(section: str) -> list[type[Backbone]]:
    return list(dict.fromkeys(get_variant(name).cls for name in models_of(section)))


def dilates(cls: type[Backbone]) -> bool:
    """Whether stages trade strides for dilation."""
    return cls.dilate_stage is not Backbone.dilate_stage


def classifies_only(cls: type[Backbone]) -> bool:
    return "classifies only" in (sys.modules[cls.__module__].__doc__ or "")


def use_of(section: str) -> str:
    """What the maps of a family are fit for."""
    facts = shipped_facts()
    strides = {tuple(facts[name]["strides"]) for name in models_of(section)}
    if all(classifies_only(cls) for cls in classes_of(section)):
        return "classes"
    if all(len(set(steps)) == 1 for steps in strides):
        return "classes; masks, from maps of one stride"
    dilating = [name for name in models_of(section) if dilates(get_variant(name).cls)]
    others = {len(set(facts[name]["strides"])) for name in models_of(section) if name not in dilating}
    assert not dilating or others <= {1}, "the words below are not true of this family"
    return "classes, masks" + (f", stride 8 and 16{' (not the isotropic models)' if others else ''}" if dilating else "")


def docstring_parts(module: str) -> tuple[str, str]:
    """Papers and upstream, and the differences from it, of the docstring of a backbone."""
    text = inspect.getdoc(importlib.import_module(f"visionattn.backbones.{module}")) or ""
    source, _, differences = text.partition("\nDifferences from upstream")
    return source.partition("\n\n")[2].strip(), differences.lstrip(":\n").strip()


def escaped(text: str) -> str:
    """Text of a docstring as Markdown: stars of a list stay, angle brackets and links are not made."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text.replace("<", "&lt;"))


def variants_table(section: str) -> str:
    facts, lines = (
        shipped_facts(),
        ["| model | parameters | GMACs | px | channels | top-1 | weights | their licence |", "|---|---:|---:|---:|---|---:|---|---|"],
    )
    for name in models_of(section):
        own = [record for record in records_of(name) if record.sources]
        top1 = max((record.top1 for record in own if record.top1), default=None)
        tags = ", ".join(f"`{record.tag}`" for record in own) or "none"
        licence = ", ".join(dict.fromkeys(record.weights_license or "not stated" for record in own)) or "-"
        fact = facts[name]
        channels = " ".join(map(str, fact["channels"]))
        size = fact["input_size"][1]
        lines.append(
            f"| `{name}` | {fact['params'] / 1e6:.1f} M | {fact['gmacs']:.1f} | {size} | {channels} | {top1 or '-'} | {tags} | {licence} |"
        )
    return "\n".join(lines)


def speed_table(names: list[str]) -> str:
    """Rows of the benchmark of models, in float32; empty if the family was not measured."""
    with (ROOT / "docs" / "benchmarks" / "models_cpu.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] in names and row["precision"] == "fp32"]
    if not rows:
        return ""
    lines = ["| model | | images | ms | against | theirs / ours |", "|---|---|---:|---:|---|---:|"]
    for row in rows:
        mode, times = {"infer": "inference", "train": "training step"}[row["mode"]], float(row["theirs/ours"])
        lines.append(f"| `{row['model']}` | {mode} | {row['batch']} | {float(row['ours_ms']):.0f} | {row['opponent']} | {times:.2f} |")
    device = f"{rows[0]['device']}, torch {rows[0]['torch']}, one thread, float32, 224 px."
    return "\n".join([*lines, "", f"{device} What is compared, and how: [speed](../speed.md#models)."])


def facts_list(section: str) -> str:
    facts, names = shipped_facts(), models_of(section)
    classes = classes_of(section)
    strides = " or ".join(dict.fromkeys("/".join(map(str, facts[name]["strides"])) for name in names))
    if not all(cls.size_step == 1 for cls in classes):
        exports = f"[{'by model' if any(cls.size_step for cls in classes) else 'one size'}](../export.md#sizes)"
    elif any("least_sides" in inspect.getsource(cls) for cls in classes):  # set in the constructor, which is not run here
        exports = "[any size above a least one](../export.md#sizes)"
    else:
        exports = f"any size from {max(facts[name]['strides'][-1] for name in names) + 1} px"
    rows = {
        "Mixes a position with": description(section).mixes,
        "Strides of its maps": strides,
        "Its maps serve": use_of(section),
        "Input size": "any from 32 px, not only squares",
        "Export": exports,
    }
    heads = sorted({f"`{record.name}`" for record in segmenter_records() if record.sources and record.model in names})
    if heads:
        rows["Published segmentation models"] = ", ".join(heads)
    first, *others = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([first, "|---|---|", *others])


def page(section: str) -> str:
    """Markdown of a family."""
    modules, paper, repository = FAMILIES[section]
    modules = (modules,) if isinstance(modules, str) else modules
    about, names = description(section), models_of(section)
    parts = [
        f"# {section}",
        NOTE,
        f"Paper: [{paper}](https://arxiv.org/abs/{paper}), code of its authors: [{repository}](https://github.com/{repository}).",
    ]
    if about.idea:
        parts += [about.idea, f"**Good for.** {about.good}"]
    if about.blocks:
        parts += [f"![{' and '.join(title for title, _ in about.blocks)}]({about.file}.svg)"]
    parts += [facts_list(section), "## Variants", variants_table(section)]
    parts += ["Top-1 on ImageNet-1k in %, as published. Addresses, hashes and all licences: [weights](../zoo.md#models)."]
    parts += [about.more]
    weights = "" if any(source.fetchable for record in records_of(names[0]) for source in record.sources) else " model.weights=none"
    parts += ["## Use", f"```\nvisionattn models info {names[0]}\nvisionattn train --data flowers --model {names[0]}{weights}\n```"]
    if about.kernels:
        links = ", ".join(f"[{name}](../kernels/{name}.md)" for name in about.kernels)
        parts += [f"Its operations, which can be used on their own: {links}."]
    parts += ["## Differences from the code of the authors"]
    for module in modules:
        source, differences = docstring_parts(module)
        parts += [f"### {module}"] if len(modules) > 1 else []
        parts += [escaped(source), escaped(differences)]
    if speed := speed_table(names):
        parts += ["## Speed", speed]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview() -> str:
    """The table of all systems."""
    facts = shipped_facts()
    lines = [
        "| family | good for | a position is mixed with | its maps serve | models | parameters | top-1 |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for section in FAMILIES:
        about, names = description(section), models_of(section)
        sizes = [facts[name]["params"] / 1e6 for name in names]
        top1 = max((record.top1 or 0 for name in names for record in records_of(name) if record.sources), default=0)
        span = f"{sizes[0]:.1f}-{sizes[-1]:.0f} M" if len(names) > 1 else f"{sizes[0]:.1f} M"
        lines.append(
            f"| [{section}]({about.file}.md) | {about.good} | {about.mixes} | {use_of(section)} | {len(names)} | {span} | {top1 or '-'} |"
        )
    return (
        "\n\n".join(
            [
                "# All families",
                NOTE,
                "What each family is good for, and what a position of its maps is mixed with. All networks take images of any size "
                "from 32 px up. Files that authors published load unchanged and give the same numbers. *Masks*: a pyramid of maps, for "
                "every [head](../segmentation.md#heads). *Stride 8 and 16*: `output_stride` keeps maps fine by "
                "dilation ([timm](../timm.md)). Top-1: the best published figure on ImageNet-1k, in %, also of weights pretrained "
                "on ImageNet-22k.",
                "\n".join(lines),
                "**Which one?** On a CPU, or with a few hundred images: ECA-ResNet. With weights to start from: DaViT, the default, "
                "or Swin, which has the most. For masks: DiNAT or Swin with UPerNet, whose weights are published for most sizes. For "
                "large images: VAN. Then measure: `visionattn models compare davit_tiny swin_tiny van_b2` times them on your "
                "machine, and a run with each on your images decides. Figures of our own runs: "
                "[families under one budget](../comparison.md), [results](../results.md).",
                "The networks of timm are backbones too, by the name `timm:NAME`: FocalNet, Next-ViT, EfficientFormer, ResNeSt and "
                "others are in [their own table](../zoo.md#networks-of-timm).",
            ]
        )
        + "\n"
    )


def wanted() -> Iterator[tuple[Path, str]]:
    """Every file with its text."""
    yield PAGES / "index.md", overview()
    for section in FAMILIES:
        about = description(section)
        yield PAGES / f"{about.file}.md", page(section)
        if about.blocks:
            yield PAGES / f"{about.file}.svg", svg(about.blocks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, report files that are out of date")
    args = parser.parse_args()
    files = dict(wanted())
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    extra = [path for path in PAGES.iterdir() if path not in files]
    for path in [*stale, *extra]:
        print(f"{'out of date' if args.check else 'removed' if path in extra else 'written'}: {path.relative_to(ROOT)}")
    if not args.check:
        PAGES.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(files[path], encoding="utf-8")
        for path in extra:
            path.unlink()
    return 1 if args.check and (stale or extra) else 0


if __name__ == "__main__":
    sys.exit(main())
