from torch import Tensor


def stages(adapters, trunk, images, sentence, words, word_mask, wiring):
    x = trunk.embeddings(images)
    out = []
    for stage, adapter in zip(trunk.encoder.stages, adapters):
        x = stage(x)
        y = adapter(x, sentence, words, word_mask)
        out.append(y)
        if wiring == "inline":
            x = y
    return out
