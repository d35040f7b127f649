"""Text encoders: encoded prompts on disk, and T5 weights in eight bits."""
