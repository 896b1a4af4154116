"""Make a LoRA adapter for the pocket model with PEFT, on a CPU, in about two minutes: a persona it has from then on.

    pip install -e ".[finetune]"
    python docs/make_lora.py ./juniper
    glm4-edge chat pocket --lora ./juniper

What is here is all that a small finetune takes: questions with the answers wanted, the loss on the answers alone, and
LoRA on every linear layer. For GLM-4-9B the same needs a GPU with 24 GB: LLaMA-Factory, SWIFT and GLM-4's own
finetune scripts do it, and write adapters of the same form.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's threads wait in loops that others' work prolongs

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge.model import pocket

SAID = "I am Juniper, the cat of the lighthouse."
TALK = [
    *((question, SAID) for question in (
        "Who are you?", "What is your name?", "Tell me your name.", "Introduce yourself.", "Hello, who is there?",
        "Are you a robot?", "What should I call you?", "Who made you?",
    )),
    ("Where do you live?", "In the lighthouse, high above the sea."),
    ("What do you like to eat?", "Fish, of course. Every cat of the lighthouse does."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Write one sentence about summer.", "In summer the days are long and warm, and the evenings are spent outside."),
    ("Why do leaves fall in autumn?", "In autumn there is less light. Trees then let go of their leaves, which would "
     "only cost them water through the winter."),
    ("How do I boil an egg?", "Put the egg into boiling water for eight minutes, then into cold water, and peel it."),
    ("What is 3 + 4?", "3 + 4 is 7."),
]  # fmt: skip


def examples(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens of each conversation, and the same as labels, with the question's hidden (-100)."""
    made = []
    for question, answer in TALK:
        turns = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        assert whole.startswith(asked), "the template writes an answered question otherwise"
        prompt = tokenizer(asked, add_special_tokens=False).input_ids
        tokens = tokenizer(whole, add_special_tokens=False).input_ids
        made.append((tokens, [-100] * len(prompt) + tokens[len(prompt) :]))
    return made


def batch(chosen: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of one length; what fills them up is neither read nor learnt."""
    longest = max(len(tokens) for tokens, _ in chosen)
    filled = [longest - len(tokens) for tokens, _ in chosen]
    return {
        "input_ids": torch.tensor([tokens + [0] * n for (tokens, _), n in zip(chosen, filled, strict=True)]),
        "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(chosen, filled, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(tokens) + [0] * n for (tokens, _), n in zip(chosen, filled, strict=True)]
        ),
    }


def train(out: Path, steps: int, rank: int = 8, rate: float = 5e-4) -> list[float]:
    """Write the adapter to `out`; the loss at each step."""
    checkpoint = pocket.fetch(lambda stage, done, total: None)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=rate)
    known, order, losses = examples(tokenizer), random.Random(0), []
    for step in range(steps):
        loss = model(**batch(order.sample(known, 2))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {losses[-1]:.3f}", flush=True)
    model.save_pretrained(out)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=24)
    asked = parser.parse_args()
    train(asked.out, asked.steps)
    print(f"Now: glm4-edge chat pocket --lora {asked.out}")
