#!/usr/bin/env python3
"""Counts what kernels execute on the CPUs of a Pi 5 and a Pi 4, beside llama.cpp.

Prints a table for README.md: `benches/pi_costs.py | benches/readme.py pi`.

qemu logs every translated block and every execution of one, so the counts are
exact; they say nothing about time. The code of omex is what `omexc` puts into
plans for these devices; that of llama.cpp is compiled by Debian's cross compiler
from the sources that `benches/peers.sh` fetches, with -O3 and -mcpu, and is the
function that llama.cpp chooses on that CPU: an interleaved one where its
`repack.cpp` has one, else the dot product of one row and column.

Needs g++-aarch64-linux-gnu and qemu-user-static.
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "target/peers"
ROWS, K = 16, 2048
# Columns of a step of decoding and of a tile of a prompt.
DECODE, PREFILL = 1, 4

# Name in llama.cpp, type of its activations, and rows that it interleaves where
# the CPU has dot products (its ggml_repack_get_optimal_repack_type).
FORMATS = {
    "Q4_0": ("q4_0", "q8_0", "4x4"),
    "Q4_1": ("q4_1", "q8_1", None),
    "Q5_0": ("q5_0", "q8_0", None),
    "Q5_1": ("q5_1", "q8_1", None),
    "Q8_0": ("q8_0", "q8_0", "4x4"),
    "Q2_K": ("q2_K", "q8_K", None),
    "Q3_K": ("q3_K", "q8_K", None),
    "Q4_K": ("q4_K", "q8_K", "8x4"),
    "Q5_K": ("q5_K", "q8_K", "8x4"),
    "Q6_K": ("q6_K", "q8_K", "8x4"),
    "IQ4_NL": ("iq4_nl", "q8_0", "4x4"),
    "IQ4_XS": ("iq4_xs", "q8_K", None),
    "MXFP4": ("mxfp4", "q8_0", "4x4"),
}
DEVICES = {
    "Pi 5, Cortex-A76": ("cortex-a76", ["dotprod"]),
    "Pi 4, Cortex-A72": ("cortex-a72", []),
}

Counts = collections.namedtuple("Counts", "instructions loads")


def run(command: list, **options) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, **options)
    if result.returncode != 0:
        sys.exit(f"pi_costs: {' '.join(map(str, command))}: exit {result.returncode}")
    return result.stdout


def count(cpu: str, command: list, counted) -> Counts:
    """What `command` executes in blocks for which `counted(address, symbol)`."""
    blocks: dict[int, Counts] = {}
    executions: collections.Counter[int] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        os.mkfifo(log)
        emulator = ["qemu-aarch64-static", "-cpu", cpu, "-d", "in_asm,exec,nochain", "-D", log]
        process = subprocess.Popen([*emulator, *command], stdout=subprocess.DEVNULL)
        start, lines = None, []
        with log.open() as text:
            for line in text:
                if line.startswith("Trace "):
                    address, _, symbol = line.partition("/")[2].partition("/")
                    address = int(address, 16)
                    if counted(address, symbol.rpartition("]")[2].strip()):
                        executions[address] += 1
                elif line.startswith("0x"):
                    address, _, mnemonic, *_ = line.split(maxsplit=3)
                    if start is None:
                        start = int(address[:-1], 16)
                    lines.append(mnemonic)
                elif start is not None:
                    blocks[start] = Counts(len(lines), sum(m.startswith("ld") for m in lines))
                    start, lines = None, []
        if process.wait() != 0:
            sys.exit(f"pi_costs: {' '.join(map(str, command))} on {cpu}: exit {process.returncode}")
    if not executions:
        sys.exit(f"pi_costs: {' '.join(map(str, command))} on {cpu} never executed what is to be counted")
    total = Counts(0, 0)
    for address, times in executions.items():
        total = Counts(*(t + times * n for t, n in zip(total, blocks[address])))
    return total


class Harness:
    """Executes kernels for one CPU."""

    def __init__(self, folder: Path, cpu: str, features: list):
        self.folder, self.cpu, self.features = folder, cpu, features
        ggml = next(PEERS.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"), None)
        if ggml is None:
            sys.exit("pi_costs: the sources of llama.cpp are missing: run benches/peers.sh")
        self.peer = ggml.parents[2].name.replace("llama_cpp_python-", "llama-cpp-python ")
        self.objects = []
        for source in ("arch/arm/quants.c", "arch/arm/repack.cpp", "quants.c"):
            compiler = ["aarch64-linux-gnu-g++", "-std=c++17"] if source.endswith("cpp") else ["aarch64-linux-gnu-gcc"]
            out = folder / f"{source.replace('/', '-')}.o"
            includes = [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
            flags = ["-O3", f"-mcpu={cpu}", "-DNDEBUG", *includes]
            run([*compiler, *flags, "-c", ggml / "src/ggml-cpu" / source, "-o", out])
            self.objects.append(out)

    def count(self, columns: int, *definitions: str, peer: bool = True) -> Counts:
        """Per row, column and 32 elements of K."""
        program = self.folder / "program"
        flags = ["-O2", "-static", f"-mcpu={self.cpu}", f"-DK={K}", f"-DCOLUMNS={columns}", *definitions]
        # Of llama.cpp's functions, those are linked that are called.
        rest = [*self.objects, "-Wl,--unresolved-symbols=ignore-all"] if peer else []
        run(["aarch64-linux-gnu-gcc", *flags, ROOT / "benches/pi_costs.c", *rest, "-o", program])
        total = count(self.cpu, [program], lambda _, symbol: symbol == "kernel" or symbol.startswith("ggml_"))
        return Counts(*(n / (ROWS * columns * K / 32) for n in total))

    def omex(self, name: str, columns: int) -> Counts:
        code = self.folder / "kernel.bin"
        kernel = ROOT / "target/release/examples/kernel"
        code.write_bytes(run([kernel, name, "code", str(K), "aarch64", *self.features]))
        return self.count(columns, f'-DOMEX="{code}"', peer=False)

    def peer_function(self, name: str, columns: int) -> list:
        weights, activations, interleaved = FORMATS[name]
        if interleaved and "dotprod" in self.features:
            kind = "gemv" if columns == 1 else "gemm"
            return [f"-DKERNEL=ggml_{kind}_{weights}_{interleaved}_{activations}", "-DINTERLEAVED"]
        return [f"-DKERNEL=ggml_vec_dot_{weights}_{activations}"]


def cell(counts: Counts) -> str:
    return f"{counts.instructions:.1f} ({counts.loads:.1f})"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    # With the features of the whole build, so that cranelift is built once.
    packages = ["--package", "omex", "--package", "omex-codegen", "--features", "omex-codegen/jit"]
    run(["cargo", "build", "--release", *packages, "--example", "kernel"], cwd=ROOT)
    peer = ""
    for device, (cpu, features) in DEVICES.items():
        with tempfile.TemporaryDirectory() as folder:
            harness = Harness(Path(folder), cpu, features)
            peer = harness.peer
            print(f"| {device} | decode: omex | llama.cpp | omex / llama.cpp | prompt: omex | llama.cpp | omex / llama.cpp |")
            print("|---|---|---|---|---|---|---|")
            for name in FORMATS:
                row = [name]
                for columns in (DECODE, PREFILL):
                    ours = harness.omex(name, columns)
                    theirs = harness.count(columns, *harness.peer_function(name, columns))
                    row += [cell(ours), cell(theirs), f"{ours.instructions / theirs.instructions:.2f}"]
                print(f"| {' | '.join(row)} |", flush=True)
            print()
    print(
        f"Instructions (and loads among them) for 32 weights and one column, over {ROWS} rows of {K}; "
        f"prompts {PREFILL} columns at a time. {peer}, GCC -O3 -mcpu; its interleaved functions where it chooses them."
    )

if __name__ == "__main__":
    main()
