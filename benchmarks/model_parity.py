"""How far Codekiln's models are from Transformers' classes and from llama.cpp.

Run: `python benchmarks/model_parity.py`. Each row is one of Transformers' classes with random weights. Transformers saves
it, and Codekiln loads it. For the last columns it is exported, and llama.cpp runs it. Prints the table of docs/models.md.
"""

import tempfile
from pathlib import Path

import httpx
import torch
import transformers
import xllamacpp

import codekiln
from codekiln.convert.models import export_model
from codekiln.generate.engine import Engine
from codekiln.generate.sampling import GREEDY
from codekiln.model.cache import BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.huggingface import load_model
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer

GREEDY_TOKENS = 64
CONTEXT = 128
_LLAMA = {
    "num_hidden_layers": 3,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 200,
    "max_position_embeddings": CONTEXT,
}
_GPTJ = {"n_layer": 3, "n_embd": 96, "n_head": 4, "rotary_dim": 12, "n_positions": CONTEXT}
CONFIGS = {
    "codegen": transformers.CodeGenConfig(vocab_size=500, n_ctx=CONTEXT, **_GPTJ),
    "codegen (GPT-J)": transformers.GPTJConfig(vocab_size=500, **_GPTJ),
    "incoder (XGLM)": transformers.XGLMConfig(
        vocab_size=500,
        num_layers=3,
        d_model=96,
        attention_heads=4,
        ffn_dim=200,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "kiln (Qwen3)": transformers.Qwen3Config(vocab_size=500, head_dim=32, **_LLAMA),
    "kiln (Qwen2)": transformers.Qwen2Config(vocab_size=500, **_LLAMA),
    "kiln (Llama)": transformers.LlamaConfig(vocab_size=500, **_LLAMA),
    "kiln (Granite)": transformers.LlamaConfig(vocab_size=500, attention_bias=True, mlp_bias=True, **_LLAMA),
    "kiln (DeepSeek-Coder)": transformers.LlamaConfig(
        vocab_size=500, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}, **_LLAMA
    ),
    "lfm2": transformers.Lfm2Config(
        vocab_size=500,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention", "conv"],
        **_LLAMA,
    ),
    "starcoder2": transformers.Starcoder2Config(
        vocab_size=500, sliding_window=None, embedding_dropout=0.0, residual_dropout=0.0, **_LLAMA
    ),
}


def row(config: transformers.PretrainedConfig) -> list[str]:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_model(Path(folder)).requires_grad_(True)
    ids = torch.randint(1, 500, (4, 40))
    logits, expected = ours(ids), theirs(ids).logits
    logits.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    found, wanted = ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad
    assert found is not None

    with torch.no_grad():
        whole = ours(ids)
        cached = read_in_parts(ours, ids)
        padded = torch.cat([torch.zeros(4, 7, dtype=torch.long), ids], dim=1)
        documents = (torch.arange(47) >= 7).long().expand(4, -1)
        positions = (torch.arange(47) - 7).clamp(min=0).expand(4, -1)
        left = ours(padded, positions=positions, document_ids=documents)[:, 7:]
        half = ours.bfloat16()
        half_error = (half(ids).float() - expected).abs().mean()
        their_error = (theirs.bfloat16()(ids).logits.float() - expected).abs().mean()
        ours.float()
        theirs.float()
    return [
        f"{float((logits - expected).detach().abs().max()):.1e}",
        f"{float((found - wanted).norm() / wanted.norm()):.1e}",
        f"{float((cached - whole).abs().max()):.1e}",
        f"{float((left - whole).abs().max()):.1e}",
        f"{float(half_error / their_error):.2f}",
    ]


def read_in_parts(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """The logits of ids (B, T), of which the first 13 are read first and the others with a cache."""
    decoder = make_decoder(model, "float32")
    B, T = ids.shape
    pool = KVPool(model.config, B * T, like=decoder.embedding)
    parts = []
    for start, stop in ((0, 13), (13, T)):
        attend = BatchAttention(pool, [Chunk(stop - start, row * T, start) for row in range(B)])
        positions = torch.arange(start, stop).repeat(B)
        hidden = decoder.hidden_states(ids[:, start:stop].flatten(), positions, attend)
        parts.append(decoder.logits(hidden).view(B, stop - start, -1))
    return torch.cat(parts, dim=1)


def greedy(config: transformers.PretrainedConfig) -> str:
    """Whether rows of three lengths, decoded together, give the tokens of Transformers without a cache."""
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_model(Path(folder))
    prompts = [torch.randint(1, 500, (n,)).tolist() for n in (3, 17, 40)]
    none = frozenset[int]()
    engine = Engine(make_decoder(ours, "float32"), stop_token_ids=none, forbidden_token_ids=none)
    rows = engine.generate(prompts, GREEDY, max_new_tokens=GREEDY_TOKENS)
    n_equal = 0
    with torch.inference_mode():
        for prompt, found in zip(prompts, rows, strict=True):
            ids = list(prompt)
            for _ in range(GREEDY_TOKENS):
                ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
            n_equal += found == ids[len(prompt) :]
    return f"{n_equal} of {len(prompts)}"


def in_llama_cpp(config: transformers.PretrainedConfig, dtype: str) -> str:
    """The largest difference of a log-probability after 40 tokens, with keys and values in float32."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(codekiln.__file__).parent.rglob("*.py"))]
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        train_tokenizer(TokenizerConfig(vocab_size=500), texts).save(Path(folder) / "tokenizer.json")
        export_model(Path(folder), Path(folder) / "model.gguf", "gguf", dtype=dtype)
        ours = load_model(Path(folder))
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.warmup = f"{folder}/model.gguf", CONTEXT, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity = -1
        server = xllamacpp.Server(params)
        ids = torch.randint(1, 256, (40,)).tolist()
        # The sampled token is always a letter: the server hides probabilities of incomplete characters.
        body = {
            "prompt": ids,
            "n_predict": 1,
            "n_probs": 500,
            "cache_prompt": False,
            "logit_bias": [[ord("a") - 33, 1e4]],
        }
        answer = httpx.post(f"{server.listening_address}/completion", json=body, timeout=60).json()
        entries = answer["completion_probabilities"][0]["top_logprobs"]
        with torch.inference_mode():
            wanted = torch.log_softmax(ours(torch.tensor([ids]))[0, -1], -1)
    return f"{max(abs(float(wanted[entry['id']]) - entry['logprob']) for entry in entries):.1e}"


def main() -> None:
    heads = ("logits", "gradient, relative", "cache and none", "left-padded and alone", "bfloat16 error, ours / theirs")
    print(f"| | {' | '.join(heads)} | rows of {GREEDY_TOKENS} greedy tokens equal | llama.cpp, f32 | llama.cpp, q8_0 |")
    print("|---" * (len(heads) + 4) + "|")
    for name, config in CONFIGS.items():
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, token, 0)
        there = [in_llama_cpp(config, dtype) for dtype in ("f32", "q8_0")]
        print(f"| {name} | {' | '.join([*row(config), greedy(config), *there])} |", flush=True)


if __name__ == "__main__":
    main()
