"""Writes edge/export/calibration.txt: what the bf16 pocket model says when it is given the openings below.

    python -m benchmarks.calibration_text MODEL_FOLDER edge/export/calibration.txt

MODEL_FOLDER is an export of the pocket model in bf16. The model's weights are Apache-2.0 and the openings were written
for this file, so the text can be shipped; no data set is in it. A fixed seed gives the same text on the same machine
and OpenVINO release; other arithmetic may round a sampled token differently, so the file is kept, not made anew.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import click

ARTICLES = [
    "The Danube is the second-longest river in Europe. It rises in the Black Forest and",
    "Marie Curie was a physicist and chemist who was born in Warsaw in 1867. She",
    "The album was recorded between March and July 1994 and was released by the band the following year. Critics",
    "The siege of the fortress began in the spring of 1643, when the army of the duke crossed the river and",
    "The common kingfisher is a small bird that is found across Eurasia and North Africa. Its diet",
    "Photosynthesis is the process by which plants convert light into chemical energy. In the first stage,",
    "The lighthouse was built in 1872 on the northern tip of the island. It stands 32 metres tall and",
    "In the 2003 season the club finished third in the league, losing only four of its 38 matches. The manager",
    "The novel tells the story of a young engineer who returns to his home town after the war. Its author",
    "The storm formed on August 14 as a tropical depression east of the Lesser Antilles. It strengthened and",
    "The railway line connects the two largest cities of the region and was opened in stages from 1898. The first",
    "The element has the atomic number 47 and the symbol Ag. It has been known since antiquity and",
    "The film was directed by a newcomer and stars two well-known actors as brothers who inherit a farm. It premiered",
    "The battleship was laid down in 1911 and served with the fleet throughout the First World War. Her main battery",
    "The cathedral's nave was completed in the thirteenth century in the Gothic style. The western tower",
    "The treaty was signed by both governments in October 1921 after long negotiations. Under its terms,",
    "Inflation is a general rise in the prices of goods and services in an economy. Economists",
    "The game is played on a square board by two players who take turns. The goal",
    "The species was first described in 1834 from fossils found in a quarry in southern England. Palaeontologists",
    "She was elected to parliament in 1987 and became minister of education four years later. During her term",
]
PROSE = [
    "The rain had not stopped for three days when Anna heard the knock on the door. She",
    '"You cannot be serious," said the old man, putting down his cup. "Nobody has crossed that pass since',
    "I have always thought of my grandmother's kitchen as the centre of the world. On Sundays",
    "Dear Mr. Harris, I am writing to you about the apartment on Mill Street, which",
    "City council approves new bus lanes. After a debate of five hours on Tuesday night,",
    "Ten years ago I started to run every morning before work. What I have learned since then",
    "The captain looked at the chart once more. If the wind held, they would",
    "How to repair a flat bicycle tyre. First, turn the bicycle upside down and",
]
CODE = [
    'def read_config(path):\n    """Read the configuration file and return a dictionary."""\n',
    "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, cols):\n",
    "#include <stdio.h>\n\nint main(int argc, char **argv) {\n",
    "function debounce(fn, delay) {\n  let timer;\n",
    "SELECT customers.name, SUM(orders.total)\nFROM customers\n",
    "<!DOCTYPE html>\n<html>\n<head>\n  <title>",
]
QUESTIONS = [
    "What is the capital of Australia, and why was it chosen?",
    "Explain the difference between weather and climate in simple words.",
    "Write a short poem about the sea in autumn.",
    "A train leaves at 9:40 and arrives at 13:15. How long does the journey take?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Give me five ideas for a healthy breakfast.",
    "Summarise the causes of the French Revolution in three sentences.",
    "How do I make a good cup of coffee without a machine?",
    "Please rewrite this sentence politely: Send me the report now.",
    "What happens to water when it boils?",
    "Write an email to my landlord asking to fix the heating.",
    "What are the main parts of a computer and what do they do?",
]
# GLM-4's other languages; written by hand, because the pocket model speaks only English.
MULTILINGUAL = [
    "北京是中国的首都,也是全国的政治和文化中心。这座城市有三千多年的历史,故宫、长城和颐和园每年都吸引着许多游客。"
    "请用简单的语言解释一下什么是机器学习:机器学习是让计算机从数据中学习规律的方法,不需要人把每一条规则都写出来。",
    "今日は朝から雨が降っていたので、駅まで傘をさして歩きました。電車の中では本を読んでいる人が多かったです。\n"
    "안녕하세요. 저는 서울에 살고 있으며 주말에는 친구들과 산에 오르는 것을 좋아합니다.",
    "Die Bibliothek öffnet um neun Uhr und schließt am Abend um acht. Le marché se tient chaque samedi sur la place de "
    "l'église, où l'on trouve des légumes, du pain et du fromage. El tren de Madrid llega a las cinco de la tarde.\n"
    "Река течёт через город и впадает в море. تقع المدينة على ساحل البحر وفيها ميناء قديم.",
]
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CHAT = SYSTEM + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--new-tokens", default=320, show_default=True, help="Tokens sampled after each opening.")
@click.option("--seed", default=4, show_default=True)
def main(model: Path, out: Path, new_tokens: int, seed: int) -> None:
    """Sample and write the file."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU", ATTENTION_BACKEND="PA", INFERENCE_PRECISION_HINT="f32")
    config = openvino_genai.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, temperature=0.9, top_p=0.95, apply_chat_template=False
    )
    kinds = [
        [opening + text for opening, text in zip(ARTICLES, _sample(pipeline, ARTICLES, config, seed), strict=True)],
        [opening + text for opening, text in zip(PROSE, _sample(pipeline, PROSE, config, seed + 1), strict=True)],
        [opening + text for opening, text in zip(CODE, _sample(pipeline, CODE, config, seed + 2), strict=True)],
        [
            question + "\n\n" + text
            for question, text in zip(
                QUESTIONS, _sample(pipeline, [CHAT.format(q) for q in QUESTIONS], config, seed + 3), strict=True
            )
        ],
        MULTILINGUAL,
    ]
    # Kinds take turns, so that any beginning of the file is a mixture.
    texts = [text.strip() for text in chain.from_iterable(zip_longest(*kinds)) if text]
    out.write_text("\n\n\n".join(texts) + "\n", encoding="utf-8", newline="\n")
    click.echo(f"{len(texts)} texts, {out.stat().st_size / 1000:.0f} kB", err=True)


def _sample(pipeline: Any, prompts: list[str], config: Any, seed: int) -> list[str]:
    config.rng_seed = seed
    texts: list[str] = pipeline.generate(prompts, config).texts
    return texts


if __name__ == "__main__":
    main()
