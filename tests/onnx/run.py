"""Checks an ONNX model with ONNX's own checker and runs it in onnxruntime.

    run.py MODEL COLUMNS

COLUMNS is JSON: a list of records, each a list of numbers; null is a missing one. One document of JSON comes back: the metadata,
the shapes of inputs and outputs, and what the model gives (null where it is no number).
"""

import json
import math
import sys

import numpy
import onnx
import onnxruntime


def numbers(rows):
    return [[None if math.isnan(value) else value for value in row] for row in rows.astype(float).tolist()]


def main():
    path, columns = sys.argv[1:]
    with open(columns, encoding="utf-8") as file:
        records = [[math.nan if value is None else value for value in row] for row in json.load(file)]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    features = numpy.array(records, dtype=numpy.float32)
    logits, probabilities = session.run(["logits", "probabilities"], {"features": features})
    empty = session.run(["logits"], {"features": features[:0]})[0]
    answer = {
        "metadata": session.get_modelmeta().custom_metadata_map,
        "version": session.get_modelmeta().version,
        "inputs": {value.name: value.shape for value in session.get_inputs()},
        "outputs": {value.name: value.shape for value in session.get_outputs()},
        "logits": numbers(logits),
        "probabilities": numbers(probabilities),
        "logits_of_nobody": list(empty.shape),
    }
    print(json.dumps(answer, allow_nan=False))


main()
