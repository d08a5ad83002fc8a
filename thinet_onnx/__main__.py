"""`python -m thinet_onnx` is the command `thinet-onnx`."""

from thinet_onnx.cli import main

if __name__ == "__main__":
    main()
