"""From text to ids and back, and the layout of a document with holes."""
