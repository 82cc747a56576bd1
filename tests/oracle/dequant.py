#!/usr/bin/env python3
"""Compares our dequantization with that of the `gguf` package, bit for bit.

For every weight format, a tensor of random and adversarial blocks is written
to a GGUF file by the package, read by `compiler/examples/dequantize.rs` (row by
row, and through packed panels), and compared with `gguf.quants.dequantize`.

    pip install gguf numpy
    cargo build --release -p omex-compiler --examples
    python tests/oracle/dequant.py [--rows 1024] [--seed 1] [--model FILE.gguf]...

With `--model`, the tensors of real files are compared as well. Exit status 1
if any value differs.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Every format of `WeightFormat`, with the byte offsets of the f16 scales of a block.
FORMATS = {
    T.F32: [],
    T.F16: [],
    T.BF16: [],
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
    T.IQ4_NL: [0],
    T.IQ4_XS: [0],
    T.MXFP4: [],
}

ROW_ELEMENTS = 512
# f16 bit patterns: zeros, subnormals, the smallest and largest normals, ones.
ADVERSARIAL_F16 = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00]
# E8M0 exponents: both ends, and around the border to subnormal f32.
ADVERSARIAL_E8M0 = [0, 1, 2, 22, 127, 128, 253, 254]


def blocks_of(ty, rows, rng):
    """Random bytes with finite scales: `rows` rows, uint8."""
    elements, size = gguf.GGML_QUANT_SIZES[ty]
    data = rng.integers(0, 256, (rows * ROW_ELEMENTS // elements, size), dtype=np.uint8)
    n = len(data)
    if ty in (T.F16, T.BF16, T.F32):
        # Clearing a bit of the exponent where all of its bits are set makes a number finite.
        exponent = {T.F16: (np.uint16, 0x7C00), T.BF16: (np.uint16, 0x7F80), T.F32: (np.uint32, 0x7F800000)}[ty]
        words = data.reshape(-1).view(exponent[0])
        not_finite = (words & exponent[1]) == exponent[1]
        words[not_finite] &= ~exponent[0](exponent[1] & -exponent[1])
        return words.view(np.uint8).reshape(rows, -1)
    # The first blocks have codes and sub-scales that are all zeros or all ones.
    data[0 : n // 16] = 0
    data[n // 16 : n // 8] = 255
    for at in FORMATS[ty]:
        scale = rng.integers(0, 0x7C00, n, dtype=np.uint16) | rng.choice([0, 0x8000], n).astype(np.uint16)
        adversarial = rng.random(n) < 0.3
        scale[adversarial] = rng.choice(ADVERSARIAL_F16, adversarial.sum())
        data[:, at : at + 2] = scale.astype("<u2").view(np.uint8).reshape(n, 2)
    if ty == T.MXFP4:
        scale = rng.integers(0, 255, n, dtype=np.uint8)
        adversarial = rng.random(n) < 0.3
        scale[adversarial] = rng.choice(ADVERSARIAL_E8M0, adversarial.sum())
        data[:, 0] = scale
    return data.reshape(rows, -1)


def ours(path, *flags):
    exe = ROOT / "target/release/examples/dequantize"
    out = subprocess.run([exe, path, *flags], stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(out, dtype="<f4")


def compare(path):
    """Compares all tensors of a file; returns the number of differing values."""
    tensors = gguf.GGUFReader(path).tensors
    results = {"rows": ours(path), "panels": ours(path, "--panels")}
    differing = {}
    counts = {}
    at = 0
    for tensor in tensors:
        with np.errstate(over="ignore"):
            expected = quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        expected = expected.astype("<f4", copy=False).view("<u4")
        name = tensor.tensor_type.name
        counts[name] = counts.get(name, 0) + len(expected)
        for what, values in results.items():
            actual = values[at : at + len(expected)].view("<u4")
            bad = np.flatnonzero(actual != expected)
            differing[name] = differing.get(name, 0) + len(bad)
            if len(bad):
                i = bad[0]
                print(
                    f"{tensor.name} ({name}, {what}): {len(bad)} of {len(expected)} differ; "
                    f"first at {i}: ours {actual[i]:#010x}, expected {expected[i]:#010x}"
                )
        at += len(expected)
    for what, values in results.items():
        assert len(values) == at, f"{what}: {len(values)} values, expected {at}"
    for name, count in counts.items():
        print(f"{name:8} {count:>12} values, {differing[name]} differ")
    return sum(differing.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="rows of 512 elements per format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", action="append", default=[], help="a GGUF file to compare as well")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/blocks.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for ty in FORMATS:
            data = blocks_of(ty, args.rows, rng)
            if ty == T.F32:
                writer.add_tensor(ty.name, data.view(np.float32))
            elif ty == T.F16:
                writer.add_tensor(ty.name, data.view(np.float16))
            else:
                writer.add_tensor(ty.name, data, raw_dtype=ty)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        differing = compare(path)
    for model in args.model:
        print(model)
        differing += compare(model)
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
