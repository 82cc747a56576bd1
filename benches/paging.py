#!/usr/bin/env python3
"""Decode speed of models that are larger than the memory they may use.

For each model and each share of its weights that stays resident: builds a plan
for the budget, runs it in a memory cgroup of that size with cold caches, and
prints token times and bytes beside the bound (M - R_max) / bandwidth, where
R_max is the budget without what is not weights and without 16 MiB of slots.
Bytes come from /proc/PID/io, so what the page cache serves does not count.

Disks that are shared or throttled change their speed within seconds, so the
bandwidth is measured during the run: after every second token the process is
stopped, the plan's own reads are made for a moment, as many in flight, and the
process goes on. The token that was stopped does not count; those between two
stops do, beside the mean of the measurements.

    cargo build --release
    target/release/omexc synth --shape llama-3.2-1b --type Q8_0 --pure -o 1b-q8.gguf
    sudo benches/paging.py 1b-q8.gguf [--shares 0.75,0.5,0.25,0.1] [--llama DIR]

Other comparisons instead, one row for each model and share:

    --windows 8      a document of 8 windows, together as the compiler chooses
                     and one at a time
    --speculation    edits of code, with and without drafts (a model that edits,
                     not one of random weights); runs that end in a loop are left out
    --whole          no budget: a page plan that reads nothing beside plans that
                     map the weights or read all of them at load

Needs root for the cgroup (v1 or v2) and for dropping caches. --disk N makes the
disk as slow as N MB/s for everything that runs (cgroup v1). --llama names a
folder with llama.cpp's llama-bench: it then runs too, in a cgroup of the same
size, in every load mode and with and without repacking; the fastest counts.
Prints Markdown: `benches/paging.py ... | benches/readme.py paging`.
"""

import argparse
import atexit
import itertools
import json
import mmap
import os
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time

MIB = 1 << 20
SLOTS_BYTES = 16 * MIB
BLOCK_BYTES = 4096
HUGE_BYTES = 2 * MIB
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


def throttle(path, bytes_per_s):
    """Lets this process and those that it starts read no faster from the disk
    that has this file."""
    number = os.stat(path).st_dev
    device = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if (device / "partition").exists():
        device = device.resolve().parent
    group = CGROUP / "blkio" / f"omex-paging-{os.getpid()}"
    group.mkdir()
    name = (device / "dev").read_text().strip()
    (group / "blkio.throttle.read_bps_device").write_text(f"{name} {bytes_per_s}")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    atexit.register(lambda: leave(group))


def leave(group):
    (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


class Disk:
    """The reads that a plan makes in a pass, made by nobody but us.

    They are the plan's own, in its order, since what is read again and again
    may be cached behind the disk, and into slots in turn: a read into scattered
    small pages takes more requests, and one into memory that caches still hold
    takes less time.
    """

    def __init__(self, path, reads):
        self.path, self.reads, self.next = path, reads, 0
        longest = max(size for _, size in reads)
        self.slots = max(SLOTS_BYTES // longest, DEPTH)
        self.slot_bytes = longest
        # Whole huge pages: what is left over would be small ones.
        self.buffer_bytes = -(-self.slots * longest // HUGE_BYTES) * HUGE_BYTES

    def bandwidth(self, seconds=0.3):
        """Bytes per second."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        lock, total, slot = threading.Lock(), 0, 0
        buffer = mmap.mmap(-1, self.buffer_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(buffer), BLOCK_BYTES):
            buffer[at] = 0
        slots = memoryview(buffer)

        def work():
            nonlocal total, slot
            while time.monotonic() < end:
                with lock:
                    offset, size = self.reads[self.next]
                    self.next = (self.next + 1) % len(self.reads)
                    at = slot * self.slot_bytes
                    slot = (slot + 1) % self.slots
                read = os.preadv(fd, [slots[at : at + size]], offset)
                with lock:
                    total += read

        began = time.monotonic()
        end = began + seconds
        threads = [threading.Thread(target=work) for _ in range(DEPTH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(fd)
        return total / (time.monotonic() - began)


def read_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def container(folder, nodes, **fields):
    """A task whose graph is `nodes`, the first of which begins."""
    path = folder / "paging.omex.json"
    graph = {"entry_node": nodes[0]["id"], "nodes": nodes}
    task = {"omex_version": "0.3.0", "task_id": "paging", "execution_graph": graph}
    path.write_text(json.dumps(task | fields))
    return path


def chat_container(folder, context, tokens):
    source = {"name": "message", "path": "-"}
    answer = {"id": "answer", "type": "inference_slices", "input": source}
    limits = {"max_sequence_tokens": context}
    return container(
        folder, [answer], task_type="chat", max_tokens=tokens, model_requirements=limits
    )


def windows_container(folder, size, tokens):
    source = {"name": "document", "path": "document.txt"}
    cut = {"id": "cut", "type": "token_chunk_parse", "input": source, "output": "chunks"}
    cut |= {"window_size": size, "stride": size}
    answer = {"id": "answer", "type": "inference_slices", "input": "chunks"}
    return container(folder, [cut, answer], task_type="summarization", max_tokens=tokens)


class Omex:
    def __init__(self, args, model, folder):
        self.bin = pathlib.Path(args.bin)
        self.folder = folder
        self.env = dict(os.environ, OMEX_HOME=str(args.home))
        self.home = pathlib.Path(args.home)
        self.args, self.model = args, model
        self.container = chat_container(folder, args.context, args.tokens)

    def build(self, *flags):
        plan = self.folder / "plan.bin"
        command = [self.bin / "omexc", "build", self.container, "-m", self.model]
        command += ["--any-path", "--emit", "plan", "-o", plan, *flags]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        self.text = done.stdout
        report = subprocess.run(
            [self.bin / "omex", "debug", "memory", "report", plan, "--json"],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return plan, json.loads(report.stdout)

    def disk(self):
        """What the plan that was built last reads in a pass."""
        pages = re.findall(r"^page\{file_offset=(\d+), bytes=(\d+)", self.text, re.MULTILINE)
        pages = [(int(offset), int(size)) for offset, size in pages]
        reads = []
        for read in re.findall(r"\((\d+(?:, [^,()]+){6})\)", self.text.split("reads=[")[1]):
            first, count = map(int, read.split(", ")[:2])
            offset, _ = pages[first]
            end = sum(pages[first + count - 1])
            reads.append((offset, -(-(end - offset) // BLOCK_BYTES) * BLOCK_BYTES))
        digest = re.search(r'packed_digest="(\w+)"', self.text)[1]
        [path] = [f for f in self.home.rglob("*.omex") if digest in f.name]
        return Disk(path, reads)

    def budget(self, share, *flags):
        """Bytes to have for so much of the weights to stay, and all weights."""
        _, whole = self.build("--weights", "paged", *flags)
        items = {item["kind"]: item["bytes"] for item in whole["items"]}
        weights = items["resident pages"]
        others = whole["charge_peak_bytes"] - weights
        return int(others + SLOTS_BYTES + share * weights), weights

    def command(self, plan, *flags):
        reader = ["--io-uring"] if self.args.io_uring else []
        return [self.bin / "omex", "run", plan, "-t", str(self.args.threads), *reader, *flags]

    def start(self, plan, *flags, **how):
        """A run that tells when its tokens come."""
        prompt = ["-p", "Once upon a time there was", "--no-speculation"]
        command = self.command(plan, *prompt, "--events", "jsonl", *flags)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.env, **pipes, **how)

    def run(self, plan, limit_bytes):
        """Seconds and bytes read of each token that counts, the bandwidth
        meanwhile, and the peak of the charge."""
        disk = self.disk()
        drop_caches()
        group = Cgroup(limit_bytes)
        process = self.start(plan, preexec_fn=group.enter)
        tokens, speeds, before, counts = [], [], None, True
        for at in token_times(process):
            now = (at, read_bytes(process.pid))
            if before and counts:
                tokens.append((now[0] - before[0], now[1] - before[1]))
                process.send_signal(signal.SIGSTOP)
                speeds.append(disk.bandwidth())
                process.send_signal(signal.SIGCONT)
            counts = not (before and counts)
            before = now
        process.wait()
        peak = group.peak_bytes()
        group.remove()
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}: {process.stderr.read().decode()}")
        return tokens, statistics.mean(speeds), peak

    def measured(self, plan, limit_bytes, *flags):
        """The report of a run, its seconds, and the peak of its charge."""
        drop_caches()
        group = Cgroup(limit_bytes)
        done = subprocess.run(
            self.command(plan, "--json", *flags),
            env=self.env,
            capture_output=True,
            text=True,
            preexec_fn=group.enter,
        )
        peak = group.peak_bytes()
        group.remove()
        if done.returncode:
            raise SystemExit(f"exit {done.returncode}: {done.stderr}")
        report = json.loads(done.stdout)
        return report, report["seconds"], peak


def token_times(process):
    """When each token of a run came."""
    for line in process.stdout:
        if json.loads(line).get("event") == "token":
            yield time.monotonic()


def llama(args, model, limit_bytes):
    """Tokens per second of the fastest way that ends, and which it is."""
    best = (0.0, "no mode ended")
    for mode in ("mmap", "dio", "none"):
        for repack in ("0", "1"):
            drop_caches()
            group = Cgroup(limit_bytes)
            command = [pathlib.Path(args.llama) / "llama-bench", "-m", model, "-p", "0", "-n", "3"]
            command += ["-r", "1", "-t", str(args.threads), "-lm", mode, "--repack", repack]
            # Its warm-up is a token, after which the caches hold what they can.
            command += ["-o", "json"]
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


def compare_windows(args, omex, share):
    """All windows together, and one at a time."""
    size = 64
    omex.container = windows_container(omex.folder, size, args.tokens)
    budget, _ = omex.budget(share, "--parallel", "1")
    flags = ["--ram", f"{budget // MIB}MiB", "--weights", "paged"]
    text = document(args, omex.model, omex.folder, args.windows * size)
    results = []
    for more in ([], ["--parallel", "1"]):
        plan, _ = omex.build(*flags, *more)
        speed = omex.disk().bandwidth()
        given = ["-i", f"document={text}", "--no-speculation"]
        results.append((*omex.measured(plan, budget, *given), speed))
    (together, together_s, peak, speed), (alone, alone_s, _, alone_speed) = results
    if together["token_ids"] != alone["token_ids"]:
        raise SystemExit("the tokens differ")
    rate = [r["generated_tokens"] / s for r, s in ((together, together_s), (alone, alone_s))]
    return [
        omex.model.stem,
        f"{share:g}",
        f"{budget / MIB:.0f}",
        f"{peak / MIB:.0f}",
        f"{alone_speed / 1e9:.2f} / {speed / 1e9:.2f}",
        alone["generated_tokens"],
        f"{alone['bytes_read'] / 1e9:.1f}",
        f"{together['bytes_read'] / 1e9:.1f}",
        f"{rate[1]:.2f}",
        f"{rate[0]:.2f}",
        f"{rate[0] / rate[1]:.2f}",
    ]


WINDOWS_HEADS = [
    "model",
    "weights that stay",
    "RAM, MiB",
    "peak, MiB",
    "disk, GB/s",
    "tokens",
    "GB read, one at a time",
    "together",
    "tokens/s, one at a time",
    "together",
    "together / one at a time",
]

CODE = """def read_scores(path):
    scores = {}
    with open(path) as file:
        for line in file:
            name, score = line.strip().split(",")
            scores[name] = int(score)
    return scores


def best(scores, count):
    names = sorted(scores, key=scores.get, reverse=True)
    return [(name, scores[name]) for name in names[:count]]


def report(path, count=3):
    scores = read_scores(path)
    for place, (name, score) in enumerate(best(scores, count), 1):
        print(place, name, score)
"""

EDITS = [
    "Rename the variable `scores` to `points` everywhere",
    "Add a docstring to every function",
    "Change the default of `count` from 3 to 10",
    "Split lines at semicolons instead of commas",
    "Add type annotations to every function",
    "Sort in ascending order instead of descending",
]


def loops(ids):
    """Whether the tokens end in something that repeats at least three times."""
    periods = range(1, len(ids) // 3 + 1)
    return any(ids[-p:] == ids[-2 * p : -p] == ids[-3 * p : -2 * p] for p in periods)


def compare_speculation(args, omex, share):
    """Edits of code with and without drafts."""
    omex.container = chat_container(omex.folder, 1024, 256)
    budget, _ = omex.budget(share)
    plan, _ = omex.build("--ram", f"{budget // MIB}MiB", "--weights", "paged")
    sums = {True: [0, 0.0], False: [0, 0.0]}
    drafted = accepted = looped = used = 0
    for edit in EDITS:
        prompt = f"{edit}. Answer with the whole changed file.\n\n```python\n{CODE}```"
        results = {}
        for drafts in (True, False):
            given = ["-p", prompt] + ([] if drafts else ["--no-speculation"])
            results[drafts], _, peak = omex.measured(plan, budget, *given)
        if results[True]["token_ids"] != results[False]["token_ids"]:
            raise SystemExit("the tokens differ")
        # The last token may end the text.
        if loops(results[True]["token_ids"][:-1]) or loops(results[True]["token_ids"]):
            looped += 1
            continue
        used += 1
        for drafts, report in results.items():
            sums[drafts][0] += report["generated_tokens"]
            sums[drafts][1] += report["generated_tokens"] / report["decode_tps"]
        drafted += results[True]["drafted_tokens"]
        accepted += results[True]["accepted_tokens"]
    if not used:
        raise SystemExit("every answer ends in a loop")
    with_drafts, without = (tokens / seconds for tokens, seconds in (sums[True], sums[False]))
    return [
        omex.model.stem,
        f"{share:g}",
        f"{budget / MIB:.0f}",
        f"{peak / MIB:.0f}",
        f"{used} ({looped})",
        sums[True][0],
        f"{accepted} of {drafted}",
        f"{without:.2f}",
        f"{with_drafts:.2f}",
        f"{with_drafts / without:.2f}",
    ]


SPECULATION_HEADS = [
    "model",
    "weights that stay",
    "RAM, MiB",
    "peak, MiB",
    "edits (loops left out)",
    "tokens",
    "drafts accepted",
    "tokens/s without drafts",
    "with",
    "with / without",
]


WHOLE_SOURCES = ["mapped", "read", "paged"]
WHOLE_ROUNDS = 9
TURNS = 15
TURN_TOKENS = 8


def compare_whole(args, omex, share):
    """Page plans that read nothing, and plans without pages: all run at once, but
    in turns of a few tokens, since speed changes within seconds and from one
    process to the next."""
    plans = []
    for source in WHOLE_SOURCES:
        plan, _ = omex.build("--weights", source)
        plans.append(plan.rename(omex.folder / f"{source}.bin"))
    rates = [[] for _ in plans]
    for n in range(WHOLE_ROUNDS):
        runs = []
        for plan in plans:
            run = omex.start(plan, "-n", str((TURNS + 1) * TURN_TOKENS))
            runs.append((run, token_times(run)))
            turn(*runs[-1])
        seconds = [0.0 for _ in runs]
        for t in range(TURNS):
            for i in range(len(runs)):
                i = (i + t + n) % len(runs)
                seconds[i] += turn(*runs[i])
        for run, _ in runs:
            run.kill()
            run.communicate()
        for rate, spent in zip(rates, seconds):
            rate.append(TURNS * (TURN_TOKENS - 2) / spent)
    row = [omex.model.stem, *(f"{statistics.median(rate):.2f}" for rate in rates)]
    for others in rates[:-1]:
        ratios = sorted(paged / other for paged, other in zip(rates[-1], others))
        row.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    return row


def turn(run, times):
    """Lets a run that is stopped go on for a few tokens. Returns the seconds of
    those behind the second: the first may have been there, and the next begun."""
    run.send_signal(signal.SIGCONT)
    came = list(itertools.islice(times, TURN_TOKENS))
    run.send_signal(signal.SIGSTOP)
    if len(came) < TURN_TOKENS:
        raise SystemExit("the text ended too soon")
    return came[-1] - came[1]


WHOLE_HEADS = [
    "model",
    "mapped, tokens/s",
    "all weights read at load",
    "page plan",
    "page plan / mapped (range)",
    "page plan / all read (range)",
]


def compare_bound(args, omex, share):
    """Token times beside what the disk allows."""
    ubatch = ["--ubatch-size", str(args.context // 4)]
    budget, weights = omex.budget(share, *ubatch)
    plan, report = omex.build("--ram", f"{budget // MIB}MiB", "--weights", "paged", *ubatch)
    tokens, speed, peak = omex.run(plan, budget)
    items = {item["kind"]: item["bytes"] for item in report["items"]}
    not_weights = report["charge_peak_bytes"]
    not_weights -= items.get("resident pages", 0) + items.get("page slots", 0)
    r_max = budget - not_weights - SLOTS_BYTES
    bound = speed / max(weights - r_max, 1)
    gaps = sorted(seconds for seconds, _ in tokens)
    mean = statistics.mean(gaps)
    token_bytes = statistics.mean(read for _, read in tokens)
    other = ""
    if args.llama and f"{share:g}" in args.llama_shares.split(","):
        rate, how = llama(args, omex.model, budget)
        other = f"{rate:.2f} ({how}): {1 / mean / rate:.1f}x" if rate else how
    return [
        omex.model.stem,
        f"{share:g}",
        f"{budget / MIB:.0f}",
        f"{peak / MIB:.0f}",
        f"{speed / 1e9:.2f}",
        f"{mean:.3f}",
        f"{gaps[int(0.95 * (len(gaps) - 1))]:.3f}",
        f"{gaps[-1]:.3f}",
        f"{token_bytes / 1e6:.1f}",
        f"{1 / mean:.2f}",
        f"{bound:.2f}",
        f"{100 / mean / bound:.1f}",
        other,
    ]


BOUND_HEADS = [
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--shares", default="0.75,0.5,0.25,0.1")
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--home", default=None, help="folder of packed models")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--io-uring", action="store_true", help="read without I/O threads")
    parser.add_argument("--llama", help="folder of llama.cpp's binaries")
    parser.add_argument("--llama-shares", default="0.5")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--disk", type=float, help="MB/s to slow the disk down to")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--windows", type=int, help="windows of a document, instead")
    instead.add_argument("--speculation", action="store_true", help="drafts, instead")
    instead.add_argument("--whole", action="store_true", help="plans that fit, instead")
    args = parser.parse_args()
    if args.windows:
        compare, heads = compare_windows, WINDOWS_HEADS
    elif args.speculation:
        compare, heads = compare_speculation, SPECULATION_HEADS
    elif args.whole:
        compare, heads = compare_whole, WHOLE_HEADS
    else:
        compare, heads = compare_bound, BOUND_HEADS
    shares = [1.0] if args.whole else list(map(float, args.shares.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        args.home = args.home or folder
        if args.disk:
            throttle(args.home, int(args.disk * 1e6))
        print("| " + " | ".join(heads) + " |")
        print("|" + "---|" * len(heads))
        for model in args.models:
            omex = Omex(args, model.resolve(), pathlib.Path(folder))
            for share in shares:
                row = compare(args, omex, share)
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
