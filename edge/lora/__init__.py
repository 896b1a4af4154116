"""LoRA adapters: what PEFT wrote, held against a model, and laid onto it or merged into it."""
