"""Text encoders: encoded prompts on disk, and T5 with 8-bit weights.

Any change of the encodings must also change their keys in the cache (`TextCache`). A new weight format belongs in
`text_weights.py`.
"""
