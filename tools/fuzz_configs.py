"""Change configs at random and read them: each is either valid or refused with a `UserError`, never an internal fault.

    python tools/fuzz_configs.py --count 10000

A valid one must also survive being written and read again. What fails is kept in a folder, named by its number.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from visionattn.config.read import SHIPPED, describe, shipped_names, to_yaml
from visionattn.errors import UserError
from visionattn.tasks import load_config

NASTY = (
    *("", "null", "~", "true", "no", "007", "1e400", "-1", "0", "1e-400", ".nan", ".inf", "2026-11-30", "12:30:45", "0x10", "1_000"),
    *(
        "'",
        '"',
        "{",
        "}",
        "[",
        "]",
        "{}",
        "[]",
        "[1, [2, [3]]]",
        "{a: {b: c}}",
        "&a [*a]",
        "*a",
        "!!python/object:os.system x",
        "!!binary x",
    ),
    *("${env:HOME}", "${env:}", "${x}", "${oc.env:HOME}", "???", "%", "@", "`", "\t", "- a", "a: b: c", "|", ">", "# x", "---", "..."),
    *("x" * 3000, "ü", "\u202e", "\ud7ff", "[" * 300, "{a: " * 300, "18446744073709551616", "-0.0", "1e5", "[1e5]", "[0, 1e999]"),
)
BYTES = "\0\x07\x1b\r\n\t:{}[]&*!|>'\"%@`,#-? 0ae\x85\u2028\ufeff"


def change_text(text: str, chance: random.Random) -> str:
    """One change somewhere in the text of a file."""
    lines = text.splitlines() or [""]
    at = chance.randrange(len(lines))
    key, sign, _ = lines[at].partition(":")
    kinds: tuple[Callable[[], list[str]], ...] = (
        lambda: [*lines[:at], *lines[at + 1 :]],
        lambda: [*lines[:at], lines[at], *lines[at:]],
        lambda: [*lines[:at], chance.choice((" ", "  ", "\t")) + lines[at], *lines[at + 1 :]],
        lambda: [*lines[:at], f"{key}{sign} {chance.choice(NASTY)}", *lines[at + 1 :]],
        lambda: [*lines[:at], f"{chance.choice(NASTY)}{sign} 1", *lines[at + 1 :]],
        lambda: [*lines[:at], lines[at] + chance.choice(NASTY), *lines[at + 1 :]],
        lambda: [*lines[:at], lines[at].lstrip(), *lines[at + 1 :]],
    )
    if chance.random() < 0.3:
        place = chance.randrange(len(text) + 1)
        return text[:place] + chance.choice(BYTES) + text[place + chance.randrange(2) :]
    return "\n".join(chance.choice(kinds)())


def change_setting(keys: list[str], chance: random.Random) -> str:
    """One `key=value` of the command line."""
    key = chance.choice(keys)
    if chance.random() < 0.2:
        place = chance.randrange(len(key) + 1)
        key = key[:place] + chance.choice(BYTES + ".[]=") + key[place:]
    return f"{key}={chance.choice(NASTY)}"


def dotted(values: object, prefix: str = "") -> list[str]:
    """All keys below a value."""
    if not isinstance(values, dict):
        return [prefix]
    return [prefix, *(key for name, value in values.items() for key in dotted(value, f"{prefix}.{name}".lstrip(".")))]


def try_one(number: int, seed: int, texts: dict[str, str], keys: list[str], file: Path) -> tuple[str, str]:
    """Read one changed config; returns the outcome and what was read."""
    chance = random.Random(f"{seed} {number}")
    text = texts[chance.choice(sorted(texts))]
    for _ in range(chance.randint(0, 4)):
        text = change_text(text, chance)
    settings = [change_setting(keys, chance) for _ in range(chance.randint(0, 3))]
    file.write_text(text, encoding="utf-8", newline="")
    source = json.dumps({"file": text, "settings": settings}, ensure_ascii=False, indent=1)
    try:
        config = load_config(file, settings)
    except UserError as error:
        error.block()
        return "refused", source
    except RecursionError as error:
        return f"fault: {type(error).__name__}", source
    except Exception as error:
        return f"fault: {type(error).__name__}: {str(error)[:100]}", source
    for written in (to_yaml(config.model_dump(mode="json")), describe(config)):
        file.write_text(written, encoding="utf-8", newline="")
        try:
            same = load_config(file) == config
        except UserError as error:
            return f"fault: not read again: {error.what[:100]}", source
        if not same:
            return "fault: another value after it was written", source
    return "valid", source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for what fails")
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    texts = {name: (Path(str(SHIPPED)) / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_names()}
    whole = {task: describe(load_config(None, [f"task={task}"])) for task in ("classify", "segment")}
    texts |= whole
    keys = [key for task in whole for key in dotted(load_config(None, [f"task={task}"]).model_dump(mode="json")) if key != "plugins"]
    outcomes: Counter[str] = Counter()
    end, number = time.monotonic() + given.seconds, 0
    while number < given.count and time.monotonic() < end:
        outcome, source = try_one(number, given.seed, texts, keys, given.out / "config.yaml")
        outcomes[outcome] += 1
        if outcome.startswith("fault"):
            (given.out / f"{number}.json").write_text(source, encoding="utf-8", errors="surrogateescape")
            print(f"{number}: {outcome}")
        number += 1
    (given.out / "config.yaml").unlink(missing_ok=True)
    faults = sum(count for outcome, count in outcomes.items() if outcome.startswith("fault"))
    print(f"{number} configs (seed {given.seed}): {outcomes['valid']} valid, {outcomes['refused']} refused, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
