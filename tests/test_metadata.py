"""InCoder's file tags and CodeGen's name of the language."""

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.engine import Engine
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.metadata import FileTags, LanguagePrefix, parse_tags, render_tags
from codekiln.recipe import StagedRecipe
from codekiln.recipes import get_recipe
from tests.small import write_tree

NAMES = st.text(alphabet="abcdefgh.", min_size=1, max_size=6)


@given(
    st.text(max_size=60),
    st.dictionaries(NAMES, st.text(alphabet="ab.:_-1é", min_size=1), max_size=4),
    st.integers(0, 99),
)
def test_parsed_tags_are_the_rendered_ones(text: str, attributes: dict[str, str], seed: int) -> None:
    assert parse_tags(render_tags(text, attributes, np.random.default_rng(seed))) == (text, attributes)


def test_each_attribute_is_in_the_opening_tag_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    counts: Counter[tuple[str, ...]] = Counter()
    for _ in range(4000):
        first, *_, last = render_tags("x = 1", {"ext": ".py", "filename": "a.py"}, rng).splitlines()
        opening = tuple(part.split("=")[0] for part in first.split() if "=" in part)
        closing = tuple(part.split("=")[0] for part in last.split() if "=" in part)
        assert sorted(opening + closing) == ["ext", "filename"]
        counts[opening] += 1
    # A quarter has both in the opening tag, in either order; a quarter each has one, and a quarter none.
    shares = {names: n / 4000 for names, n in counts.items()}
    assert abs(shares[()] - 0.25) < 0.03 and abs(shares[("ext",)] - 0.25) < 0.03
    assert abs(shares[("ext", "filename")] - 0.125) < 0.03 and abs(shares[("filename", "ext")] - 0.125) < 0.03


def test_names_that_would_break_a_tag_are_left_out(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, tmp_path, Engine(), n_units=0)
    for path, attributes in (("a/my file.py", {"ext": ".py"}), ("Makefile", {"filename": "Makefile"})):
        tagged = FileTags().finish_document(
            {"path": path, "kernel": "", "source": "tree", "stars": None}, "x = 1\n", scratch
        )
        assert parse_tags(tagged) == ("x = 1\n", attributes)


def test_recipes_of_the_papers_have_their_metadata(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    incoder = get_recipe("incoder-1B", code=code, license="MIT")
    assert not isinstance(incoder, StagedRecipe) and incoder.corpus.steps[-1] == FileTags()
    codegen = get_recipe("codegen-350M", code=code, license="MIT")
    assert isinstance(codegen, StagedRecipe)
    has_prefix = {stage.name: LanguagePrefix() in stage.corpus.steps for stage in codegen.recipes}
    assert list(has_prefix.values()) == [False, True, False]
    config = CorpusConfig(
        sources=(LocalRepositories(folder=code, license="MIT"),), steps=incoder.corpus.steps, validation_fraction=0.0
    )
    build_corpus(config, tmp_path / "corpus")
    for document in read_documents(tmp_path / "corpus", "train"):
        body, attributes = parse_tags(document.text)
        assert attributes == {"ext": ".py", "filename": Path(document.path).name}
        assert (code / document.repository / document.path).read_text(encoding="utf-8") == body
    config = CorpusConfig(sources=config.sources, steps=(LanguagePrefix(),))
    build_corpus(config, tmp_path / "prefixed")
    assert all(document.text.startswith("Python\n") for document in read_documents(tmp_path / "prefixed", "train"))
