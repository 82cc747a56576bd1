#!/usr/bin/env python3
"""Compares greedy answers of omex and llama.cpp, token by token.

Both continue the same rendered prompt ids. Where they first differ, each
engine preferred another token of a near tie: the table gives the gap between
the two tokens in omex's, llama.cpp's and transformers' logits. A difference
counts as explained when the gap in transformers' logits is at most what
llama.cpp itself errs in the gap of its two best tokens: the largest such error over
the positions where both agree. Exits with 1 when a difference is unexplained.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from engines import MODEL, LlamaCpp, Omex, Reference

TOKENS_MAX = 64
POSITIONS_MAX = 512
PROMPTS = [
    "What is the capital of France?",
    "Explain photosynthesis to a ten-year-old.",
    "Write a haiku about the sea.",
    "List three uses of a paperclip.",
    "What is 17 + 25?",
    "Translate 'good morning' into Spanish.",
    "Write a Python function that reverses a string.",
    "Why is the sky blue?",
    "Summarize the story of Romeo and Juliet in two sentences.",
    "Name five mammals that live in the ocean.",
    "What does the SQL statement SELECT do?",
    "Give me a recipe for pancakes.",
    "Who wrote the play Hamlet?",
    "Describe a sunset in one paragraph.",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
    "Write a short email asking for a day off.",
    "What are the planets of the solar system?",
    "Explain what an operating system does.",
    "Tell me a joke about computers.",
    "How many days are in a leap year?",
    "What is the boiling point of water in Celsius?",
    "Write a limerick about a cat.",
    "What causes the seasons on Earth?",
    "Give three tips for learning a new language.",
    "Explain recursion with an example.",
    "What is machine learning?",
    "Write a for loop in C that prints the numbers from 1 to 10.",
    "Describe the water cycle.",
    "What should I pack for a trip to the mountains?",
]


def agreement(ours: list[int], theirs: list[int]) -> int:
    """The number of leading tokens that both have in common."""
    pairs = zip(ours, theirs)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def gaps(logits: np.ndarray, tokens: list[tuple[int, int]]) -> np.ndarray:
    """Per row, the logit of the first token minus that of the second."""
    rows = np.arange(len(tokens))
    first, second = np.array(tokens).T
    return logits[rows, first].astype(np.float64) - logits[rows, second]


def two_best(logits: np.ndarray) -> list[tuple[int, int]]:
    """Per row, the ids of the largest and the second largest logit."""
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :2]
    return [(int(a), int(b)) for a, b in best]


def measure(llama: LlamaCpp, omex: Omex, reference: Reference) -> dict:
    vocabulary = llama.llama.n_vocab()
    prompts, errors, own_errors = [], [], []
    for number, prompt in enumerate(PROMPTS, 1):
        print(f"prompt {number} of {len(PROMPTS)}: {prompt}", file=sys.stderr)
        ids = llama.chat_ids(prompt)
        theirs = llama.generate(ids, TOKENS_MAX)
        ours = omex.generate(prompt, TOKENS_MAX, vocabulary)
        if ours.prompt_tokens != len(ids):
            sys.exit(f"omex renders {ours.prompt_tokens} prompt tokens, the template gives {len(ids)}: {prompt}")
        agreed = agreement(ours.token_ids, theirs)
        entry = {"prompt": prompt, "agreed": agreed, "ours": len(ours.token_ids), "theirs": len(theirs)}
        prompts.append(entry)

        # Row p of the logits predicts token p + 1, so the rows from the last
        # prompt position on predict the generated tokens.
        common = ids + theirs[:agreed]
        last = len(ids) - 1
        peer = llama.logits(common)[last:]
        expected = reference.logits(common)[last:]
        own = ours.logits[last : len(common)]
        pairs = two_best(peer[:agreed])
        if agreed:
            true_gaps = gaps(expected[:agreed], pairs)
            errors += np.abs(gaps(peer[:agreed], pairs) - true_gaps).tolist()
            own_errors += np.abs(gaps(own[:agreed], pairs) - true_gaps).tolist()
        if ours.token_ids == theirs:
            continue
        # A side that ended here chose a stop token, the largest of its logits.
        pair = [
            (
                ours.token_ids[agreed] if agreed < len(ours.token_ids) else int(own[-1].argmax()),
                theirs[agreed] if agreed < len(theirs) else int(peer[-1].argmax()),
            )
        ]
        entry |= {
            "tokens": [llama.llama.detokenize([token], special=True).decode(errors="replace") for token in pair[0]],
            "gap_omex": float(gaps(own[-1:], pair)[0]),
            "gap_llama": float(gaps(peer[-1:], pair)[0]),
            "gap_reference": float(gaps(expected[-1:], pair)[0]),
        }
    limit = max(errors)
    for entry in prompts:
        if "tokens" in entry:
            entry["explained"] = abs(entry["gap_reference"]) <= limit
    return {
        "model": MODEL.name,
        "omex": omex.name,
        "llama": llama.name,
        "reference": reference.name,
        "tokens_max": TOKENS_MAX,
        "gap_error_max": limit,
        "gap_error_rms": float(np.sqrt(np.mean(np.square(errors)))),
        "gap_error_rms_omex": float(np.sqrt(np.mean(np.square(own_errors)))),
        "positions": len(errors),
        "prompts": prompts,
    }


def table(report: dict) -> str:
    prompts = report["prompts"]
    differing = [entry for entry in prompts if "tokens" in entry]
    lines = [
        f"{len(prompts) - len(differing)} of {len(prompts)} greedy answers of up to {report['tokens_max']} tokens"
        f" agree to the end ({report['omex']} and {report['llama']}, {report['model']}).",
    ]
    if differing:
        lines += [
            "At each first difference, the logit of omex's token minus that of llama.cpp's:",
            "",
            "| prompt | agreed tokens | omex's / llama.cpp's token | gap in omex | in llama.cpp | in transformers | near tie |",
            "|---|---|---|---|---|---|---|",
        ]
    for entry in differing:
        ours, theirs = (f"`{json.dumps(token, ensure_ascii=False)}`" for token in entry["tokens"])
        lines.append(
            f"| {entry['prompt']} | {entry['agreed']} | {ours} / {theirs} | {entry['gap_omex']:+.3f}"
            f" | {entry['gap_llama']:+.3f} | {entry['gap_reference']:+.3f}"
            f" | {'yes' if entry['explained'] else 'NO'} |"
        )
    lines += [
        "",
        "A near tie is a gap in transformers' logits of at most"
        f" {report['gap_error_max']:.3f}, the largest error of llama.cpp in the gap of its two best"
        f" tokens over the {report['positions']} positions where both agree. The root mean square of"
        f" these errors is {report['gap_error_rms']:.3f} for llama.cpp, {report['gap_error_rms_omex']:.3f} for omex.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, default=MODEL)
    parser.add_argument("--plan", type=Path, help="a plan of the same model (default: built here)")
    parser.add_argument("--omex", type=Path, default="omex", help="the binary for --plan")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="write the report here as JSON")
    arguments = parser.parse_args()
    if arguments.model != MODEL and not arguments.plan:
        parser.error("--model needs a --plan of it")
    if not arguments.model.exists():
        sys.exit(f"{arguments.model} does not exist; examples/fetch_model.sh fetches it")

    with tempfile.TemporaryDirectory() as folder:
        if arguments.plan:
            omex = Omex(arguments.omex, arguments.plan, arguments.threads)
        else:
            omex = Omex.build(MODEL, Path(folder), arguments.threads)
        llama = LlamaCpp(arguments.model, arguments.threads, POSITIONS_MAX)
        report = measure(llama, omex, Reference(arguments.model, arguments.threads))
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if not all(entry.get("explained", True) for entry in report["prompts"]):
        sys.exit("a difference between omex and llama.cpp is no near tie")


if __name__ == "__main__":
    main()
