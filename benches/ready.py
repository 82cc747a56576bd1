#!/usr/bin/env python3
"""Measures how soon omex is ready, beside llama.cpp on the same model file, and prints markdown.

Ready is the time from the start of the process to its first prompt: with omex until it
says that it evaluates one (`--events jsonl`), with llama.cpp's llama-completion until its
first token, without the time that it says the prompt took. The goal is 50 ms for weights
that are mapped and cached, and for weights that are read from disk besides what the disk
takes for their bytes, which is measured between the runs.

The commands of all engines take turns. Each runs twice in a row and the second run counts:
the first brings programs and files to the page cache, and memory that a virtual machine
had given back to its host. Weights that are read are taken out of the page cache before.

`benches/ready.py | benches/readme.py ready` puts the table into README.md. Needs only
Python's standard library and benches/peers.sh.
"""

import argparse
import json
import mmap
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from compare import CONTAINER, ROOT, cpu_name, cpu_ticks, numbers, run

MODELS = [ROOT / "target/models" / name for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf")]
GOAL_MS = 50
TEXT = "The capital of France is a city that"
# How weights come to memory, and the flags of `omexc build` for it.
SOURCES = {"mapped": [], "read": ["--ram", "8GiB"]}
BLOCK_BYTES = 1 << 20


def timed(command: list, marks: list[bytes]) -> tuple[list[float], str]:
    """Milliseconds from the start of a command until its output contains each mark, and its standard error."""
    times: dict = {}
    with tempfile.TemporaryFile() as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
        output = b""
        while more := os.read(process.stdout.fileno(), 1 << 16):
            output += more
            now = 1e3 * (time.perf_counter() - began)
            for mark in marks:
                if mark in output:
                    times.setdefault(mark, now)
        process.stdout.close()
        code = process.wait()
        stderr.seek(0)
        message = stderr.read().decode(errors="replace")
    if code != 0 or len(times) < len(marks):
        sys.exit(f"{command[0]} ended with {code}:\n{message}")
    return [times[mark] for mark in marks], message


def omex(arguments: argparse.Namespace, plan: Path, text: Path) -> tuple[float, float]:
    """Milliseconds until omex is ready and until its first token."""
    command = [arguments.omex, "run", plan, "--raw", "-i", text, "-n", 1, "-t", arguments.threads, "--events", "jsonl"]
    (ready, token), _ = timed(command, [b'"event":"prompt"', b'"event":"token"'])
    return ready, token


def llama(arguments: argparse.Namespace, model: Path, context: int, text: Path) -> tuple[float, float]:
    """Milliseconds until llama.cpp is ready and until its first token."""
    command = [arguments.llama / "llama-completion", "-m", model, "-c", context, "-f", text, "-n", 1]
    command += ["-t", arguments.threads, "-no-cnv", "--temp", "0", "--no-display-prompt", "--no-warmup", "--perf"]
    (token,), message = timed(command, [b""])
    prompt_ms = float(re.search(r"prompt eval time =\s+([\d.]+) ms", message).group(1))
    return token - prompt_ms, token


def forget(path: Path) -> None:
    """Takes a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_ms(path: Path, threads: int) -> float:
    """Milliseconds that this many threads take to read a file past the page cache."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    offsets = iter(range(0, os.fstat(file).st_size, BLOCK_BYTES))
    lock = threading.Lock()

    def read() -> None:
        buffer = mmap.mmap(-1, BLOCK_BYTES)
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            os.preadv(file, [buffer], offset)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    began = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.close(file)
    return 1e3 * (time.perf_counter() - began)


def build(arguments: argparse.Namespace, model: Path, context: int, source: str, plan: Path) -> tuple[Path, Path]:
    """Builds a plan; returns it and its packed model."""
    container = plan.with_suffix(".omex.json")
    container.write_text(json.dumps(CONTAINER | {"model_requirements": {"max_sequence_tokens": context}}))
    command = [arguments.omex.with_name("omexc"), "build", container, "-m", model, "--any-path"]
    run([*command, "--target", "host", *SOURCES[source], "-o", plan], plan.parent)
    report = json.loads(run([arguments.omex, "inspect", "--json", plan], plan.parent)[0])
    if report["weights"] != source:
        sys.exit(f"the plan of {model.name} has its weights {report['weights']}, not {source}")
    return plan, plan.parent / "cache" / f"{report['packed_digest']}.omex"


def measure(arguments: argparse.Namespace, plan: Path, weights: Path, source: str, text: Path) -> tuple:
    """The goal, and what omex takes."""
    if source == "mapped":
        omex(arguments, plan, text)
        return GOAL_MS, *omex(arguments, plan, text)
    forget(weights)
    omex(arguments, plan, text)
    return GOAL_MS + disk_ms(weights, arguments.threads), *omex(arguments, plan, text)


def milliseconds(values: list) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, action="append")
    parser.add_argument("-c", "--context", type=numbers, default=[2048, 8192])
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--llama", type=Path, default=ROOT / "target/peers/bin", help="folder of llama.cpp's binaries")
    parser.add_argument("--omex", type=Path, default=ROOT / "target/release/omex")
    arguments = parser.parse_args()
    for name in ("llama", "omex"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    models = [path.resolve() for path in arguments.model or MODELS]
    needed = [(path, "examples/fetch_model.sh fetches it") for path in models]
    needed += [(arguments.omex, "cargo build --release builds it")]
    needed += [(arguments.llama / "llama-completion", "benches/peers.sh builds it")]
    for path, remedy in needed:
        if not path.exists():
            sys.exit(f"{path} does not exist; {remedy}")

    # Beside the programs: what is read past the page cache has to lie on a disk.
    with tempfile.TemporaryDirectory(dir=arguments.omex.parent) as name:
        folder = Path(name)
        os.environ["OMEX_HOME"] = name
        text = folder / "text.txt"
        text.write_text(TEXT)
        cases = [(model, context, source) for model in models for context in arguments.context for source in SOURCES]
        plans = {case: build(arguments, *case, folder / f"{i}.bin") for i, case in enumerate(cases)}
        stolen_before, ticks_before = cpu_ticks()
        samples: dict = {case: [] for case in cases}
        for number in range(arguments.rounds):
            for model, context, source in cases:
                print(f"round {number + 1} of {arguments.rounds}: {model.name}, {context}, {source}", file=sys.stderr)
                plan, weights = plans[model, context, source]
                sample = measure(arguments, plan, weights, source, text)
                for _ in range(2):
                    peer = llama(arguments, model, context, text)
                samples[model, context, source].append((*sample, *peer))
        stolen, ticks = cpu_ticks()
    print("| model | context | weights | goal, ms | omex ready, ms | llama.cpp | omex's first token, ms | llama.cpp's |")
    print("|---" * 8 + "|")
    for (model, context, source), rows in samples.items():
        goals, *times = zip(*rows)
        ready, token, llama_ready, llama_token = map(milliseconds, times)
        cells = [model.name, str(context), source, f"{statistics.median(goals):.0f}", ready, llama_ready, token, llama_token]
        print(f"| {' | '.join(cells)} |")
    print(
        f"\n{cpu_name()}, {os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')};"
        f" medians (and range) of {arguments.rounds} interleaved rounds, {arguments.threads} threads;"
        f" {100 * (stolen - stolen_before) / max(1, ticks - ticks_before):.1f} % of the time stolen by the hypervisor;"
        " a prompt of 8 or 9 tokens; llama.cpp maps its file, without its warm-up pass."
    )


if __name__ == "__main__":
    main()
