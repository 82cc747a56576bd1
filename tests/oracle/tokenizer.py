"""Compares OMEX's tokenizer with Hugging Face `tokenizers` on the same vocabulary.

    tokenizer.py check MODEL.gguf BINARY [--pre NAME ...]   ids of the whole corpus, both ways
    tokenizer.py golden MODEL.gguf OUT.json                 hashes of Hugging Face's ids and pieces
    tokenizer.py merges MODEL.gguf OUT.gguf                 a scored vocabulary as one with merges

BINARY is the example `tokenize_lines` of omex-compiler. The corpus is made from
corpus.json by the generator below; compiler/tests/tokens has the same generator in
Rust and holds the tokenizer against the hashes without Python. `--pre` replaces the
model's pre-tokenizer; its definitions here are those of the models' tokenizer.json files.
"""

import argparse
import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

HERE = Path(__file__).parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MASK = (1 << 64) - 1


# --- The corpus ------------------------------------------------------------------------


class Random:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % bound


def characters(spec):
    """Every character below a limit and some of the others, next to letters and digits."""
    points = list(range(spec["all_below"]))
    points += range(spec["all_below"], 0x110000, spec["step_above"])
    points = [p for p in points if not 0xD800 <= p < 0xE000]
    for i in range(0, len(points), spec["group"]):
        yield "".join(f"a{chr(p)}1{chr(p)} " for p in points[i : i + spec["group"]])


def joined(spec, atom):
    rng = Random(spec["count"])
    for _ in range(spec["count"]):
        yield [atom(rng) for _ in range(1 + rng.below(spec["atoms_max"]))]


def random_character(rng):
    # Half of the characters are from the planes that have most of the text.
    while True:
        point = rng.below((0x300, 0x3000, 0x20000, 0x110000)[rng.below(4)])
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def corpus(token_texts):
    """Pairs of a section's name and its strings."""
    spec = json.loads((HERE / "corpus.json").read_text())
    yield "characters", list(characters(spec["characters"]))
    for section in spec["sections"]:
        atoms = section["atoms"]
        strings = joined(section, lambda rng: atoms[rng.below(len(atoms))])
        yield section["name"], ["".join(parts) for parts in strings]
    yield "random characters", [
        "".join(parts) for parts in joined(spec["random_characters"], random_character)
    ]
    yield "vocabulary", [
        b"".join(parts).decode("utf-8", "replace")
        for parts in joined(
            spec["vocabulary"], lambda rng: token_texts[rng.below(len(token_texts))]
        )
    ]
    yield "runs", [
        prefix + atom * length
        for atom in spec["runs"]["atoms"]
        for length in spec["runs"]["lengths"]
        for prefix in ("", "x")
    ]


# --- Hugging Face's tokenizer of a GGUF file -------------------------------------------


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(*before, use_regex):
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*before, last])


TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_HAN_UPPER = UPPER[:-1] + r"&&[^\p{Han}]]"
NOT_HAN_LOWER = LOWER[:-1] + r"&&[^\p{Han}]]"
WORD = r"[^\r\n\p{L}\p{N}]?"
SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
SYMBOLS_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
ASCII_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
MARKED_WORD = r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"


def chars(spec):
    """The inside of a character class from code points and ranges in hexadecimal."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in spec.split())


CJK = f"[{chars('4E00-9FA5 3040-309F 30A0-30FF')}]+"
HAN_HANGUL = f"[{chars('4E00-9FA5 0800-4E00 AC00-D7FF')}]+"
LATIN = chars(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 "
    "37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 "
    "13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 "
    "1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 "
    "1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 "
    "1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 "
    "2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 "
    "A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 "
    "FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 "
    "118A0-118DF 1E900-1E943 "
)
AFMOE_SCRIPTS = chars(
    "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF 0E40-0E7F 0E80-0EFF "
    "1780-17FF 1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
FULL_WIDTH = chars("FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
YOUTU = (
    f"[{chars('AC00-D7A3 3131-318E')}]+|[{chars('FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C')}"
    f"{chars('3001-303F FE30-FE4F')}]+|[{chars('3105-312F')}]+|"
)
BLOOM = rf" ?[^(\s|[.,!?{chars('2026 3002 FF0C 3001 0964 06D4 060C')}])]+"
LLAMA3 = CONTRACTION + "|" + WORD + r"\p{L}+|\p{N}{1,3}" + SYMBOLS + TAIL
QWEN2 = CONTRACTION + "|" + WORD + r"\p{L}+|\p{N}" + SYMBOLS + TAIL
CASED = (
    f"{WORD}{UPPER}*{LOWER}+{CONTRACTION}?|{WORD}{UPPER}+{LOWER}*{CONTRACTION}?"
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)

# Per name: the pre-tokenizer and whether whole pieces that are tokens skip the merges.
PRE = {
    "gpt-2": (byte_level(use_regex=True), False),
    "smollm": (byte_level(DIGITS, use_regex=True), False),
    "llama-bpe": (byte_level(split(LLAMA3), use_regex=False), True),
    "dbrx": (byte_level(split(LLAMA3), use_regex=False), False),
    "qwen2": (byte_level(split(QWEN2), use_regex=False), False),
    "qwen35": (
        byte_level(
            split(
                CONTRACTION
                + "|"
                + WORD
                + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
                + TAIL
            ),
            use_regex=False,
        ),
        False,
    ),
    "gpt-4o": (
        byte_level(split(CASED + r"|\p{N}{1,3}" + SYMBOLS_SLASH + TAIL), use_regex=False),
        False,
    ),
    "tekken": (
        byte_level(
            split(f"{WORD}{UPPER}*{LOWER}+|{WORD}{UPPER}+{LOWER}*|\\p{{N}}{SYMBOLS_SLASH}{TAIL}"),
            use_regex=False,
        ),
        True,
    ),
    "deepseek-v3": (
        byte_level(
            split(r"\p{N}{1,3}"),
            split(CJK),
            split(ASCII_WORD + MARKED_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*" + TAIL),
            use_regex=False,
        ),
        False,
    ),
    "spark2_5": (
        byte_level(
            split(r"\p{N}{1,3}"),
            split(CJK),
            split(ASCII_WORD + MARKED_WORD + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"),
            split(r"\p{N}"),
            use_regex=False,
        ),
        False,
    ),
    "deepseek-coder": (
        byte_level(
            split(r"[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(HAN_HANGUL),
            DIGITS,
            use_regex=False,
        ),
        False,
    ),
    "deepseek-llm": (
        byte_level(
            split(r"[\r\n]"),
            split(rf"\s?[{LATIN}]+"),
            split(rf"\s?[!-/:-~{FULL_WIDTH}]+"),
            split(r"\s+$"),
            split(HAN_HANGUL),
            split(r"\p{N}+"),
            use_regex=False,
        ),
        False,
    ),
    "youtu": (
        byte_level(
            split(YOUTU + CJK),
            split(CASED + r"|\p{N}" + SYMBOLS_SLASH + TAIL),
            use_regex=False,
        ),
        True,
    ),
    "bloom": (byte_level(split(BLOOM), use_regex=False), False),
    "viking": (
        byte_level(split(BLOOM), split(r"\p{N}"), use_regex=False),
        False,
    ),
    "chameleon": (
        byte_level(
            split("<sentinel:[0-9]+>"),
            split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            split("([\t\n]|    |  )"),
            split(r"\p{N}"),
            split(r"[\p{P}!-/:-@\[-`{-~]"),
            use_regex=True,
        ),
        False,
    ),
    "bailingmoe": (
        byte_level(
            split(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
            use_regex=False,
        ),
        False,
    ),
    "seed-coder": (
        byte_level(
            split(
                CONTRACTION + "|" + WORD + r"\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + TAIL
            ),
            use_regex=False,
        ),
        False,
    ),
    "ufakzeka": (byte_level(split(WORD + r"\p{L}+|\p{N}" + SYMBOLS + TAIL), use_regex=False), False),
    "exaone-moe": (
        byte_level(
            split(
                CONTRACTION
                + "|"
                + WORD
                + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
                + r"|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
            use_regex=False,
        ),
        False,
    ),
    "default": (
        byte_level(
            split(r"[\p{P}$+<=>^~|]+"),
            split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            use_regex=False,
        ),
        False,
    ),
    "afmoe": (
        byte_level(
            split(r"\p{N}+"),
            split(r"\p{N}{1,3}(?=(?:\p{N}{3})*$)"),
            split(f"[{AFMOE_SCRIPTS}]+"),
            split(ASCII_WORD + MARKED_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*" + TAIL),
            use_regex=False,
        ),
        False,
    ),
    "laguna": (byte_level(split(r"[^\n]+|[\n]+"), split(QWEN2), use_regex=False), False),
    "jais-2": (
        byte_level(
            split(
                CONTRACTION
                + "|"
                + WORD
                + r"\p{L}+|\p{N}{1,3}"
                + SYMBOLS
                + r"|\s*[\r\n]+"
                + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"|\s{1,2}(?!\S)|\s{1}"
            ),
            use_regex=False,
        ),
        False,
    ),
    "kimi-k2": (
        byte_level(
            split(
                r"[\p{Han}]+"
                + f"|{WORD}{NOT_HAN_UPPER}*{NOT_HAN_LOWER}+{CONTRACTION}?"
                + f"|{WORD}{NOT_HAN_UPPER}+{NOT_HAN_LOWER}*{CONTRACTION}?"
                + r"|\p{N}{1,3}"
                + SYMBOLS
                + TAIL
            ),
            use_regex=False,
        ),
        True,
    ),
    "glm4": (byte_level(split(LLAMA3), use_regex=False), True),
    "granite-embed-multi-97m": (
        byte_level(split(CASED + r"|\p{N}{1,3}" + SYMBOLS_SLASH + TAIL), use_regex=False),
        True,
    ),
    "tiny_aya": (
        byte_level(
            split(r"\d{1,3}(?=(?:\d{3})*\b)"),
            split(CASED + r"|\p{N}{1,3}" + SYMBOLS_SLASH + TAIL),
            use_regex=False,
        ),
        False,
    ),
    "superbpe": (
        byte_level(split(r"\p{N}+"), split(r"(?=(\d{3})+(?!\d))"), use_regex=False),
        False,
    ),
    "falcon": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                pre_tokenizers.Digits(individual_digits=False),
                split("[0-9][0-9][0-9]"),
            ]
        ),
        False,
    ),
    "minicpm5": (
        byte_level(
            split(r"\p{N}{1,3}"),
            split(CONTRACTION + "|" + WORD + r"\p{L}+|\p{N}+" + SYMBOLS + TAIL),
            use_regex=False,
        ),
        True,
    ),
}


def byte_alphabet():
    """GPT-2's characters to bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Model:
    """The tokenizer part of a GGUF file."""

    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.get = lambda key, default=None: (
            fields[f"tokenizer.{key}"].contents() if f"tokenizer.{key}" in fields else default
        )
        self.tokens = self.get("ggml.tokens")
        self.types = self.get("ggml.token_type", [NORMAL] * len(self.tokens))
        self.scores = self.get("ggml.scores")
        self.characters = self.get("ggml.model") == "gemma4"
        self.byte_level = self.get("ggml.model") == "gpt2"
        if not self.byte_level:
            self.tokens = [
                t if y == BYTE else t.replace(" ", "▁") for t, y in zip(self.tokens, self.types)
            ]

    def text(self, id):
        """The bytes of a token as they appear in text."""
        token, kind = self.tokens[id], self.types[id]
        if kind == BYTE:
            return bytes([int(token[3:-1], 16)])
        if not self.byte_level:
            return token.replace("▁", " ").encode()
        alphabet = byte_alphabet()
        if kind in (NORMAL, UNUSED) and all(c in alphabet for c in token):
            return bytes(alphabet[c] for c in token)
        return token.encode()

    def texts(self):
        return [self.text(id) for id in range(len(self.tokens))]

    def tokenizer(self, pre=None):
        vocabulary = {token: id for id, token in enumerate(self.tokens)}
        if self.byte_level:
            pre_tokenizer, ignore_merges = PRE[pre or self.get("ggml.pre")]
            merges = [tuple(merge.split(" ")) for merge in self.get("ggml.merges")]
            model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges)
            tokenizer = Tokenizer(model)
            tokenizer.pre_tokenizer = pre_tokenizer
        else:
            merges = (
                [tuple(merge.split(" ")) for merge in self.get("ggml.merges")]
                if self.characters
                else self.score_merges()
            )
            model = models.BPE(
                vocab=vocabulary,
                merges=merges,
                byte_fallback=True,
                fuse_unk=True,
                unk_token=self.tokens[self.get("ggml.unknown_token_id", 0)],
            )
            tokenizer = Tokenizer(model)
            steps = [normalizers.Replace(" ", "▁")]
            if self.space_prefix():
                steps.insert(0, normalizers.Prepend("▁"))
            tokenizer.normalizer = normalizers.Sequence(steps)
        special = [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(self.tokens, self.types)
            if kind in (CONTROL, UNKNOWN)
        ]
        defined = [
            AddedToken(token, normalized=not self.byte_level, special=False)
            for token, kind in zip(self.tokens, self.types)
            if kind == USER_DEFINED
        ]
        tokenizer.add_special_tokens(special)
        tokenizer.add_tokens(defined)
        assert tokenizer.get_vocab_size() == len(self.tokens)
        return tokenizer

    def space_prefix(self):
        scored = not self.byte_level and not self.characters
        return scored and self.get("ggml.add_space_prefix", True)

    def score_merges(self):
        """All pairs of tokens that make a token, best score first."""
        usable = {
            token: score
            for token, score, kind in zip(self.tokens, self.scores, self.types)
            if kind in (NORMAL, USER_DEFINED)
        }
        merges = [
            (-score, token[:i], token[i:])
            for token, score in usable.items()
            for i in range(1, len(token))
            if token[:i] in usable and token[i:] in usable
        ]
        merges.sort(key=lambda merge: merge[0])
        return [merge[1:] for merge in merges]


# --- Comparing -------------------------------------------------------------------------


def run_binary(binary, model, pre, lines):
    """Output lines of the binary for lines of a mode and a text."""
    data = "".join(f"{mode}{text.encode().hex()}\n" for mode, text in lines)
    command = [binary, model] + ([pre] if pre else [])
    result = subprocess.run(command, input=data, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def pieces(tokenizer, string):
    """Ends, in bytes, of the pieces of Hugging Face's pre-tokenizer."""
    parts = tokenizer.pre_tokenizer.pre_tokenize_str(string)
    # Byte-level pieces have one character per byte.
    return list(itertools.accumulate(len(part) for part, _ in parts))


def check(args):
    model = Model(args.model)
    texts = model.texts()
    failures = 0
    sections = list(corpus(texts))
    if args.text:
        files = sorted(p for p in Path(args.text).rglob("*") if p.is_file())
        real = [p.read_text(errors="replace") for p in files[:400]]
        sections.append(("files", real + [line for text in real for line in text.splitlines()]))
    complete = set(range(256)) <= {t[0] for t in texts if len(t) == 1}
    for pre in args.pre or [None]:
        tokenizer = model.tokenizer(pre)
        for name, strings in sections:
            if model.byte_level:
                got = run_binary(args.binary, args.model, pre, [("S", s) for s in strings])
                wrong = sum(
                    pieces(tokenizer, string) != list(map(int, line.split()))
                    for string, line in zip(strings, got, strict=True)
                )
                print(f"{pre or 'own'}: {name}: {wrong} strings split into other pieces")
                failures += wrong
            lines = [(mode, string) for string in strings for mode in "LP"]
            got = run_binary(args.binary, args.model, pre, lines)
            assert len(got) == len(lines), f"{len(lines)} strings, {len(got)} answers"
            wrong = wrong_bytes = tokens = 0
            for mode in "LP":
                tokenizer.encode_special_tokens = mode == "L"
                expected = tokenizer.encode_batch(strings, add_special_tokens=False)
                for string, want, line in zip(strings, expected, got["LP".index(mode) :: 2]):
                    ids, lost, ends = line.split("\t")
                    ids = [int(id) for id in ids.split()]
                    tokens += len(ids)
                    if ids != want.ids:
                        wrong += 1
                        if wrong <= args.show:
                            print(f"  {mode} {string[:200]!r}\n    want {want.ids[:60]}\n    got  {ids[:60]}")
                    decoded = b"".join(texts[id] for id in ids)
                    if model.space_prefix():
                        continue
                    if lost == "0" and decoded.decode() != string.replace("▁", " " if not model.byte_level else "▁"):
                        wrong_bytes += 1
                    if lost != "0" and complete:
                        wrong_bytes += 1
            print(
                f"{pre or 'own'}: {name}: {len(strings)} strings, {tokens} tokens, "
                f"{wrong} differ, {wrong_bytes} decode to other bytes",
                flush=True,
            )
            failures += wrong + wrong_bytes
    print(f"strings: {sum(len(s) for _, s in sections)}, failures: {failures}")
    return failures


class Digest:
    """FNV-1a over little-endian u32, 0xffffffff after each list."""

    def __init__(self):
        self.strings = self.tokens = 0
        self.hash = 0xCBF29CE484222325

    def add(self, ids):
        self.strings += 1
        self.tokens += len(ids)
        for byte in struct.pack(f"<{len(ids) + 1}I", *ids, 0xFFFFFFFF):
            self.hash = ((self.hash ^ byte) * 0x100000001B3) & MASK

    def summary(self):
        return {"strings": self.strings, "tokens": self.tokens, "hash": f"{self.hash:016x}"}


def golden(args):
    """Hashes of Hugging Face's ids, and of its pieces for every pre-tokenizer."""
    model = Model(args.model)
    sections = dict(corpus(model.texts()))
    tokenizer = model.tokenizer()
    tokenizer.encode_special_tokens = True
    out = {"ids": {}, "pieces": {}}
    for name, strings in sections.items():
        digest = Digest()
        for encoding in tokenizer.encode_batch(strings, add_special_tokens=False):
            digest.add(encoding.ids)
        out["ids"][name] = digest.summary()
    # Every other string: pieces show more than ids do.
    strings = [s for name, all in sections.items() if name != "runs" for s in all[::2]]
    for pre in sorted(PRE) if model.byte_level else []:
        digest = Digest()
        tokenizer.pre_tokenizer = PRE[pre][0]
        for string in strings:
            digest.add(pieces(tokenizer, string))
        out["pieces"][pre] = digest.summary()
        print(pre, out["pieces"][pre], flush=True)
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    return 0


def merges(args):
    """Writes the vocabulary of a scored model with its merges spelled out, as Gemma 4's is."""
    model = Model(args.model)
    writer = gguf.GGUFWriter(args.out, "gemma3")
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(model.tokens)
    writer.add_token_types(model.types)
    writer.add_token_merges([" ".join(merge) for merge in model.score_merges()])
    writer.add_unk_token_id(model.get("ggml.unknown_token_id", 0))
    writer.add_bos_token_id(model.get("ggml.bos_token_id", 1))
    writer.add_eos_token_id(model.get("ggml.eos_token_id", 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("check")
    command.add_argument("model")
    command.add_argument("binary")
    command.add_argument("--show", type=int, default=3, help="differences to print per section")
    command.add_argument("--text", help="folder of files to tokenize too")
    command.set_defaults(run=check)
    command.add_argument("--pre", nargs="*", choices=sorted(PRE))
    command = commands.add_parser("golden")
    command.add_argument("model")
    command.add_argument("out")
    command.set_defaults(run=golden)
    command = commands.add_parser("merges")
    command.add_argument("model")
    command.add_argument("out")
    command.set_defaults(run=merges)
    args = parser.parse_args()
    sys.exit(1 if args.run(args) else 0)


if __name__ == "__main__":
    main()
