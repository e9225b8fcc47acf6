"""Other software that generates tokens in place of the engine, behind the interface that `Completer` uses."""
