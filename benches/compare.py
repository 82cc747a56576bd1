#!/usr/bin/env python3
"""Measures omex beside llama.cpp on the same model file, and prints markdown.

Every engine is a program with the command line and JSON of llama-bench: `omex bench`,
llama.cpp's llama-bench, and any other given with `--peer NAME=PATH`. They run one after
the other, round by round, so that all meet the same machine, with the same file and
numbers of threads. The peak memory (VmHWM) of each engine's process is that of its
prefill and decoding; with llama.cpp's llama-completion there is also the peak of a whole
run that fills a context of 2,048 tokens.

`benches/compare.py | benches/readme.py speed` puts the tables into README.md. Needs
only Python's standard library and benches/peers.sh.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "target/models/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 2048
MIB = 1 << 20
# A task that continues plain text, on the model that is named beside it.
CONTAINER = {
    "omex_version": "0.3",
    "task_id": "compare",
    "task_type": "chat",
    "model_requirements": {"max_sequence_tokens": CONTEXT_TOKENS},
    "task_flow": [
        {"id": "tokenize", "type": "tokenize", "input": "text.txt", "output": "tokens"},
        {"id": "forward", "type": "forward_pass", "input": "tokens", "output": "logits"},
        {"id": "sample", "type": "greedy_sample", "logits": "logits", "max_tokens": 128, "output": "ids"},
        {"id": "decode", "type": "decode", "input": "ids", "output": "text"},
    ],
}


def run(command: list, folder: Path) -> tuple[str, int]:
    """Standard output of a command and the peak resident bytes of its process."""
    with open(folder / "stdout", "wb+") as stdout, open(folder / "stderr", "wb+") as stderr:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            message = stderr.read().decode(errors="replace")
            sys.exit(f"{command[0]} ended with {process.returncode}:\n{message}")
        return stdout.read().decode(errors="replace"), usage.ru_maxrss * 1024


def tests(arguments: argparse.Namespace) -> list[tuple[str, list]]:
    """Name and flags of every test, as llama-bench names them."""
    prompts = [(f"pp{n}", ["-p", n, "-n", 0]) for n in arguments.prompt if n]
    generations = [(f"tg{n}", ["-p", 0, "-n", n]) for n in arguments.generate if n]
    return [
        # Not every llama-bench knows depths.
        (f"{name} @ d{depth}", [*flags, "-d", depth]) if depth else (name, flags)
        for depth in arguments.depth
        for name, flags in prompts + generations
    ]


def kv_flags(arguments: argparse.Namespace, engine: str) -> list[str]:
    if arguments.kv == "f16":
        return []
    return ["--kv", "q8"] if engine == "omex" else ["-ctk", "q8_0", "-ctv", "q8_0", "-fa", "1"]


def measure(arguments: argparse.Namespace, engines: dict, folder: Path) -> dict:
    """{(test, threads): {engine: [(tokens per second, peak bytes), one per round]}}."""
    samples: dict = {}
    for number in range(arguments.rounds):
        for name, flags in tests(arguments):
            for threads in arguments.threads:
                print(f"round {number + 1} of {arguments.rounds}: {name}, {threads} threads", file=sys.stderr)
                for engine, program in engines.items():
                    command = [*program, *kv_flags(arguments, engine), "-m", arguments.model, "-t", threads, *flags, "-r", 1, "-o", "json"]
                    output, peak = run(command, folder)
                    row = json.loads(output)[-1]
                    # What omex measures of itself leaves its compiler's child out, as wait4 does not.
                    sample = (row["avg_ts"], row.get("rss_peak_bytes", peak))
                    samples.setdefault((name, threads), {}).setdefault(engine, []).append(sample)
    return samples


def whole_runs(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, int | None, int]]:
    """Name, predicted bytes (if any) and measured peak bytes of a run that fills the context."""
    generate = 128
    threads = max(arguments.threads)
    text = folder / "text.txt"
    # Fewer words than tokens fit, as some vocabularies make two tokens of the first.
    text.write_text(" ".join(["the"] * (CONTEXT_TOKENS - generate - 8)))
    container, plan = folder / "task.omex.json", folder / "plan.bin"
    container.write_text(json.dumps(CONTAINER))
    build = [arguments.omex.with_name("omexc"), "build", container, "-m", arguments.model, "--any-path"]
    run([*build, "--target", "host", "-o", plan], folder)
    report = json.loads(run([arguments.omex, "run", plan, "--raw", "-i", text, "-t", threads, "--json"], folder)[0])
    rows = [("omex", report["rss_peak_predicted_bytes"], report["rss_peak_measured_bytes"])]
    completion = arguments.llama / "llama-completion"
    if completion.exists():
        llama = [completion, "-m", arguments.model, "-c", CONTEXT_TOKENS, "-f", text, "-n", generate]
        llama += ["-t", threads, "-no-cnv", "--temp", "0", "--ignore-eos"]
        for name, flags in [("llama.cpp", []), ("llama.cpp `--no-repack`", ["--no-repack"])]:
            rows.append((name, None, run([*llama, *flags], folder)[1]))
    return rows


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def cpu_ticks() -> tuple[int, int]:
    """Ticks that a hypervisor took away since boot, and all ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def print_tables(arguments: argparse.Namespace, engines: dict, samples: dict, rows: list, load: str) -> None:
    others = [engine for engine in engines if engine != "omex"]
    heads = ["tokens/s", "threads", *engines, *(f"omex / {engine}" for engine in others)]
    print(f"| {arguments.model.name}, {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for (test, threads), measured in samples.items():
        speeds = {engine: [speed for speed, _ in values] for engine, values in measured.items()}
        medians = {engine: statistics.median(values) for engine, values in speeds.items()}
        cells = [f"{medians[engine]:.1f} ({min(speeds[engine]):.1f} to {max(speeds[engine]):.1f})" for engine in engines]
        # By round: the machine is the same for both.
        rounds = {engine: [a / b for a, b in zip(speeds["omex"], speeds[engine])] for engine in others}
        ratios = [f"{statistics.median(rounds[engine]):.2f}" for engine in others]
        print(f"| {' | '.join([test, str(threads), *cells, *ratios])} |")
    print()
    print(f"| {' | '.join(['peak memory, MiB', 'threads', *engines])} |")
    print("|---" * (len(engines) + 2) + "|")
    for (test, threads), measured in samples.items():
        peaks = [f"{max(peak for _, peak in measured[engine]) / MIB:.1f}" for engine in engines]
        print(f"| {' | '.join([test, str(threads), *peaks])} |")
    print()
    if rows:
        print_runs(arguments, rows)
    print(load)


def print_runs(arguments: argparse.Namespace, rows: list) -> None:
    title = f"context of {CONTEXT_TOKENS} tokens filled, {max(arguments.threads)} threads"
    print(f"| {title} | peak memory predicted, MiB | measured, MiB |")
    print("|---|---|---|")
    for name, predicted, measured in rows:
        print(f"| {name} | {f'{predicted / MIB:.1f}' if predicted is not None else '-'} | {measured / MIB:.1f} |")
    print()


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def peer(text: str) -> tuple[str, list]:
    name, separator, command = text.partition("=")
    words = command.split()
    if not separator or name == "omex" or not words:
        raise argparse.ArgumentTypeError("a peer is 'NAME=PATH [FLAG...]', and not omex")
    return name, [Path(words[0]).resolve(), *words[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, default=MODEL)
    parser.add_argument("-p", "--prompt", type=numbers, default=[512])
    parser.add_argument("-n", "--generate", type=numbers, default=[128])
    parser.add_argument("-d", "--depth", type=numbers, default=[0])
    parser.add_argument("--kv", choices=["f16", "q8"], default="f16", help="keys and values")
    parser.add_argument("-t", "--threads", type=numbers, default=[1, 2])
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--llama", type=Path, default=ROOT / "target/peers/bin", help="folder of llama.cpp's binaries")
    parser.add_argument("--omex", type=Path, default=ROOT / "target/release/omex")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PATH",
                        help="another program with the command line of llama-bench, and flags of its own behind it")
    parser.add_argument("--speed-only", action="store_true", help="no run that fills a context with words")
    parser.add_argument("-o", "--output", type=Path, help="write every sample here as JSON")
    arguments = parser.parse_args()
    for name in ("model", "llama", "omex"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    engines: dict = {"omex": [arguments.omex, "bench"], "llama.cpp": [arguments.llama / "llama-bench"]}
    engines |= dict(arguments.peer)
    needed = [(arguments.model, "examples/fetch_model.sh fetches it"), (arguments.omex, "cargo build --release builds it")]
    needed += [(program[0], "benches/peers.sh builds llama.cpp") for program in engines.values()]
    for path, remedy in needed:
        if not path.exists():
            sys.exit(f"{path} does not exist; {remedy}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The model is packed and the plans are cached before anything is measured.
        for _, flags in tests(arguments):
            for threads in arguments.threads:
                command = [arguments.omex, "bench", *kv_flags(arguments, "omex"), "-m", arguments.model]
                run([*command, "-t", threads, *flags, "-r", 1], folder)
        load_before, (stolen_before, ticks_before) = os.getloadavg()[0], cpu_ticks()
        samples = measure(arguments, engines, folder)
        stolen, ticks = cpu_ticks()
        rows = [] if arguments.speed_only else whole_runs(arguments, folder)
        bench = [arguments.llama / "llama-bench", "-m", arguments.model, "-p", 1, "-n", 0, "-r", 1, "-o", "json"]
        commit = json.loads(run(bench, folder)[0])[0]["build_commit"]

    kv = ", int8 keys and values" if arguments.kv == "q8" else ""
    load = (
        f"{cpu_name()}, {os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')};"
        f" medians (and range) of {arguments.rounds} interleaved rounds, medians of their ratios;"
        f" load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after,"
        f" {100 * (stolen - stolen_before) / max(1, ticks - ticks_before):.1f} % of the time stolen by the hypervisor;"
        f" llama.cpp of {commit}, native release build, its default settings{kv}."
    )
    print_tables(arguments, engines, samples, rows, load)
    if arguments.output:
        named = {f"{test}, {threads} threads": measured for (test, threads), measured in samples.items()}
        report = {"machine": load, "tokens_per_second_and_peak_bytes": named, "whole_run_peak_bytes": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
