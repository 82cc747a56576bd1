"""Compares OMEX's prompts with `apply_chat_template(tokenize=True)` of transformers.

    prompts.py MODEL.gguf BINARY

BINARY is the example `prompt_lines` of omex-compiler. Every template in templates/ and
the model's own is filled with 1,000 or more contents, with and without a system message.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import gguf
import tokenizer as oracle
from transformers import PreTrainedTokenizerFast

PADS = ["", " ", "\n", "  ", "\n\n", " \n", "\n ", "\t", "\r\n", "\u00a0", "\u3000", "\x1c", "\x0b\x0c", "\u2028 "]
MESSAGES = ["{{input}}", "Summarize this:\n\n{{input}}", "{{input}}\n\nSay what it does.\n", "  \n{{input}}\n "]
SYSTEMS = [None, "You are terse.", "  Padded \n"]


def contents():
    spec = json.loads((oracle.HERE / "corpus.json").read_text())
    sections = {s["name"]: s for s in spec["sections"]}
    bodies = ["", "a", "Hi", "What is 2+2?", "x\n\n\ny", "user\n", "assistant", "<b>&amp;</b>", "{{ x }}{% y %}",
              "'quoted' \"twice\"", "</think> no", "<tool_response>", "漢字かな", "👩‍👩‍👧", "é", "1234567", "None"]
    for name in ("code", "languages", "white space", "digits", "emoji", "punctuation"):
        section = dict(sections[name], count=12)
        atoms = section["atoms"]
        bodies += ["".join(parts) for parts in oracle.joined(section, lambda rng: atoms[rng.below(len(atoms))])]
    # Special tokens in contents are literal here and special in transformers.
    bodies = [b for b in bodies if not any(s in b for s in ("<|", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>"))]
    rng = oracle.Random(7)
    inputs = [pad + body + pad for body in bodies for pad in PADS]
    inputs += [PADS[rng.below(len(PADS))] + body + PADS[rng.below(len(PADS))] for body in bodies for _ in range(4)]
    return inputs


def main():
    path, binary = sys.argv[1:]
    model = oracle.Model(path)
    get = lambda key: model.get(f"ggml.{key}_token_id")
    token = lambda key: None if get(key) is None else model.tokens[get(key)]
    hf = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer(),
        bos_token=token("bos"), eos_token=token("eos"), unk_token=token("unknown"), pad_token=token("padding"),
    )
    templates = {p.stem: p.read_text() for p in sorted((oracle.HERE / "templates").glob("*.jinja"))}
    if model.get("chat_template"):
        templates["own"] = model.get("chat_template")
    inputs = contents()
    today = datetime.date.today().isoformat()
    jobs = [
        {"template": source, "system": system, "message": message, "date": today, "inputs": inputs, "name": name}
        for name, source in templates.items()
        for system in SYSTEMS
        for message in MESSAGES
    ]
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    result = subprocess.run([binary, path], input=lines, capture_output=True, text=True, check=True)
    failures = 0
    for job, line in zip(jobs, result.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        label = f"{job['name']} system={job['system']!r} message={job['message']!r}"
        if "error" in answer:
            print(f"{label}: {answer['error']}")
            failures += 1
            continue
        wrong = 0
        for text, ids in zip(inputs, answer["ids"], strict=True):
            messages = [{"role": "system", "content": job["system"]}] if job["system"] is not None else []
            messages.append({"role": "user", "content": job["message"].replace("{{input}}", text)})
            want = hf.apply_chat_template(
                messages, chat_template=job["template"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            if want != ids:
                wrong += 1
                if wrong == 1:
                    print(f"  {text!r}\n    want {hf.decode(want)!r} {want}\n    got  {hf.decode(ids)!r} {ids}")
        print(f"{label}: {len(inputs)} contents, {wrong} differ", flush=True)
        failures += wrong
    print(f"failures: {failures}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
