"""Write the tables of README.md and docs/zoo.md and the shipped model facts, from the registry and the weight records.

With --check nothing is written; the exit code is 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from visionattn.backbones import list_models
from visionattn.backbones.registry import get_variant
from visionattn.models.factory import computed_facts
from visionattn.models.weights.records import Record, records, records_of, segmenter_records

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "visionattn" / "models" / "weights" / "records" / "facts.json"
HEADS = {"upernet": "UPerNet", "semantic_fpn": "SemanticFPN"}

# Section of the table -> backbone modules, paper, authors' repository.
FAMILIES = {
    "Swin": (("swin",), "2103.14030", "microsoft/Swin-Transformer"),
    "Swin V2": (("swinv2",), "2111.09883", "microsoft/Swin-Transformer"),
    "NAT, DiNAT": (("nat", "dinat_s", "nat_isotropic"), "2204.07143", "SHI-Labs/Neighborhood-Attention-Transformer"),
    "BiFormer": (("biformer",), "2303.08810", "rayleizhu/BiFormer"),
    "DaViT": (("davit",), "2204.03645", "dingmyu/davit"),
    "VAN": (("van",), "2202.09741", "Visual-Attention-Network/VAN-Classification"),
    "TransNeXt": (("transnext",), "2311.17132", "DaiShiResearch/TransNeXt"),
    "ResNet, with any attention module": (("resnet",), "1512.03385", "pytorch/vision"),
    "ECA-Net": (("eca",), "1910.03151", "BangguWu/ECANet"),
    "ELA": (("ela",), "2403.01123", "Xuwei86/ELA_Code"),
    "MedViTV2": (("medvit",), "2502.13693", "Omid-Nejati/MedViTV2"),
    "RMT": (("rmt",), "2309.11523", "qhfan/RMT"),
    "RAVLT": (("ravlt",), "2411.07635", "qhfan/RALA"),
    "Agent Attention": (("agent_swin", "agent_pvt", "agent_deit"), "2312.08874", "LeapLabTHU/Agent-Attention"),
    "CAS-ViT": (("casvit",), "2408.03703", "Tianfang-Zhang/CAS-ViT"),
    "CrossFormer, CrossFormer++": (("crossformer",), "2108.00154", "cheerss/CrossFormer"),
    "LITv2": (("litv2",), "2205.13213", "ziplab/LITv2"),
    "ViT, with a choice of attention": (("vit",), "2205.01580", "google-research/big_vision"),
    "SG-Former": (("sgformer",), "2308.12216", "OliverRensu/SG-Former"),
    "InLine": (("inline_swin", "inline_pvt", "inline_deit"), "2412.06590", "LeapLabTHU/InLine"),
    "OverLoCK": (("overlock",), "2502.20087", "LMMMEng/OverLoCK"),
    "ChAda-ViT": (("chada_vit",), "2311.15264", "nicoboou/chadavit"),
    "DAE-Former, TransDAE": (("dae",), "2212.13504", "xmindflow/DAEFormer"),
}


def all_facts() -> dict[str, dict[str, Any]]:
    """Compute the facts of every model."""
    return {name: computed_facts(name) for name in list_models()}


def facts_text(counted: dict[str, dict[str, Any]]) -> str:
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(facts)}" for name, facts in counted.items()) + "\n}\n"


def zoo_table(counted: dict[str, dict[str, Any]]) -> str:
    """List all models, each with the best top-1 on ImageNet-1k reported by its authors."""
    lines = ["| model | parameters | GMACs | px | top-1, authors | weights, from | their licence |", "|---|---:|---:|---:|---:|---|---|"]
    shown: set[str] = set()
    for family, (modules, paper, repository) in FAMILIES.items():
        lines.append(f"| **{family}** ([{paper}](https://arxiv.org/abs/{paper}), [code](https://github.com/{repository})) | | | | | | |")
        names = sorted(
            (name for module in modules for name in list_models(family=module)), key=lambda name: (counted[name]["params"], name)
        )
        for name in names:
            own = [record for record in records_of(name) if record.sources]
            theirs = [record for record in own if record.top1 and any(source.publisher == "author" for source in record.sources)]
            best = max(theirs, key=lambda record: record.top1 or 0.0, default=None)
            top1 = f"{best.top1}{' (22k)' if best.tag.startswith('in22k') else ''}" if best else "-"
            tags = ", ".join(f"[{record.tag}]({record.sources[0].url})" for record in own) or "none"
            licence = ", ".join(dict.fromkeys(record.weights_license or "not stated" for record in own)) or "-"
            facts = counted[name]
            size = get_variant(name).cfg["input_size"][1]
            lines.append(f"| `{name}` | {facts['params'] / 1e6:.1f} M | {facts['gmacs']:.1f} | {size} | {top1} | {tags} | {licence} |")
        shown.update(names)
    assert shown == set(list_models()), "a family is in no section"
    return "\n".join(lines)


def families_table(counted: dict[str, dict[str, Any]]) -> str:
    """A row per family for the front page."""
    lines = ["| family | models | parameters | best top-1, authors | weights |", "|---|---|---:|---:|---|"]
    for family, (modules, paper, repository) in FAMILIES.items():
        names = [name for module in modules for name in list_models(family=module)]
        sizes = sorted(counted[name]["params"] / 1e6 for name in names)
        own = [record for name in names for record in records_of(name) if record.sources]
        theirs = [record for record in own if any(source.publisher == "author" for source in record.sources)]
        top1 = max((record.top1 for record in theirs if record.top1), default=0.0)
        best = f"{top1:.1f}" if top1 else "-"
        licence = " or ".join(dict.fromkeys(record.weights_license or "licence not stated" for record in own))
        links = f"[{paper}](https://arxiv.org/abs/{paper}), [code](https://github.com/{repository})"
        examples = ", ".join(f"`{name}`" for name in sorted(names, key=lambda name: counted[name]["params"])[:2])
        weights = f"{len(own)} {'files' if len(own) > 1 else 'file'}, {licence}" if own else "none published"
        several = f"{examples} ... | {sizes[0]:.1f}-{sizes[-1]:.0f} M" if len(names) > 1 else f"{examples} | {sizes[0]:.1f} M"
        lines.append(f"| **{family}** ({links}) | {len(names)}: {several} | {best} | {weights} |")
    return "\n".join(lines)


def weights_table() -> str:
    """List all published weights with figures, licences and sources."""
    lines = [
        "| weights | px | top-1 | classes | licence: weights, code | hash | sources, in the order they are tried |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for record in records():
        places = ", ".join(f"[{source.publisher}]({source.url}){_state(source.status)}" for source in record.sources)
        facts = f"{record.input_size[1]} | {record.top1 or '-'} | {record.num_classes or '-'}"
        lines.append(f"| `{record.name}` | {facts} | {record.display_licenses} | {record.hash_check} | {places} |")
    return "\n".join(lines)


def segmentation_table() -> str:
    """List all segmentation models that have published figures, with their recipes."""
    lines = [
        "| weights | head | mIoU | multi-scale | crop | parameters | recipe | licence: weights, code | hash | sources |",
        "|---|---|---:|---:|---:|---:|---|---|---|---|",
    ]
    for record in segmenter_records():
        places = ", ".join(f"[{source.publisher}]({source.url}){_state(source.status)}" for source in record.sources) or "none"
        size = f"{record.params_m:g} M" if record.params_m else "-"
        figures = f"{record.miou or '-'} | {record.miou_ms or '-'} | {record.crop} | {size}"
        facts = f"{record.display_licenses} | {record.hash_check}" if record.sources else "- | -"
        lines.append(f"| `{record.name}` | {HEADS[record.head]} | {figures} | `{record.recipe}` | {facts} | {places} |")
    return "\n".join(lines)


def _state(status: str) -> str:
    return {"page_only": " (needs a browser)", "reported_broken": " (reported broken)"}.get(status, "")


def between_markers(text: str, table: str, name: str = "zoo") -> str:
    """Replace the table between the markers of a document."""
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, _, rest = text.partition(opening)
    _, end, tail = rest.partition(closing)
    if not end:
        raise SystemExit(f"no {opening} ... {closing} in the document")
    return f"{head}{opening}\n{table}\n{closing}{tail}"


def licences(entries: tuple[Record, ...]) -> str:
    stated = sum(record.weights_license is not None for record in entries)
    return f"{len(entries)} weight files, {stated} with a stated licence."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, report files that are out of date")
    parser.add_argument(
        "--count", action="store_true", help="recount parameters and operations (minutes); by default the shipped counts are used"
    )
    args = parser.parse_args()
    readme, page = ROOT / "README.md", ROOT / "docs" / "zoo.md"
    counted = all_facts() if args.count else json.loads(FACTS.read_text(encoding="utf-8"))
    models = between_markers(page.read_text(encoding="utf-8"), zoo_table(counted), "models")
    weights = between_markers(models, f"{licences(records())}\n\n{weights_table()}")
    wanted = {
        FACTS: facts_text(counted),
        readme: between_markers(readme.read_text(encoding="utf-8"), families_table(counted)),
        page: between_markers(weights, segmentation_table(), "segmentation"),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if args.check else 'written'}: {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
