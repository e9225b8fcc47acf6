"""The index of training documents from their token shards; and of a folder of code with the tokens of a model, without a run:
to search it, to trace completions to it, and to recall it."""

import shutil
from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import MANIFEST, read_names
from codekiln.corpus.engine import Engine
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.redaction.secrets import SECRETS
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.redact import Redact
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import JsonObject, atomic_write, sha256_of
from codekiln.folders import claim_folder, folder_lock, refuse_links, require_separate
from codekiln.index.build import IndexedTokens, build_index
from codekiln.index.config import IndexConfig
from codekiln.index.search import INDEX_FOLDER
from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
from codekiln.train.prepare import open_token_shards, prepare_shards


def index_folder(
    code: Path, tokenizer: Path, out: Path, *, license: str | None = None, engine: Engine | None = None
) -> JsonObject:
    """Writes the index of the code in a folder to `out`, and returns its manifest.

    `out` holds the corpus, its token shards, a copy of the file `tokenizer`, and the index. It may be unfinished, or the index
    of an earlier version of the code: what has not changed is kept. Files are as for a corpus, duplicates included; secrets are
    replaced. `license` is the SPDX expression of all files; without it, each folder declares its own. Memory is that of
    `engine`. Raises MissingFileError if there is no such folder, and ConfigError if `out` and `code` are not apart, if `out`
    has another tokenizer, or if no file has text.
    """
    engine = engine or Engine()
    if not code.is_dir():
        raise MissingFileError(f"{code} is not a folder: name a folder with source code")
    require_separate(out, code)
    claim_folder(out, "index")
    refuse_links(out)
    with folder_lock(out):
        copy = out / TOKENIZER_FILE
        if not copy.is_file():
            with atomic_write(copy) as temp_path:
                shutil.copyfile(tokenizer, temp_path)
        elif sha256_of(copy) != sha256_of(tokenizer):
            raise ConfigError(
                f"{out} is an index for the tokens of another model than {tokenizer}: choose another --out"
            )
        source = LocalRepositories(folder=code, license=license)
        config = CorpusConfig(sources=(source,), steps=(Redact(rules=SECRETS),), validation_fraction=0.0)
        build_corpus(config, out / "corpus", engine)
        prepare_shards(out / "corpus", copy, out / "tokens")
        shards = open_token_shards(out / "tokens", "train")
        if not sum(map(len, shards.ids)):
            raise ConfigError(f"no file in {code} has text to index: name a folder with source code")
        return index_tokens(out, IndexConfig(memory_bytes=engine.memory_bytes))


def index_tokens(folder: Path, config: IndexConfig) -> JsonObject:
    """Writes the index of the training documents of a folder with a corpus, token shards and their tokenizer, as a run has
    them. Returns its manifest."""
    tokenizer = folder / TOKENIZER_FILE
    shards = open_token_shards(folder / "tokens", "train")
    tokens = IndexedTokens(shards.ids, shards.document_offsets, Tokenizer.load(tokenizer).vocab_size)
    made_from = {
        "corpus": sha256_of(folder / "corpus" / MANIFEST),
        "tokenizer": sha256_of(tokenizer),
        "tokens": sha256_of(folder / "tokens" / MANIFEST),
    }
    return build_index(folder / INDEX_FOLDER, tokens, read_names(folder / "corpus", "train"), config, made_from)
