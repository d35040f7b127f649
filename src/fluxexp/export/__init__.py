"""Copies results into formats that other programs read: Parquet, webdataset, Hugging Face, OpenAI batch. No torch."""
