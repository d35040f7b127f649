"""`metrics=full`: scores by networks, whose weights come from a path or a hub. Needs the extra `metrics`.

`weights` looks for them and imports no torch; `making` loads them.
"""
