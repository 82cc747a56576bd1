"""Compares OMEX's prompts with `apply_chat_template(tokenize=True)` of transformers.

    prompts.py MODEL.gguf BINARY [GOLDEN.json]

Every template in templates/ and the model's own is filled with 1,000 or more contents, with and without a
system message. BINARY is the example `prompt_lines` of omex-compiler. GOLDEN.json receives hashes of transformers' ids.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import tokenizer as oracle
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

SPEC = json.loads((oracle.HERE / "corpus.json").read_text())


def contents():
    """Bodies with every pad on both sides and with some pairs of pads."""
    sections = {section["name"]: section for section in SPEC["sections"]}
    spec = SPEC["prompts"]
    bodies, pads = list(spec["bodies"]), spec["pads"]
    for name in spec["sections"]:
        section = dict(sections[name], count=spec["section_count"])
        atoms = section["atoms"]
        for parts in oracle.joined(section, lambda rng: atoms[rng.below(len(atoms))]):
            bodies.append("".join(parts))
    rng = oracle.Random(7)
    inputs = [pad + body + pad for body in bodies for pad in pads]
    for body in bodies:
        for _ in range(4):
            inputs.append(pads[rng.below(len(pads))] + body + pads[rng.below(len(pads))])
    return inputs


class Day(datetime.datetime):
    """The day that templates see."""

    @classmethod
    def now(cls):
        return cls.fromisoformat(SPEC["prompts"]["date"])


def main():
    path, binary, *golden = sys.argv[1:]
    chat_template_utils.datetime = Day
    model = oracle.Model(path)
    token = lambda key: (lambda id: None if id is None else model.tokens[id])(
        model.get(f"ggml.{key}_token_id")
    )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer(),
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
    )
    templates = {p.stem: p.read_text() for p in sorted((oracle.HERE / "templates").glob("*.jinja"))}
    if model.get("chat_template"):
        templates["own"] = model.get("chat_template")
    inputs = contents()
    spec = SPEC["prompts"]
    jobs = [
        {"template": source, "system": system, "message": message, "date": spec["date"], "inputs": inputs, "name": name}
        for name, source in templates.items()
        for system in spec["systems"]
        for message in spec["messages"]
    ]
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    result = subprocess.run([binary, path], input=lines, capture_output=True, text=True, check=True)
    failures, hashes = 0, {}
    for job, line in zip(jobs, result.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        label = f"{job['name']} system={job['system']!r} message={job['message']!r}"
        if "error" in answer:
            print(f"{label}: {answer['error']}")
            failures += 1
            continue
        wrong = 0
        digest = hashes.setdefault(job["name"], oracle.Digest())
        for text, ids in zip(inputs, answer["ids"], strict=True):
            messages = [{"role": "system", "content": job["system"]}] if job["system"] is not None else []
            messages.append({"role": "user", "content": job["message"].replace("{{input}}", text)})
            want = hf.apply_chat_template(
                messages, chat_template=job["template"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            digest.add(want)
            if want != ids:
                wrong += 1
                if wrong == 1:
                    print(f"  {text!r}\n    want {hf.decode(want)!r} {want}\n    got  {hf.decode(ids)!r} {ids}")
        print(f"{label}: {len(inputs)} contents, {wrong} differ", flush=True)
        failures += wrong
    print(f"failures: {failures}")
    if golden:
        out = {name: digest.summary() for name, digest in hashes.items()}
        Path(golden[0]).write_text(json.dumps(out, indent=1) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
