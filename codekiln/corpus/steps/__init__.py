"""The steps of a corpus, one per file: a recipe lists them in order."""
