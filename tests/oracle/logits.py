#!/usr/bin/env python3
"""Compares the logits of omex and llama.cpp with those of transformers.

Every engine evaluates the same token ids of real text (prose of the Python
language reference and sources of Python's standard library, which every
machine with Python has). Per position, KL(reference || engine) in nats over
the whole vocabulary; the paired difference of both engines with its standard
error says whether omex is at least as close to the reference as llama.cpp.
Prints a markdown table and exits with 1 when it is not.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import math
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

from engines import MODEL, LlamaCpp, Omex, Reference

PROSE = ["numbers", "execmodel", "import", "typesseq", "debugger", "formatstrings"]
SOURCES = ["textwrap", "heapq", "bisect", "shlex", "fractions", "statistics"]
PASSAGE_TOKENS = 1024
# Positions that are scored at once.
ROWS = 64


def passages(tokenize, positions_min: int, tokens_max: int) -> list[tuple[str, list[int]]]:
    """Texts of at most `tokens_max` tokens with their ids, prose and code in turn."""
    topics = importlib.import_module("pydoc_data.topics").topics
    prose = "".join(topics[name] for name in PROSE)
    code = "".join(inspect.getsource(importlib.import_module(name)) for name in SOURCES)
    chosen: list[tuple[str, list[int]]] = []
    positions = 0
    streams = [iter(prose.splitlines(keepends=True)), iter(code.splitlines(keepends=True))]
    while positions < positions_min:
        text, ids = "", []
        for line in streams[len(chosen) % 2]:
            longer = tokenize(text + line)
            if len(longer) > tokens_max:
                break
            text, ids = text + line, longer
        if not ids:
            sys.exit(f"the corpus ended after {positions} of {positions_min} positions")
        chosen.append((text, ids))
        positions += len(ids)
    return chosen


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in f64, shape unchanged."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class Score:
    """Per-position results of one engine against the reference."""

    def __init__(self, name: str):
        self.name = name
        self.kl: list[float] = []
        self.top1: list[bool] = []
        self.nll: list[float] = []

    def add(self, reference: np.ndarray, logits: np.ndarray, ids: list[int]) -> None:
        """Adds a passage; `reference` are the reference's logits of the same positions."""
        if logits.shape != reference.shape:
            sys.exit(f"{self.name} gave logits of shape {logits.shape}, expected {reference.shape}")
        if not np.isfinite(logits).all():
            sys.exit(f"{self.name} gave logits that are not finite")
        # Vocabularies of a quarter of a million tokens are scored in pieces.
        for first in range(0, len(ids), ROWS):
            rows = slice(first, first + ROWS)
            expected = log_softmax(reference[rows])
            log_probabilities = log_softmax(logits[rows])
            self.kl += (np.exp(expected) * (expected - log_probabilities)).sum(axis=-1).tolist()
            following = ids[1:][rows]
            self.nll += (-log_probabilities[np.arange(len(following)), following]).tolist()
        self.top1 += (reference.argmax(axis=-1) == logits.argmax(axis=-1)).tolist()

    def summary(self) -> dict:
        kl = np.array(self.kl)
        return {
            "engine": self.name,
            "kl_mean": float(kl.mean()),
            "kl_standard_error": float(kl.std(ddof=1) / math.sqrt(len(kl))),
            "kl_median": float(np.median(kl)),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "top1_agreement": float(np.mean(self.top1)),
            "perplexity": math.exp(float(np.mean(self.nll))),
        }


def paired(ours: Score, theirs: Score) -> dict:
    """Mean and standard error of KL(ours) - KL(theirs) over the same positions."""
    difference = np.array(ours.kl) - np.array(theirs.kl)
    return {
        "kl_difference_mean": float(difference.mean()),
        "kl_difference_standard_error": float(difference.std(ddof=1) / math.sqrt(len(difference))),
        "ours_closer_share": float((difference < 0).mean()),
    }


def table(report: dict) -> str:
    lines = [
        "| engine | mean KL (± standard error) | median KL | 99 % | top-1 agreement | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["engines"]:
        lines.append(
            f"| {row['engine']} | {row['kl_mean']:.6f} ± {row['kl_standard_error']:.6f}"
            f" | {row['kl_median']:.6f} | {row['kl_p99']:.6f}"
            f" | {100 * row['top1_agreement']:.2f} % | {row['perplexity']:.4f} |"
        )
    lines += [
        "",
        f"{report['positions']} positions in {report['passages']} passages of text,"
        f" KL(reference ‖ engine) in nats, reference: {report['reference']},"
        f" model: {report['model']}.",
    ]
    for pair in report["pairs"]:
        lines.append(
            f"KL of {pair['ours']} minus KL of {pair['theirs']}, paired by position:"
            f" {pair['kl_difference_mean']:+.6f} ± {pair['kl_difference_standard_error']:.6f};"
            f" closer to the reference at {100 * pair['ours_closer_share']:.1f} % of the positions."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, default=MODEL)
    parser.add_argument("--plan", type=Path, help="a plan of the same model (default: built here)")
    parser.add_argument("--omex", type=Path, default=None, help="the binary for --plan")
    parser.add_argument("--without-omex", action="store_true", help="measure llama.cpp alone")
    parser.add_argument("--passage-tokens", type=int, default=PASSAGE_TOKENS, help="tokens of a passage, at most")
    parser.add_argument("--positions", type=int, default=4096, help="at least so many (default 4096)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="write the report here as JSON")
    arguments = parser.parse_args()
    if not arguments.model.exists():
        sys.exit(f"{arguments.model} does not exist; examples/fetch_model.sh fetches it")

    with tempfile.TemporaryDirectory() as folder:
        omex = None
        if arguments.plan:
            omex = Omex(arguments.omex or "omex", arguments.plan, arguments.threads)
        elif not arguments.without_omex:
            omex = Omex.build(arguments.model, Path(folder), arguments.threads)
        report = measure(arguments, omex)
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    for pair in report["pairs"]:
        if pair["theirs"] == report["peer"]:
            if pair["kl_difference_mean"] > 2 * pair["kl_difference_standard_error"]:
                sys.exit("omex is further from the reference than llama.cpp by more than two standard errors")


def measure(arguments: argparse.Namespace, omex: Omex | None) -> dict:
    llama = LlamaCpp(arguments.model, arguments.threads, arguments.passage_tokens)
    flash = LlamaCpp(arguments.model, arguments.threads, arguments.passage_tokens, flash_attention=True)
    flash.name += ", flash attention"
    reference = Reference(arguments.model, arguments.threads)
    chosen = passages(
        lambda text: llama.tokenize(text, special=False), arguments.positions, arguments.passage_tokens
    )

    itself = Score(reference.name)
    scores = {engine.name: Score(engine.name) for engine in filter(None, [omex, llama, flash])}
    for number, (text, ids) in enumerate(chosen, 1):
        print(f"passage {number} of {len(chosen)}: {len(ids)} tokens", file=sys.stderr)
        expected = reference.logits(ids)
        itself.add(expected, expected, ids)
        for engine in (llama, flash):
            scores[engine.name].add(expected, engine.logits(ids), ids)
        if omex:
            own = omex.tokenize(text)
            # A BOS belongs to the prompt, not to the text.
            if ids not in (own, [ids[0], *own]):
                sys.exit(f"omex and llama.cpp tokenize passage {number} differently")
            scores[omex.name].add(expected, omex.logits(text, expected.shape[1]), ids)

    peers = [scores[engine.name] for engine in (llama, flash)]
    text = "".join(text for text, _ in chosen)
    return {
        "model": arguments.model.name,
        "reference": reference.name,
        "peer": llama.name,
        "python": platform.python_version(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "passages": len(chosen),
        "positions": sum(len(ids) for _, ids in chosen),
        "engines": [score.summary() for score in [*scores.values(), itself]],
        "pairs": [
            {"ours": omex.name, "theirs": peer.name, **paired(scores[omex.name], peer)}
            for peer in peers
            if omex
        ],
    }


if __name__ == "__main__":
    main()
