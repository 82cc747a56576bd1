"""Three engines that turn token ids into logits, behind one interface.

`Reference` is transformers' own modelling code on dequantized f32 weights,
`LlamaCpp` is llama.cpp through its Python binding, and `Omex` runs the `omex`
binary. Logits are float32 arrays of shape [positions, vocabulary].
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "target/models/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTAINER = ROOT / "tests/oracle/evaluate.omex.json"


class Reference:
    """transformers' modelling code in f32 on the weights of a GGUF file."""

    def __init__(self, model: Path, threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__} (f32)"
        # Flash and memory-efficient kernels reorder sums; the eager path is
        # the plainest reading of the published equations.
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model.parent,
            gguf_file=model.name,
            dtype=torch.float32,
            attn_implementation="eager",
        ).eval()

    def logits(self, ids: list[int]) -> np.ndarray:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([ids])).logits[0].float().numpy()


class LlamaCpp:
    """llama.cpp with its default f16 KV cache, the reference-free peer."""

    def __init__(self, model: Path, threads: int, positions_max: int, flash_attention: bool = False):
        import llama_cpp

        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        self.llama = llama_cpp.Llama(
            str(model),
            n_ctx=positions_max,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            flash_attn=flash_attention,
            verbose=False,
        )

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`, with BOS when the model asks for it.

        `special` says whether the text of special tokens means these tokens.
        """
        add_bos = bool(self.llama._model.add_bos_token())
        return self.llama.tokenize(text.encode(), add_bos=add_bos, special=special)

    def chat_ids(self, prompt: str) -> list[int]:
        """Token ids of one user message rendered by the model's chat template."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        vocabulary = self.llama._model
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(self.llama.metadata["tokenizer.chat_template"])
        text = template.render(
            messages=[{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            bos_token=vocabulary.token_get_text(vocabulary.token_bos()),
            eos_token=vocabulary.token_get_text(vocabulary.token_eos()),
        )
        # The template writes the BOS itself where the model wants one.
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def stops(self, token: int) -> bool:
        """Whether generation ends at `token`."""
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self.llama._model.model)
        return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))

    def logits(self, ids: list[int]) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[: len(ids)], dtype=np.float32)

    def generate(self, ids: list[int], tokens_max: int) -> list[int]:
        """Greedy continuation; ties go to the lowest id; the stop token is left out."""
        self.llama.reset()
        self.llama.eval(ids)
        generated = []
        while len(generated) < tokens_max:
            token = int(np.argmax(self.llama.scores[self.llama.n_tokens - 1]))
            if self.stops(token):
                break
            generated.append(token)
            self.llama.eval([token])
        return generated


@dataclass
class Generation:
    """What one `omex run` generated, and the logits of every evaluated position."""

    prompt_tokens: int
    token_ids: list[int]
    logits: np.ndarray


class Omex:
    """The `omex` binary on a plan built from the same GGUF file."""

    def __init__(self, omex: Path, plan: Path, threads: int):
        version = subprocess.run([omex, "--version"], check=True, capture_output=True, text=True)
        self.name = version.stdout.strip()
        self.omex = omex
        self.plan = plan
        self.threads = threads

    @classmethod
    def build(cls, model: Path, folder: Path, threads: int) -> "Omex":
        """Builds a plan of a GGUF file with the binaries of target/release."""
        binaries = ROOT / "target/release"
        plan = folder / "plan.bin"
        subprocess.run(
            [binaries / "omexc", "build", CONTAINER, "-m", model.resolve(), "--any-path", "--target", "host", "-o", plan],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return cls(binaries / "omex", plan, threads)

    def tokenize(self, text: str) -> list[int]:
        result = subprocess.run(
            [self.omex, "tokenize", self.plan, "--ids"],
            input=text.encode(),
            check=True,
            capture_output=True,
        )
        return [int(word) for word in result.stdout.decode().replace(",", " ").strip("[] \n").split()]

    def logits(self, text: str, vocabulary: int) -> np.ndarray:
        """Logits of every position of `text`, without the chat template."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "text.txt")
            source.write_bytes(text.encode())
            return self._run(["--raw", "-i", str(source), "-n", "0"], folder, vocabulary).logits

    def generate(self, prompt: str, tokens_max: int, vocabulary: int) -> Generation:
        """Greedy answer to one user message rendered by the plan's chat template."""
        with tempfile.TemporaryDirectory() as folder:
            return self._run(["-p", prompt, "-n", str(tokens_max)], folder, vocabulary)

    def _run(self, arguments: list[str], folder: str, vocabulary: int) -> Generation:
        dump = Path(folder, "logits.f32")
        command = [self.omex, "run", self.plan, *arguments, "-t", str(self.threads)]
        result = subprocess.run(
            [*command, "--json", "--dump-logits", dump],
            check=True,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        report = json.loads(result.stdout)
        logits = np.fromfile(dump, dtype="<f4").reshape(-1, vocabulary)
        return Generation(report["prompt_tokens"], report["token_ids"], logits)
