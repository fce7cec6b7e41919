"""Activations of many runs on disk: safetensors shards, a manifest, and lazy views of what is in them."""
