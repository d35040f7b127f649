"""Programs that make files of this project. Run them as modules from the project's root, for example
`python -m tools.optimization_docs`.
"""
