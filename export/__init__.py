"""Export: files for CPUs and phones that score what the model scored.

Does: turn a student's directory into GGUF and ONNX files, prove each against its source, carry the card along.
Does not: train, or run personas; `import export` loads nothing heavy.
"""
