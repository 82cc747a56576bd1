#!/usr/bin/env python3
"""Decode speed of models that are larger than the memory they may use.

For each model and each share of its weights that stays resident: builds a plan
for the budget, runs it in a memory cgroup of that size with cold caches, and
prints token times and bytes beside the bound (M - R_max) / bandwidth, where
R_max is the budget without what is not weights and without 16 MiB of slots.
The bandwidth is measured just before each run, on the same file, with reads of
the same size and number in flight. Bytes come from /proc/PID/io, so what the
page cache serves does not count.

    cargo build --release
    target/release/omexc synth --shape llama-3.2-1b --type Q8_0 --pure -o 1b-q8.gguf
    sudo benches/paging.py 1b-q8.gguf [--shares 0.75,0.5,0.25,0.1] [--llama DIR]

    sudo benches/paging.py 1b-q8.gguf --windows 8 --shares 0.25

With --windows it runs a document of that many windows instead, all windows
together as the compiler chooses and one at a time, and compares both.

Needs root for the cgroup (v1 or v2) and for dropping caches. --llama names a
folder with llama.cpp's llama-bench: it then runs too, in a cgroup of the same
size, in every load mode and with and without repacking; the fastest counts.
Prints Markdown: `benches/paging.py ... | benches/readme.py paging`.
"""

import argparse
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time

MIB = 1 << 20
SLOTS_BYTES = 16 * MIB
READ_BYTES = 2 * MIB
DEPTH = 4
CGROUP = pathlib.Path("/sys/fs/cgroup")


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


class Cgroup:
    """A memory cgroup of a size; processes started with `enter` are in it."""

    def __init__(self, limit_bytes):
        self.v1 = (CGROUP / "memory").is_dir()
        parent = CGROUP / "memory" if self.v1 else CGROUP
        self.path = parent / f"omex-paging-{os.getpid()}"
        self.path.mkdir(exist_ok=True)
        limit = "memory.limit_in_bytes" if self.v1 else "memory.max"
        (self.path / limit).write_text(str(limit_bytes))
        if not self.v1:
            (self.path / "memory.swap.max").write_text("0")

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self):
        name = "memory.max_usage_in_bytes" if self.v1 else "memory.peak"
        return int((self.path / name).read_text())

    def remove(self):
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)


def bandwidth(path, seconds=1.0):
    """Bytes per second of direct reads as the pager makes them."""
    size = os.path.getsize(path) // READ_BYTES
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    lock, state = threading.Lock(), {"next": 0, "bytes": 0}
    end = time.monotonic() + seconds

    def work():
        buffer = mmap.mmap(-1, READ_BYTES)
        while time.monotonic() < end:
            with lock:
                index = state["next"] % size
                state["next"] += 1
            read = os.preadv(fd, [buffer], index * READ_BYTES)
            with lock:
                state["bytes"] += read

    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    return state["bytes"] / (time.monotonic() - began)


def read_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def container(folder, context, tokens):
    path = folder / "paging.omex.json"
    task = {
        "omex_version": "0.3.0",
        "task_id": "paging",
        "task_type": "chat",
        "model_requirements": {"max_sequence_tokens": context},
        "max_tokens": tokens,
        "execution_graph": {
            "entry_node": "answer",
            "nodes": [
                {
                    "id": "answer",
                    "type": "inference_slices",
                    "input": {"name": "message", "path": "-"},
                }
            ],
        },
    }
    path.write_text(json.dumps(task))
    return path


class Omex:
    def __init__(self, args, model, folder):
        self.bin = pathlib.Path(args.bin)
        self.folder = folder
        self.env = dict(os.environ, OMEX_HOME=str(args.home))
        self.home = pathlib.Path(args.home)
        self.args, self.model = args, model
        self.container = container(folder, args.context, args.tokens)

    def build(self, *flags):
        plan = self.folder / "plan.bin"
        command = [self.bin / "omexc", "build", self.container, "-m", self.model]
        command += ["--any-path", "--json", "-o", plan, *flags]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        report = subprocess.run(
            [self.bin / "omex", "debug", "memory", "report", plan, "--json"],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return plan, json.loads(report.stdout)

    def packed(self, plan):
        """The plan's packed model: the largest file that its run opens."""
        files = list(self.home.rglob("*.omex"))
        return max(files, key=lambda f: f.stat().st_mtime)

    def run(self, plan, limit_bytes):
        """Seconds of each token after the first, bytes read for them, peak bytes."""
        drop_caches()
        group = Cgroup(limit_bytes)
        command = [self.bin / "omex", "run", plan, "-p", "Once upon a time there was"]
        command += ["--events", "jsonl", "--no-speculation", "-t", str(self.args.threads)]
        process = subprocess.Popen(
            command,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=group.enter,
        )
        times, first_bytes, last_bytes = [], 0, 0
        for line in process.stdout:
            if json.loads(line).get("event") == "token":
                times.append(time.monotonic())
                last_bytes = read_bytes(process.pid)
                first_bytes = first_bytes or last_bytes
        process.wait()
        peak = group.peak_bytes()
        group.remove()
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}: {process.stderr.read().decode()}")
        gaps = [b - a for a, b in zip(times, times[1:])]
        return gaps, (last_bytes - first_bytes) / max(len(gaps), 1), peak


def llama(args, model, limit_bytes):
    """Tokens per second of the fastest way that ends, and which it is."""
    best = (0.0, "no mode ended")
    for mode in ("mmap", "dio", "none"):
        for repack in ("0", "1"):
            drop_caches()
            group = Cgroup(limit_bytes)
            command = [pathlib.Path(args.llama) / "llama-bench", "-m", model, "-p", "0", "-n", "3"]
            command += ["-r", "1", "-t", str(args.threads), "-lm", mode, "--repack", repack]
            command += ["--no-warmup", "-o", "json"]
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    preexec_fn=group.enter,
                    timeout=args.timeout,
                )
                if done.returncode == 0:
                    rate = json.loads(done.stdout)[0]["avg_ts"]
                    best = max(best, (rate, f"{mode}, repack {repack}"))
            except subprocess.TimeoutExpired:
                pass
            finally:
                group.remove()
    return best


def document(args, model, folder, tokens):
    """A text of about so many tokens, at least."""
    words = "the of and to in is that for it as was with on be at by this from".split()
    path = folder / "document.txt"

    def write(count):
        path.write_text(" ".join(words[i * i % len(words)] for i in range(count)))

    write(1000)
    command = [pathlib.Path(args.bin) / "omex", "tokenize", model, "-f", path, "--ids"]
    ids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    write(tokens * 1000 // len(ids))
    return path


def windows_container(folder, size, tokens):
    path = folder / "windows.omex.json"
    task = {
        "omex_version": "0.3.0",
        "task_id": "windows",
        "task_type": "summarization",
        "max_tokens": tokens,
        "execution_graph": {
            "entry_node": "cut",
            "nodes": [
                {
                    "id": "cut",
                    "type": "token_chunk_parse",
                    "input": {"name": "document", "path": "document.txt"},
                    "output": "chunks",
                    "window_size": size,
                    "stride": size,
                },
                {"id": "answer", "type": "inference_slices", "input": "chunks"},
            ],
        },
    }
    path.write_text(json.dumps(task))
    return path


def compare_windows(args, omex, model, share):
    """One row: all windows together, and one at a time."""
    size, tokens = 64, args.tokens
    omex.container = windows_container(omex.folder, size, tokens)
    _, whole = omex.build("--weights", "paged", "--parallel", "1")
    items = {item["kind"]: item["bytes"] for item in whole["items"]}
    weights = items["resident pages"]
    budget = int(whole["charge_peak_bytes"] - weights + SLOTS_BYTES + share * weights)
    flags = ["--ram", f"{budget // MIB}MiB", "--weights", "paged"]
    text = document(args, model, omex.folder, args.windows * size)
    results = []
    for more in ([], ["--parallel", "1"]):
        plan, _ = omex.build(*flags, *more)
        speed = bandwidth(omex.packed(plan))
        drop_caches()
        group = Cgroup(budget + args.slack)
        command = [omex.bin / "omex", "run", plan, "-i", f"document={text}", "--json"]
        command += ["--no-speculation", "-t", str(args.threads)]
        done = subprocess.run(
            command, env=omex.env, capture_output=True, text=True, preexec_fn=group.enter
        )
        peak = group.peak_bytes()
        group.remove()
        if done.returncode:
            raise SystemExit(f"exit {done.returncode}: {done.stderr}")
        report = json.loads(done.stdout)
        seconds = report["prompt_tokens"] / report["prefill_tps"]
        seconds += report["generated_tokens"] / report["decode_tps"]
        results.append((report, seconds, peak, speed))
    (together, together_s, peak, speed), (alone, alone_s, _, alone_speed) = results
    if together["token_ids"] != alone["token_ids"]:
        raise SystemExit("the tokens differ")
    rate = [r["generated_tokens"] / s for r, s in ((together, together_s), (alone, alone_s))]
    print(
        f"| {model.stem} | {share:g} | {budget / MIB:.0f} | {peak / MIB:.0f}"
        f" | {alone_speed / 1e9:.2f} / {speed / 1e9:.2f} | {alone['generated_tokens']}"
        f" | {alone['bytes_read'] / 1e9:.1f} | {together['bytes_read'] / 1e9:.1f}"
        f" | {rate[1]:.2f} | {rate[0]:.2f} | {rate[0] / rate[1]:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--shares", default="0.75,0.5,0.25,0.1")
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--home", default=None, help="folder of packed models")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", help="folder of llama.cpp's binaries")
    parser.add_argument("--llama-shares", default="0.5")
    parser.add_argument("--slack", type=int, default=0, help="bytes beyond the budget")
    parser.add_argument("--windows", type=int, help="windows of a document, instead")
    parser.add_argument("--timeout", type=float, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.home = args.home or folder
        heads = [
            "model",
            "weights that stay",
            "RAM, MiB",
            "peak, MiB",
            "disk, GB/s",
            "token: mean, s",
            "p95",
            "worst",
            "MB read per token",
            "tokens/s",
            "bound",
            "% of the bound",
            "llama.cpp, tokens/s",
        ]
        if args.windows:
            heads = [
                *heads[:4],
                "disk, GB/s",
                "tokens",
                "GB read, one at a time",
                "together",
                "tokens/s, one at a time",
                "together",
                "together / one at a time",
            ]
        print("| " + " | ".join(heads) + " |")
        print("|" + "---|" * len(heads))
        for model in args.models:
            omex = Omex(args, model.resolve(), pathlib.Path(folder))
            if args.windows:
                for share in map(float, args.shares.split(",")):
                    compare_windows(args, omex, model, share)
                continue
            _, whole = omex.build("--weights", "paged", "--ubatch-size", str(args.context // 4))
            items = {item["kind"]: item["bytes"] for item in whole["items"]}
            weights = items["resident pages"]
            others = whole["charge_peak_bytes"] - weights
            for share in map(float, args.shares.split(",")):
                budget = int(others + SLOTS_BYTES + share * weights)
                flags = ["--ram", f"{budget // MIB}MiB", "--weights", "paged"]
                flags += ["--ubatch-size", str(args.context // 4)]
                plan, report = omex.build(*flags)
                speed = bandwidth(omex.packed(plan))
                gaps, token_bytes, peak = omex.run(plan, budget + args.slack)
                speed = (speed + bandwidth(omex.packed(plan))) / 2
                items = {item["kind"]: item["bytes"] for item in report["items"]}
                not_weights = report["charge_peak_bytes"]
                not_weights -= items.get("resident pages", 0) + items.get("page slots", 0)
                r_max = budget - not_weights - SLOTS_BYTES
                bound = speed / max(weights - r_max, 1)
                mean = statistics.mean(gaps)
                p95 = sorted(gaps)[int(0.95 * (len(gaps) - 1))]
                other = ""
                if args.llama and f"{share:g}" in args.llama_shares.split(","):
                    rate, how = llama(args, model, budget)
                    other = f"{rate:.2f} ({how}): {1 / mean / rate:.1f}x" if rate else how
                print(
                    f"| {model.stem} | {share:g} | {budget / MIB:.0f} | {peak / MIB:.0f}"
                    f" | {speed / 1e9:.2f} | {mean:.3f} | {p95:.3f} | {max(gaps):.3f}"
                    f" | {token_bytes / 1e6:.1f} | {1 / mean:.2f} | {bound:.2f}"
                    f" | {100 / mean / bound:.1f} | {other} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
