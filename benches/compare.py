#!/usr/bin/env python3
"""Measures omex beside llama.cpp on the same model file, and prints markdown.

Prefill of 512 tokens and decoding of 128 tokens beside llama-bench with the
same numbers of threads, interleaved round by round so that both meet the same
machine; and the peak memory (VmHWM) of a whole process that fills a context of
2,048 tokens. `benches/compare.py | benches/readme.py speed` puts the tables
into README.md. Needs only Python's standard library and benches/peers.sh.
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
CONTAINER = ROOT / "tests/oracle/evaluate.omex.json"
PREFILL_TOKENS = 512
DECODE_TOKENS = 128
CONTEXT_TOKENS = 2048
MIB = 1 << 20


def words(count: int) -> str:
    """A text of about `count` tokens whose greedy continuation does not end soon."""
    return " ".join(["the"] * count)


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


def omex_report(omex: Path, plan: Path, folder: Path, tokens: int, generate: int, threads: int) -> tuple[dict, int]:
    """The JSON report and the peak resident bytes of one `omex run` on plain text."""
    source = folder / "text.txt"
    source.write_text(words(tokens))
    command = [omex, "run", plan, "--raw", "-i", source, "-n", generate, "-t", threads, "--json"]
    output, peak_bytes = run(command, folder)
    return json.loads(output), peak_bytes


def speeds(arguments: argparse.Namespace, omex: Path, plan: Path, folder: Path) -> dict:
    """Tokens per second: {(test, threads): {engine: [one per round]}}."""
    samples: dict = {}

    def add(test: str, threads: int, engine: str, tokens_per_second: float) -> None:
        samples.setdefault((test, threads), {"omex": [], "llama.cpp": []})[engine].append(tokens_per_second)

    for number in range(arguments.rounds):
        for threads in arguments.threads:
            print(f"round {number + 1} of {arguments.rounds}, {threads} threads", file=sys.stderr)
            report, _ = omex_report(omex, plan, folder, PREFILL_TOKENS, 0, threads)
            add("prefill", threads, "omex", report["prefill_tps"])
            bench = [arguments.llama / "llama-bench", "-m", arguments.model, "-t", threads]
            output, _ = run([*bench, "-p", PREFILL_TOKENS, "-n", 0, "-r", 1, "-o", "json"], folder)
            add("prefill", threads, "llama.cpp", json.loads(output)[0]["avg_ts"])
            report, _ = omex_report(omex, plan, folder, 8, DECODE_TOKENS, threads)
            if report["generated_tokens"] != DECODE_TOKENS:
                sys.exit(f"omex stopped after {report['generated_tokens']} of {DECODE_TOKENS} tokens")
            add("decode", threads, "omex", report["decode_tps"])
            output, _ = run([*bench, "-p", 0, "-n", DECODE_TOKENS, "-r", 1, "-o", "json"], folder)
            add("decode", threads, "llama.cpp", json.loads(output)[0]["avg_ts"])
    return samples


def peaks(arguments: argparse.Namespace, omex: Path, plan: Path, folder: Path) -> list[tuple[str, int | None, int]]:
    """Name, predicted bytes (if any) and measured peak bytes of every engine."""
    threads = max(arguments.threads)
    prompt_tokens = CONTEXT_TOKENS - DECODE_TOKENS
    report, measured = omex_report(omex, plan, folder, prompt_tokens, DECODE_TOKENS, threads)
    rows = [("omex", report["rss_peak_predicted_bytes"], measured)]
    llama = [arguments.llama / "llama-completion", "-m", arguments.model, "-c", CONTEXT_TOKENS]
    llama += ["-f", folder / "text.txt", "-n", DECODE_TOKENS, "-t", threads]
    llama += ["-no-cnv", "--temp", "0", "--ignore-eos"]
    for name, flags in [("llama.cpp", []), ("llama.cpp `--no-repack`", ["--no-repack"])]:
        _, measured = run([*llama, *flags], folder)
        rows.append((name, None, measured))
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


def print_tables(arguments: argparse.Namespace, samples: dict, rows: list, load: str) -> None:
    print(f"| {arguments.model.name} | threads | omex, tokens/s | llama.cpp, tokens/s | omex / llama.cpp |")
    print("|---|---|---|---|---|")
    for (test, threads), engines in sorted(samples.items(), key=lambda item: (item[0][0] != "prefill", item[0][1])):
        tokens = PREFILL_TOKENS if test == "prefill" else DECODE_TOKENS
        medians = {engine: statistics.median(values) for engine, values in engines.items()}
        cells = [
            f"{medians[engine]:.1f} ({min(values):.1f} to {max(values):.1f})" for engine, values in engines.items()
        ]
        ratio = medians["omex"] / medians["llama.cpp"]
        print(f"| {test}, {tokens} tokens | {threads} | {cells[0]} | {cells[1]} | {ratio:.2f} |")
    print()
    print(f"| context of {CONTEXT_TOKENS} tokens, {max(arguments.threads)} threads | peak memory predicted, MiB | measured, MiB |")
    print("|---|---|---|")
    for name, predicted, measured in rows:
        print(f"| {name} | {f'{predicted / MIB:.1f}' if predicted is not None else '-'} | {measured / MIB:.1f} |")
    print()
    print(load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, default=MODEL)
    parser.add_argument("-t", "--threads", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--llama", type=Path, default=ROOT / "target/peers/bin", help="folder of llama.cpp's binaries")
    parser.add_argument("--omex", type=Path, default=ROOT / "target/release/omex")
    parser.add_argument("--plan", type=Path, help="a plan of the same model (default: built here)")
    parser.add_argument("-o", "--output", type=Path, help="write every sample here as JSON")
    arguments = parser.parse_args()
    if arguments.model != MODEL and not arguments.plan:
        parser.error("--model needs a --plan of it")
    for name in ("model", "llama", "omex", "plan"):
        if getattr(arguments, name):
            setattr(arguments, name, getattr(arguments, name).resolve())
    for needed, remedy in [
        (arguments.model, "examples/fetch_model.sh fetches it"),
        (arguments.llama / "llama-bench", "benches/peers.sh builds it"),
        (arguments.omex, "cargo build --release builds it"),
    ]:
        if not needed.exists():
            sys.exit(f"{needed} does not exist; {remedy}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = arguments.plan
        if plan is None:
            plan = folder / "plan.bin"
            run([arguments.omex.with_name("omexc"), "build", CONTAINER, "--target", "host", "-o", plan], folder)
        load_before, (stolen_before, ticks_before) = os.getloadavg()[0], cpu_ticks()
        samples = speeds(arguments, arguments.omex, plan, folder)
        rows = peaks(arguments, arguments.omex, plan, folder)
        stolen, ticks = cpu_ticks()
        bench = json.loads(
            run([arguments.llama / "llama-bench", "-m", arguments.model, "-p", 1, "-n", 0, "-o", "json"], folder)[0]
        )[0]

    load = (
        f"{cpu_name()}, {os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')};"
        f" medians (and range) of {arguments.rounds} interleaved rounds;"
        f" load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after,"
        f" {100 * (stolen - stolen_before) / max(1, ticks - ticks_before):.1f} % of the time stolen by the hypervisor;"
        f" llama.cpp of {bench['build_commit']}, native release build, its default settings."
    )
    print_tables(arguments, samples, rows, load)
    if arguments.output:
        named = {f"{test} {threads}": engines for (test, threads), engines in samples.items()}
        report = {"machine": load, "tokens_per_second": named, "peak_bytes": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
