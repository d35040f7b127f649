"""Where results live: a small store protocol, and one reader and one writer of a run over it. Imports no torch."""
