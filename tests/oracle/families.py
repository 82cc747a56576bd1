#!/usr/bin/env python3
"""Holds every model family against transformers on models with random weights.

For each case the configuration is made here, transformers' own modelling class
is filled with random weights and evaluated in float32 with eager attention, and
the same weights are written as a GGUF file the way llama.cpp's converter does.
OMEX builds and runs that file on the same token ids, in passes of several
sizes, which have to give the same bits. Sequences are longer than the sliding
windows. Prints a markdown table of KL(transformers || omex) in nats and exits
with 1 when the mean of a case is above its limit.

The second figure of each row is the KL of what the model is without the thing
that the family is about, e.g. without its windows: the limit means something
only far below it.

Cases with `formats` quantize: there omex rounds activations to 8 bits, the
reference does not, and the limit is `QUANTIZED_KL_MAX`.
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T

from dequant import FORMATS

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target/release"
# <unk>, <s>, </s> and the bytes; every other token is one character of its own.
FIRST_CHARACTER_TOKEN = 3 + 256
FIRST_CHARACTER = 0x4E00
BOS = 1
KL_MAX = 1e-3
QUANTIZED_KL_MAX = 2e-2

COMMON = dict(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=BOS,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=True,
)


@dataclass
class Case:
    """A model, how its file says so, and what it would be without its point."""

    name: str
    architecture: str
    model: str
    config: dict
    # Metadata behind the architecture's prefix.
    metadata: dict = field(default_factory=dict)
    # Tensors that are no parameters of the model.
    tensors: Callable[[transformers.PreTrainedConfig], dict] = lambda config: {}
    # Changes of the configuration that take the family's point away.
    without: dict = field(default_factory=dict)
    permute: bool = False
    # Gemma's norms multiply by one more than their weights.
    shifted_norms: bool = False
    positions: int = 100
    context: int = 256
    build_flags: tuple = ()
    # By the part of a tensor's name; others are F16.
    formats: dict = field(default_factory=dict)


def llama3_factors(config) -> dict:
    """Llama 3's scaling as factors, as llama.cpp's converter computes them."""
    rope = config.rope_parameters
    dim = config.head_dim
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}


def long_factors(config) -> dict:
    rope = config.rope_parameters
    return {
        "rope_factors_short.weight": np.array(rope["short_factor"], dtype=np.float32),
        "rope_factors_long.weight": np.array(rope["long_factor"], dtype=np.float32),
    }


def rope(kind: str, theta: float = 10000.0, **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


YARN = dict(factor=4.0, original_max_position_embeddings=64)
LONGROPE = dict(
    short_factor=[1.0 + 0.02 * i for i in range(16)],
    long_factor=[1.0 + 0.3 * i for i in range(16)],
)
PHI3_LONGROPE = {**rope("longrope", **LONGROPE), "original_max_position_embeddings": 64}
LONGROPE_METADATA = {
    "rope.scaling.type": "longrope",
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": math.sqrt(1 + math.log(256 / 64) / math.log(64)),
}
GEMMA = dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=32, sliding_window=24)
GEMMA3_ROPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}
GEMMA3_METADATA = {
    "attention.sliding_window": 24,
    "rope.freq_base": 1e6,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}

# Shapes that nothing here is tuned to: a head that is no part of the stream's width, 7
# query heads to a key-value head, and rows that fill no panel.
ODD = dict(vocab_size=509, hidden_size=98, intermediate_size=118, num_attention_heads=7, num_key_value_heads=1,
           head_dim=26)
THREES = dict(vocab_size=403, hidden_size=90, intermediate_size=150, num_attention_heads=9, num_key_value_heads=3,
              head_dim=32)
# What llama-quantize makes of Q4_K_M where rows are no multiple of 256 elements.
MIXED_SHAPE = dict(vocab_size=437, hidden_size=256, intermediate_size=288, num_attention_heads=8,
                   num_key_value_heads=1, head_dim=40)
Q4_K_M = dict(token_embd=T.Q6_K, attn_q=T.Q4_K, attn_k=T.Q4_K, attn_v=T.Q6_K, attn_output=T.Q5_0, ffn_gate=T.Q4_K,
              ffn_up=T.Q4_K, ffn_down=T.Q8_0)

CASES = [
    Case("llama", "llama", "Llama", {**rope("default"), "tie_word_embeddings": False}, permute=True,
         without=rope("default", 100.0)),
    Case("llama, odd shapes", "llama", "Llama", {**rope("default"), **ODD, "tie_word_embeddings": False}, permute=True,
         without=rope("default", 100.0)),
    Case("llama, three to one", "llama", "Llama", {**rope("default"), **THREES}, permute=True,
         without=rope("default", 100.0)),
    Case("llama, Q4_K_M", "llama", "Llama", {**rope("default"), **MIXED_SHAPE}, permute=True,
         without=rope("default", 100.0), formats=Q4_K_M),
    Case("llama, many formats", "llama", "Llama", {**rope("default"), **MIXED_SHAPE, "tie_word_embeddings": False},
         permute=True, without=rope("default", 100.0),
         formats=dict(token_embd=T.Q3_K, attn_q=T.IQ4_XS, attn_k=T.Q5_K, attn_v=T.BF16, attn_output=T.MXFP4,
                      ffn_gate=T.Q3_K, ffn_up=T.Q2_K, ffn_down=T.IQ4_NL, output=T.F32)),
    Case("qwen2, many formats", "qwen2", "Qwen2", {**rope("default"), **MIXED_SHAPE, "tie_word_embeddings": False},
         without=rope("default", 100.0),
         formats=dict(token_embd=T.MXFP4, attn_q=T.Q4_0, attn_k=T.Q4_1, attn_v=T.Q5_1, attn_output=T.IQ4_NL,
                      ffn_gate=T.Q8_0, ffn_up=T.Q6_K, ffn_down=T.Q5_1, output=T.Q4_1)),
    Case("llama, int8 cache", "llama", "Llama", rope("default"), permute=True, without=rope("default", 100.0),
         build_flags=("--kv", "q8")),
    Case("llama, NTK", "llama", "Llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 64}, permute=True,
         # The base that transformers takes for a sequence of 100 positions.
         metadata={"rope.scaling.alpha": 4.0 * 100 / 64 - 3.0}, without=rope("default")),
    Case("llama, linear RoPE", "llama", "Llama", rope("linear", factor=4.0), permute=True,
         metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, without=rope("default")),
    Case("llama 3", "llama", "Llama",
         rope("llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64),
         permute=True, metadata={"rope.freq_base": 5e5}, tensors=llama3_factors, without=rope("default", 5e5)),
    Case("llama, biases", "llama", "Llama", {**rope("default"), "attention_bias": True, "mlp_bias": True},
         permute=True, without=rope("default", 100.0)),
    Case("mistral", "llama", "Mistral", {**rope("default"), "sliding_window": 24}, permute=True,
         metadata={"attention.sliding_window": 24}, without={"sliding_window": None}),
    Case("mistral, int8 cache", "llama", "Mistral", {**rope("default"), "sliding_window": 24}, permute=True,
         metadata={"attention.sliding_window": 24}, without={"sliding_window": None}, build_flags=("--kv", "q8")),
    Case("qwen2", "qwen2", "Qwen2", rope("default"), without=rope("default", 100.0)),
    Case("qwen2, YaRN", "qwen2", "Qwen2", rope("yarn", **YARN),
         metadata={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                   "rope.scaling.original_context_length": 64},
         without=rope("default")),
    Case("qwen2, YaRN's own betas", "qwen2", "Qwen2",
         {**rope("yarn", **YARN, beta_fast=6.0, beta_slow=0.5), "tie_word_embeddings": False},
         metadata={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                   "rope.scaling.original_context_length": 64, "rope.scaling.yarn_beta_fast": 6.0,
                   "rope.scaling.yarn_beta_slow": 0.5},
         without=rope("yarn", **YARN)),
    Case("qwen2, odd shapes", "qwen2", "Qwen2", {**rope("default"), **ODD, "tie_word_embeddings": False},
         without=rope("default", 100.0)),
    Case("qwen3, three to one", "qwen3", "Qwen3", {**rope("default"), **THREES, "tie_word_embeddings": False},
         without=rope("default", 100.0)),
    Case("qwen3, int8 cache", "qwen3", "Qwen3", {**rope("default", 1e6), "head_dim": 64},
         metadata={"rope.freq_base": 1e6}, without=rope("default", 100.0), build_flags=("--kv", "q8")),
    Case("qwen3", "qwen3", "Qwen3", {**rope("default", 1e6), "head_dim": 64},
         metadata={"rope.freq_base": 1e6}, without=rope("default", 100.0)),
    Case("gemma2", "gemma2", "Gemma2",
         {**GEMMA, **rope("default"), "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
         shifted_norms=True,
         metadata={"attention.sliding_window": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
         without={"sliding_window": 1024}),
    Case("gemma2, int8 cache", "gemma2", "Gemma2",
         {**GEMMA, **rope("default"), "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
         shifted_norms=True,
         metadata={"attention.sliding_window": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0},
         without={"sliding_window": 1024}, build_flags=("--kv", "q8")),
    Case("gemma3, odd shapes", "gemma3", "Gemma3",
         {**GEMMA, **GEMMA3_ROPE, **ODD, "num_hidden_layers": 7, "query_pre_attn_scalar": 26}, shifted_norms=True,
         metadata=GEMMA3_METADATA, without={"sliding_window": 1024}),
    Case("gemma3", "gemma3", "Gemma3", {**GEMMA, **GEMMA3_ROPE, "num_hidden_layers": 7}, shifted_norms=True,
         metadata=GEMMA3_METADATA, without={"sliding_window": 1024}),
    Case("gemma3, int8 cache", "gemma3", "Gemma3", {**GEMMA, **GEMMA3_ROPE, "num_hidden_layers": 7},
         shifted_norms=True, metadata=GEMMA3_METADATA, without={"sliding_window": 1024}, build_flags=("--kv", "q8")),
    Case("phi3", "phi3", "Phi3", {**rope("default"), "sliding_window": 24},
         metadata={"attention.sliding_window": 24}, without={"sliding_window": None}),
    Case("phi3, long factors", "phi3", "Phi3", PHI3_LONGROPE,
         metadata=LONGROPE_METADATA, tensors=long_factors, without=rope("default")),
    Case("phi3, short factors", "phi3", "Phi3", PHI3_LONGROPE,
         metadata=LONGROPE_METADATA, tensors=long_factors, without=rope("default"), positions=60, context=64),
    Case("phi3, part of the head", "phi3", "Phi3", rope("default", partial_rotary_factor=0.5),
         metadata={"rope.dimension_count": 16, "attention.sliding_window": 0}, without=rope("default")),
    Case("phi3, odd shapes", "phi3", "Phi3",
         {**rope("default"), **ODD, "sliding_window": 24, "tie_word_embeddings": False},
         metadata={"attention.sliding_window": 24}, without={"sliding_window": None}),
    Case("phi3, part of the head, int8 cache", "phi3", "Phi3", rope("default", partial_rotary_factor=0.75),
         metadata={"rope.dimension_count": 24, "attention.sliding_window": 0}, without=rope("default"),
         build_flags=("--kv", "q8")),
    Case("smollm3, int8 cache", "smollm3", "SmolLM3", {**rope("default"), **THREES, "num_hidden_layers": 5},
         permute=True, without={"no_rope_layers": [1] * 5}, build_flags=("--kv", "q8")),
    Case("smollm3", "smollm3", "SmolLM3", {**rope("default"), "num_hidden_layers": 5}, permute=True,
         without={"no_rope_layers": [1] * 5}),
]

TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_TENSORS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def tensor_name(case: Case, parameter: str) -> str:
    names = {**TENSORS, **(GEMMA_TENSORS if case.shifted_norms else {})}
    stem, suffix = parameter.rsplit(".", 1)
    if stem in names:
        return f"{names[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{names[part]}.{suffix}"


def blocks(ty: T, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bytes of a tensor: `weights` quantized, or random blocks of their size where the
    package cannot quantize to the format."""
    try:
        return gguf.quants.quantize(weights, ty)
    except NotImplementedError:
        pass
    rows, width = weights.shape
    elements, size = gguf.GGML_QUANT_SIZES[ty]
    data = rng.integers(0, 256, (rows * width // elements, size), dtype=np.uint8)

    def set_scales(scale: float) -> None:
        if ty == T.MXFP4:
            data[:, 0] = 127 + round(math.log2(scale))
        for at in FORMATS[ty]:
            value = np.float16(scale if at == FORMATS[ty][0] else scale * 3)
            data[:, at : at + 2] = np.frombuffer(value.tobytes(), dtype=np.uint8)

    set_scales(1.0)
    values = gguf.quants.dequantize(data.reshape(rows, -1), ty)
    set_scales(float(weights.std() / values.std()))
    return data.reshape(rows, -1)


def make_model(case: Case, changes: dict, dtype, seed: int):
    """The model with random weights that `dtype`, or its part's format, represents exactly,
    and the bytes of those in formats."""
    module = getattr(transformers, f"{case.model}ForCausalLM")
    config_class = module.config_class
    if case.model == "Gemma3":
        config_class = transformers.Gemma3TextConfig
    config = config_class(**copy.deepcopy({**COMMON, **case.config, **changes}), attn_implementation="eager")
    model = module(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    state, raw = {}, {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            gain = 0.5 if "embed" in name and case.shifted_norms else 1.0
            value = noise * gain / math.sqrt(parameter.shape[1]) * (3.0 if "embed" in name or "lm_head" in name else 1.0)
            ty = case.formats.get(tensor_name(case, name).split(".")[-2])
            if ty is None:
                value = value.to(dtype).float()
            else:
                raw[name] = blocks(ty, value.numpy(), rng)
                value = torch.from_numpy(gguf.quants.dequantize(raw[name], ty).astype(np.float32))
        elif name.endswith("bias"):
            value = 0.3 * noise
        else:
            value = 0.2 * noise + (0.0 if case.shifted_norms else 1.0)
        state[name] = value
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model, raw


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K in the order in which neighbours are rotated together."""
    pairs = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, pairs, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(case: Case, model, raw: dict, path: Path, dtype) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_name(case.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(max(config.max_position_embeddings, case.context))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for key, value in case.metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{case.architecture}.{key}", value)
    characters = [chr(FIRST_CHARACTER + i) for i in range(config.vocab_size - FIRST_CHARACTER_TOKEN)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters])
    writer.add_token_scores([0.0] * config.vocab_size)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
                           + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(characters))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        quantized = raw.get(name)
        name = tensor_name(case, name)
        value = parameter.detach().numpy() if quantized is None else quantized
        part = name.split(".")[-2]
        if case.permute and part in heads:
            value = permuted(value, heads[part])
        if case.shifted_norms and part.endswith("norm"):
            value = value + np.float32(1)
        if quantized is None:
            writer.add_tensor(name, value.astype(dtype if value.ndim == 2 else np.float32))
        else:
            writer.add_tensor(name, value, raw_dtype=case.formats[part])
    for name, value in case.tensors(config).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def container(model: Path) -> str:
    steps = [
        {"id": "load", "type": "model_load", "model_path": str(model), "output": "model"},
        {"id": "read", "type": "tokenize", "input": "prompt.txt", "output": "tokens"},
        {"id": "run", "type": "forward_pass", "model": "model", "input": "tokens", "output": "logits"},
        {"id": "pick", "type": "greedy_sample", "logits": "logits", "max_tokens": 1, "output": "ids"},
        {"id": "text", "type": "decode", "input": "ids", "output": "answer"},
    ]
    return json.dumps({"omex_version": "0.3.0", "task_id": "families", "task_type": "summarization", "task_flow": steps})


def omex_logits(case: Case, model: Path, vocabulary: int, ids: list[int], folder: Path) -> np.ndarray:
    """Logits of all positions, equal for passes of 1, 7 and all tokens."""
    task, text, plan, dump = (folder / name for name in ("task.json", "text.txt", "plan.bin", "logits.f32"))
    task.write_text(container(model))
    text.write_text("".join(chr(FIRST_CHARACTER + i - FIRST_CHARACTER_TOKEN) for i in ids[1:]))
    results = []
    for chunk in (1, 7, case.context):
        run(BINARIES / "omexc", "build", task, "--any-path", "--target", "host", "-c", case.context,
            "--ubatch-size", chunk, "--cache-dir", folder / "cache", *case.build_flags, "-o", plan)
        run(BINARIES / "omex", "run", plan, "--raw", "-i", text, "-n", "0", "-t", "2", "--model-dir", folder / "cache",
            "--dump-logits", dump)
        results.append(dump.read_bytes())
    if len(set(results)) != 1:
        sys.exit(f"{case.name}: the logits depend on the size of the passes")
    logits = np.frombuffer(results[0], dtype="<f4").reshape(-1, vocabulary)
    if len(logits) != len(ids):
        sys.exit(f"{case.name}: {len(logits)} positions were evaluated, not {len(ids)}")
    return logits


def run(*command) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    reference, other = log_softmax(reference), log_softmax(other)
    return float((np.exp(reference) * (reference - other)).sum(axis=-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, seed {args.seed}\n")
    print("| model | weights | mean KL | KL without its point |\n|---|---|---|---|")
    failed = False
    for case in CASES:
        if args.case and not any(word in case.name for word in args.case):
            continue
        dtypes = [(np.float32, torch.float32), (np.float16, torch.float16)]
        limit = KL_MAX
        if case.formats:
            dtypes, limit = dtypes[1:], QUANTIZED_KL_MAX
        for dtype, torch_dtype in dtypes:
            model, raw = make_model(case, {}, torch_dtype, args.seed)
            vocabulary = model.config.vocab_size
            rng = np.random.default_rng(args.seed)
            ids = [BOS, *rng.integers(FIRST_CHARACTER_TOKEN, vocabulary, case.positions - 1).tolist()]
            with torch.inference_mode():
                reference = model(torch.tensor([ids])).logits[0].numpy()
                other, _ = make_model(case, case.without, torch_dtype, args.seed)
                without = mean_kl(reference, other(torch.tensor([ids])).logits[0].numpy())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.gguf")
                write_gguf(case, model, raw, path, dtype)
                kl = mean_kl(reference, omex_logits(case, path, vocabulary, ids, Path(folder)))
            weights = "quantized" if case.formats else np.dtype(dtype).name
            print(f"| {case.name} | {weights} | {kl:.2e} | {without:.2e} |", flush=True)
            if not kl <= limit:
                print(f"  above {limit}")
                failed = True
            if not without > 5 * limit:
                print("  the case does not show what it is about")
                failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
