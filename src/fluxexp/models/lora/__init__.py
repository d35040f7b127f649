"""LoRA: small changes of the weights of linear layers, merged into a loaded model and taken out again.

`lora_tensors.py` reads files, `lora_merger.py` changes weights in place, `original_weights.py` keeps the loaded ones.
Taking LoRAs out restores the bits of the loaded weights: `tests/models/test_lora.py` compares them after any sequence
of changes.
"""
