#!/usr/bin/env python3
"""Runs plans for Arm devices as a user would, on an emulated Cortex-A.

Plans are built here with `--target pi5` and others, copied with their packed
model, their signature and the cross-built `omex` into an empty folder, and
executed by qemu's user emulation of the device's CPU. Tokens, logits and result
ids have to equal those of this machine, bit by bit; what must be refused has to
be refused by name.

Memory: the emulator keeps the program's address space in one range of its own,
whose resident pages are what the process would have on the device: code of
libraries and stacks included, emulator and kernel excluded. They have to be at
most what the plan states for the runtime that executes it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = ROOT / "target/models/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = ["-p", "Say hello in French.", "-n", "4"]
# Address space of an emulated program.
GUEST_BYTES = 1 << 32
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


def resident_bytes(pid: int, start: int) -> int:
    """Resident bytes of the emulated address space, which begins at `start`."""
    total, inside = 0, False
    try:
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line.startswith("Rss:"):
                total += inside * 1024 * int(line.split()[1])
            elif region := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                first, end = (int(address, 16) for address in region.groups())
                inside = start <= first and end <= start + GUEST_BYTES
    except (FileNotFoundError, ProcessLookupError):
        pass  # The process has just ended.
    return total


class Device:
    """An empty folder with what a user copies to a device."""

    def __init__(self, arguments: argparse.Namespace, cpu: str, plan: Path, packed: Path):
        self.folder = Path(tempfile.mkdtemp(prefix=f"{cpu}-", dir=plan.parent))
        self.home = self.folder / "home"
        for file in (plan, Path(f"{plan}.sig"), packed):
            shutil.copy(file, self.folder)
        for name, profile in (("omex", "release"), ("omex-small", "small")):
            shutil.copy(arguments.cross / profile / "omex", self.folder / name)
        self.plan = self.folder / plan.name
        self.emulator = [arguments.qemu, "-cpu", cpu, "-R", hex(GUEST_BYTES)]

    def omex(self, name: str, *flags, code: int = 0) -> subprocess.CompletedProcess:
        return run([*self.emulator, self.folder / name, *flags], self.home, code)

    def refuse(self, name: str, code: int, word: str) -> None:
        """`omex run` ends with `code` and says `word`."""
        refusal = self.omex(name, "run", self.plan, *PROMPT, "--no-allowance", code=code).stderr
        if word not in refusal:
            sys.exit(f"the refusal of {self.plan.name} does not say {word!r}: {refusal}")

    def generate(self, name: str, *flags: str) -> tuple[dict, str]:
        """What a run gives, and a line about its memory."""
        logits, log = self.folder / "logits.f32", self.folder / "qemu.log"
        # The emulator's own memory counts as the process's: no allowance. Its
        # log of pages says where the emulated address space lies.
        command = [*self.emulator, "-d", "page", "-D", log, self.folder / name, "run", self.plan]
        command += [*PROMPT, "--json", "--no-allowance", "--dump-logits", logits, *flags]
        environment = {**os.environ, "OMEX_HOME": str(self.home)}
        peak = 0
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            ended = threading.Event()

            def watch() -> None:
                nonlocal peak
                while not ended.wait(0.1):
                    if base := re.search(r"^guest_base +(0x[0-9a-f]+)$", log.read_text(), re.M):
                        peak = max(peak, resident_bytes(process.pid, int(base[1], 16)))

            log.touch()
            watcher = threading.Thread(target=watch)
            watcher.start()
            stdout, stderr = process.communicate()
            ended.set()
            watcher.join()
        if process.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\nexit {process.returncode}\n{stderr}")
        report = json.loads(stdout)
        stated = report["rss_peak_predicted_bytes"]
        memory = f"{peak / 2**20:.1f} MiB resident of {stated / 2**20:.1f} MiB stated"
        # The emulator does not populate mappings ahead, so that what a short
        # run leaves untouched of the arena is missing here.
        if not stated / 2 <= peak <= stated:
            sys.exit(f"{self.plan.name} with {name} {' '.join(flags)}: {memory}")
        return outcome(report, logits), memory


def outcome(report: dict, logits: Path) -> dict:
    """What has to be equal everywhere."""
    digest = hashlib.sha256(logits.read_bytes()).hexdigest()
    return {name: report[name] for name in ("text", "token_ids", "result_id")} | {"logits": digest}


def require_equal(what: str, seen: tuple[dict, str], wanted: dict) -> None:
    got, memory = seen
    if got != wanted:
        sys.exit(f"{what} differs\ngot    {got}\nwanted {wanted}")
    print(f"equal: {what}: {memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-m", "--model", type=Path, default=SMOLLM2)
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
            plan = Path(folder, "-".join([target, *flags]).replace("--", "") + ".bin")
            command = [omexc, "build", container, "-m", arguments.model.resolve(), "--any-path", "--json"]
            result = run([*command, "--target", target, "-o", plan, *flags], build_home)
            return plan, json.loads(result.stdout)

        def device(target: str, cpu: str, *flags: str) -> tuple[Device, dict]:
            plan, report = build(target, "--sign", *flags)
            return Device(arguments, cpu, plan, Path(report["packed_model"])), report

        plan, report = build("host")
        logits = Path(folder, "logits.f32")
        here = run([omex, "run", plan, *PROMPT, "--json", "--dump-logits", logits], build_home)
        wanted = outcome(json.loads(here.stdout), logits)

        # Half of what it needs all in all is too little for all weights.
        half = f"{report['rss_peak_bytes'] // 2 >> 20}MiB"
        for target, cpu, flags in (
            ("pi5", "cortex-a76", ()),
            ("pi4", "cortex-a72", ()),
            ("pi4", "cortex-a72", ("--ram", half)),
            ("pi-zero-2w", "cortex-a53", ()),
            ("mobile-mid-tier", "cortex-a76", ()),
            ("mobile-high-tier", "max", ()),
        ):
            what = " ".join([target, "on", cpu, *flags])
            there, report = device(target, cpu, *flags)
            there.refuse("omex-small", 7, "omex trust add")
            whole = target in ("pi5", "pi4") and not flags
            if whole:
                seen = there.generate("omex")
                require_equal(f"{what}: code made again", seen, wanted)
            there.omex("omex-small", "trust", "add", report["public_key"], "builder")
            if whole:
                require_equal(f"{what}: the plan's code", there.generate("omex", "-t", "1"), wanted)
            seen = there.generate("omex-small", "-t", "3", "--ubatch-size", "7")
            require_equal(f"{what}: the plan's code, small runtime", seen, wanted)

        for target, cpu, feature in (
            ("pi5", "cortex-a72", "dotprod"),
            ("pi5", "cortex-a53", "dotprod"),
            ("mobile-high-tier", "cortex-a76", "i8mm"),
        ):
            there, report = device(target, cpu)
            there.omex("omex-small", "trust", "add", report["public_key"], "builder")
            for name in ("omex", "omex-small"):
                there.refuse(name, 6, feature)
            print(f"refused: {target} on {cpu}, for its {feature}", flush=True)


if __name__ == "__main__":
    main()
