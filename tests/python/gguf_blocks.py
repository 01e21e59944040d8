"""gguf_blocks.py OUT: matrices in every block type that is read, with their values beside them, as one GGUF file.

Blocks of what the package `gguf` can quantize are made by it; of the others the bytes are random, with scales that are
finite. The values are what the package makes of the blocks.
"""

import argparse
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Type
from gguf import quants

ROWS, COLUMNS = 2, 256
TYPES = [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q6_K]


def blocks(kind: Type, random: numpy.random.Generator) -> numpy.ndarray:
    try:
        return quants.quantize(random.standard_normal((ROWS, COLUMNS), dtype=numpy.float32), kind)
    except NotImplementedError:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (ROWS, COLUMNS // values, size), dtype=numpy.uint8)
        scales = numpy.frombuffer(numpy.array([0.0123, 0.0456], dtype=numpy.float16).tobytes(), dtype=numpy.uint8)
        # Q4_K begins with its two scales, Q6_K ends with its one.
        if kind == Type.Q4_K:
            data[..., :4] = scales
        else:
            data[..., -2:] = scales[:2]
        return data.reshape(ROWS, -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    writer = gguf.GGUFWriter(parser.parse_args().out, "blocks")
    random = numpy.random.default_rng(5)
    for kind in TYPES:
        data = blocks(kind, random)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.values", quants.dequantize(data, kind).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
