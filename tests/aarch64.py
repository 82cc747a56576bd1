#!/usr/bin/env python3
"""Runs plans for Raspberry Pis as a user would, on an emulated Cortex-A.

Plans are built here with `--target pi5` and `--target pi4`, copied with their
packed model, their signature and the cross-built `omex` into an empty folder,
and executed by qemu's user emulation of the device's CPU. Tokens, logits and
result ids have to equal those of this machine, bit by bit; what must be
refused has to be refused by name.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = ["-p", "Say hello in French.", "-n", "6"]
CONTAINER = {
    "omex_version": "0.3.0",
    "task_id": "pi",
    "task_type": "chat",
    "model_requirements": {"max_sequence_tokens": 256},
    "task_flow": [
        {"id": "load", "type": "model_load", "output": "model"},
        {"id": "read", "type": "tokenize", "input": "prompt.txt", "output": "tokens"},
        {"id": "infer", "type": "forward_pass", "model": "model", "input": "tokens", "output": "logits"},
        {"id": "pick", "type": "greedy_sample", "logits": "logits", "max_tokens": 16, "output": "ids"},
        {"id": "text", "type": "decode", "input": "ids", "output": "answer"},
    ],
}


def run(command: list, home: Path, code: int = 0) -> subprocess.CompletedProcess:
    """Runs a command that has to end with `code`."""
    environment = {**os.environ, "OMEX_HOME": str(home)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}\nexit {result.returncode}, not {code}\n{result.stderr}")
    return result


def generate(command: list, plan: Path, home: Path, *flags: str) -> dict:
    """What a run of `plan` gives, and the digest of its logits."""
    logits = home / "logits.f32"
    arguments = ["run", plan, *PROMPT, "--json", "--dump-logits", logits, *flags]
    report = json.loads(run([*command, *arguments], home).stdout)
    digest = hashlib.sha256(logits.read_bytes()).hexdigest()
    return {name: report[name] for name in ("text", "token_ids", "result_id")} | {"logits": digest}


def require_equal(what: str, got: dict, wanted: dict) -> None:
    if got != wanted:
        sys.exit(f"{what} differs\ngot    {got}\nwanted {wanted}")
    print(f"equal: {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--host", type=Path, default=ROOT / "target/release", help="folder of omex and omexc")
    parser.add_argument("--cross", type=Path, default=ROOT / "target/cross/aarch64-unknown-linux-gnu")
    parser.add_argument("--qemu", default="qemu-aarch64-static")
    arguments = parser.parse_args()
    omexc, omex = arguments.host / "omexc", arguments.host / "omex"

    with tempfile.TemporaryDirectory() as folder:
        build_home = Path(folder, "builder")
        container = Path(folder, "task.omex.json")
        container.write_text(json.dumps(CONTAINER))

        def build(target: str, *flags: str) -> tuple[Path, dict]:
            plan = Path(folder, f"{target}{len(flags)}.bin")
            command = [omexc, "build", container, "-m", arguments.model.resolve(), "--any-path", "--json"]
            result = run([*command, "--target", target, "-o", plan, *flags], build_home)
            return plan, json.loads(result.stdout)

        def device(cpu: str, plan: Path, packed: Path) -> tuple[Path, Path, list, list]:
            """An empty folder with what a user copies; its home and its two runtimes."""
            place = Path(tempfile.mkdtemp(prefix=f"{cpu}-", dir=folder))
            for file in (plan, Path(f"{plan}.sig"), packed):
                shutil.copy(file, place)
            runtimes = []
            for name, profile in (("omex", "release"), ("omex-small", "small")):
                shutil.copy(arguments.cross / profile / "omex", place / name)
                emulator = [arguments.qemu, "-cpu", cpu]
                runtimes.append([*emulator, place / name])
            home = place / "home"
            home.mkdir()
            return place / plan.name, home, *runtimes

        plan, _ = build("host")
        wanted = generate([omex], plan, build_home)
        for target, cpu, flags in (
            ("pi5", "cortex-a76", ()),
            ("pi4", "cortex-a72", ()),
            ("pi4", "cortex-a72", ("--ram", "400MiB")),
        ):
            what = " ".join([target, "on", cpu, *flags])
            plan, report = build(target, "--sign", *flags)
            on_device, home, full, small = device(cpu, plan, Path(report["packed_model"]))
            # The emulator's own memory counts as the process's.
            emulated = "--no-allowance"
            require_equal(f"{what}: code made again", generate(full, on_device, home, emulated), wanted)
            refusal = run([*small, "run", on_device, *PROMPT, emulated], home, 7).stderr
            if "omex trust add" not in refusal:
                sys.exit(f"{what}: the refusal names no way out: {refusal}")
            run([*small, "trust", "add", report["public_key"], "builder"], home)
            for threads, chunk in (("1", "7"), ("3", "64")):
                how = ("-t", threads, "--ubatch-size", chunk, emulated)
                for name, runtime in (("full", full), ("small", small)):
                    got = generate(runtime, on_device, home, *how)
                    require_equal(f"{what}: {name}, {threads} threads, chunks of {chunk}", got, wanted)

        plan, report = build("pi5", "--sign")
        on_device, home, _, small = device("cortex-a72", plan, Path(report["packed_model"]))
        refusal = run([*small, "run", on_device, *PROMPT, "--no-allowance"], home, 6).stderr
        if "dotprod" not in refusal:
            sys.exit(f"a plan for a Pi 5 on a Pi 4 is not refused by name: {refusal}")
        print("refused: a plan for a Pi 5 on a Pi 4")


if __name__ == "__main__":
    main()
