"""The shapes model's tokenizer: sentencepiece, trained on its own sentences.

    python3 tests/models/train/tokens.py OUT.model
"""

import os
import sys

import sentencepiece

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import shapes  # noqa: E402

TEXT_LEN = 64
VOCAB = 256


class Tokenizer:
    def __init__(self, path):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=path)

    def __call__(self, text):
        ids = self.sp.encode(text)[:TEXT_LEN - 1] + [1]
        return ids + [0] * (TEXT_LEN - len(ids))


def main():
    texts = shapes.corpus(20000)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'-!?"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + [" ".join(letters)] * 20), model_prefix=sys.argv[1].removesuffix(".model"),
        model_type="unigram", vocab_size=VOCAB, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, character_coverage=1.0, num_threads=1, minloglevel=2,
        normalization_rule_name="nmt_nfkc", required_chars=letters)
    os.remove(sys.argv[1].removesuffix(".model") + ".vocab")


if __name__ == "__main__":
    main()
