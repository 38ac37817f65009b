"""CLIP's checkpoints: OpenAI, OpenCLIP, Hugging Face, MaskCLIP."""
