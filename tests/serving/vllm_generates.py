"""What a model says in vLLM, run on a CPU by the kernels of another wheel of it.

python vllm_generates.py LOAD_FORMAT FOLDER
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}

PROMPT = "w5 w9 w77 w120"
TOKENS = 8


def main() -> None:
    from vllm import LLM, SamplingParams

    model = LLM(sys.argv[2], load_format=sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=64)
    wish = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=5, ignore_eos=True)
    answer = model.generate([PROMPT], wish)[0].outputs[0]
    scores = [sorted((token, each.logprob) for token, each in step.items()) for step in answer.logprobs]
    print(json.dumps({"text": answer.text, "tokens": list(answer.token_ids), "scores": scores}))


if __name__ == "__main__":
    main()
